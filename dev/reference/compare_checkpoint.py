#!/usr/bin/env python3
"""Loads a checkpoint in Hugging Face transformers and compares ids and logits with those of our programs.

    pip install torch numpy safetensors transformers
    make && dev/reference/compare_checkpoint.py runs/kjv/step_00000500

It compares the ids of a text (prep tokenize; a built-in text of difficult cases, or --text-file) and the logits of the
first of these ids (train_gpt eval). Exit status 0: all agree, 1: not, 2: cannot compare. A directory without a
tokenizer.json gets arbitrary ids. Run by hand; neither building nor training needs it.
"""

import argparse
import glob
import os
import subprocess
import sys
import tempfile

import numpy as np

# Text that splits differently if a pattern or a byte table is wrong.
TEXT = ("In the beginning God created the heaven and the earth.  And it's 12345 o'clock, isn't it?\n\n\tYes: "
        "na\u00efve caf\u00e9, \u5317\u4eac, \U0001f600\U0001f44d\U0001f3fd, \u0645\u0631\u062d\u0628\u0627, "
        "\u00a0x\u2003y \u200b end   \n")
# fp32: two orders of summation differ by about 1e-6. bf16: a rounding of 2^-9 per operation gives about 1e-2.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


def fail(message):
    print(f"compare_checkpoint.py: {message}", file=sys.stderr)
    sys.exit(2)


def run_program(command):
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        fail(f"{command[0]}: {error.strerror}; build it with make, or name its folder with --build")
    if result.returncode != 0:
        fail(f"{' '.join(command[:2])} failed: {result.stderr.strip()}")


def read_shard(path):
    header = np.fromfile(path, dtype="<i4", count=256)
    if len(header) < 256 or header[0] != 20240520 or header[1] not in (1, 2):
        fail(f"{path}: not a token shard of version 1 or 2")
    wide = header[1] == 2 and header[4] == 4
    return np.fromfile(path, dtype="<u4" if wide else "<u2", offset=1024).astype(np.int64)


def our_ids(build, tokenizer_path, text):
    with tempfile.TemporaryDirectory() as temporary:
        text_path, out = os.path.join(temporary, "text.txt"), os.path.join(temporary, "shards")
        with open(text_path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        run_program([os.path.join(build, "prep"), "tokenize", "--tokenizer", tokenizer_path, "--docs", "none",
                     "--out", out, text_path])
        return np.concatenate([read_shard(path) for path in sorted(glob.glob(os.path.join(out, "train_*.bin")))])


def compare_ids(ours, tokenizer, text):
    theirs = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    lossless = tokenizer.decode(theirs.tolist(), skip_special_tokens=False) == text
    print(f"tokenizer: {len(theirs)} ids by transformers, decoded {'to the same text' if lossless else 'WRONGLY'}")
    count = min(len(ours), len(theirs))
    differ = np.nonzero(ours[:count] != theirs[:count])[0]
    if len(differ) == 0 and len(ours) == len(theirs):
        print(f"ids: all {count} equal")
        return lossless
    first = int(differ[0]) if len(differ) else count
    print(f"ids: DIFFER: {len(ours)} by prep, first difference at {first}: {ours[first:first + 5].tolist()} by prep, "
          f"{theirs[first:first + 5].tolist()} by transformers")
    return False


def our_logits(build, folder, ids, vocab, dtype):
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, "logits")
        run_program([os.path.join(build, "train_gpt"), "eval", f"ckpt={folder}", "ids=" + " ".join(map(str, ids)),
                     f"logits_out={path}", f"dtype={dtype}"])
        logits = np.fromfile(path, dtype="<f4")
    if logits.size != len(ids) * vocab:
        fail(f"train_gpt wrote {logits.size} logits, expected {len(ids)} * {vocab}")
    return logits.reshape(len(ids), vocab).astype(np.float64)


def compare_logits(model, ours, ids, dtype):
    import torch
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].double().numpy()
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    same = np.mean(ours.argmax(1) == theirs.argmax(1))
    good = bool(error <= TOLERANCE[dtype])  # a NaN is not
    print(f"logits: {ours.shape[0]} x {ours.shape[1]}, relative difference {error:.1e} ({dtype} may have "
          f"{TOLERANCE[dtype]:.0e}), largest {np.abs(ours - theirs).max():.1e}, same best token in {100 * same:.1f} %"
          f"{'' if good else ': TOO FAR'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="checkpoint or other Hugging Face directory")
    parser.add_argument("--text-file", help="UTF-8 text to use instead of the built-in one")
    parser.add_argument("--tokens", type=int, default=256, help="largest number of ids whose logits are compared (default 256)")
    parser.add_argument("--dtype", choices=TOLERANCE, default="fp32", help="dtype of train_gpt's computation")
    parser.add_argument("--build", default="build", help="folder of train_gpt and prep (default build)")
    args = parser.parse_args()
    try:
        import tokenizers
        import torch
        import transformers
    except ImportError as error:
        fail(f"{error}; see --help for what to install")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    try:
        config = transformers.AutoConfig.from_pretrained(args.folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        fail(f"{args.folder}: transformers cannot load it: {str(error).splitlines()[0]}")
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.folder}: {type(model).__name__}, {count} parameters, vocabulary {config.vocab_size}")
    good = True
    path = os.path.join(args.folder, "tokenizer.json")
    if os.path.exists(path):
        text = TEXT
        if args.text_file:
            with open(args.text_file, encoding="utf-8", newline="") as file:
                text = file.read()
        ids = our_ids(args.build, path, text)
        good = compare_ids(ids, tokenizers.Tokenizer.from_file(path), text)
    else:
        print("tokenizer: no tokenizer.json, arbitrary ids")
        ids = np.arange(args.tokens) * 7919 % config.vocab_size
    if len(ids) == 0:
        fail("no tokens to compare the logits of")
    ids = ids[:min(args.tokens, config.max_position_embeddings)].tolist()
    ours = our_logits(args.build, args.folder, ids, config.vocab_size, args.dtype)
    good &= compare_logits(model, ours, ids, args.dtype)
    print("agree" if good else "DISAGREE")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
