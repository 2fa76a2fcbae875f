#!/usr/bin/env python3
"""Compares prep's ids with tiktoken, Hugging Face tokenizers and transformers; run by hand.

    pip install tiktoken tokenizers transformers unicodedata2
    python3 dev/reference/check_tokenizer.py [--prep build/prep]

Texts: those of ../shared/data/text, every Unicode code point, and random strings of the characters at which split
patterns differ. Vocabularies: GPT-2, cl100k, bytes, one trained here, and cl100k's under Llama 3's and Qwen 2's
patterns, the latter with NFC. All are also saved as tokenizer.json and loaded by Hugging Face.
"""
import argparse
import array
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

import unicodedata2 as unicodedata

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "bench"))

HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PARTS = "a b Z the 1 2 123 ٣ Ⅷ ² ½ ' 's 'S 'ſ 'll 'LL 'Ve ! ? - == ß é e\u0301 \u0323 漢 字 ひ 각 ᆨ 😀 👩‍👧 ǅ ª".split()
PARTS += ["\u0558", "\U0001e5d0", "\U000323af"]
PARTS += [" ", "  ", "\n", "\r", "\r\n", "\t", "\u00a0", "\u3000", "\u180e", "\u200b", "\u2028", "\x85", "\x1c", "\0"]
PARTS += [" world", "\uffff", "\U0010ffff", "<|endoftext|>"]


def prep_ids(prep, tokenizer, texts):
    """The ids of each text; checks that the saved tokenizer gives the same ones."""
    with tempfile.TemporaryDirectory() as work:
        lines = os.path.join(work, "texts.jsonl")
        with open(lines, "w", encoding="utf-8", newline="\n") as file:
            for text in texts:
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        out = os.path.join(work, "out")
        command = [prep, "tokenize", "--tokenizer", tokenizer, "--out", out, "--version", "2", "--shard-tokens"]
        subprocess.run(command + ["2000M", lines], check=True, capture_output=True)
        shard = open(os.path.join(out, "train_000000.bin"), "rb").read()
        header = array.array("i", shard[:1024])
        saved = open(os.path.join(out, "tokenizer.json"), "rb").read()
        config = open(os.path.join(out, "tokenizer_config.json"), "rb").read()
    ids, eot, found = array.array("I" if header[4] == 4 else "H", shard[1024:]), header[6], []
    for token in ids:
        if token == eot:
            found.append([])
        else:
            found[-1].append(token)
    assert len(found) == len(texts), (len(found), len(texts))
    return found, eot, saved, config


def compare(name, texts, found, encode):
    bad = [i for i, (text, ids) in enumerate(zip(texts, found)) if list(encode(text)) != ids]
    count = sum(map(len, found))
    print(f"{'FAIL' if bad else 'ok  '} {name}: {len(texts)} texts, {count} ids, {len(bad)} differ", flush=True)
    for i in bad[:3]:
        print("    ", ascii(texts[i][:80]), found[i][:12], list(encode(texts[i]))[:12])
    return len(bad)


def hugging_face(name, texts, found, eot, saved, config):
    import tokenizers
    import transformers

    with tempfile.TemporaryDirectory() as work:
        for file, content in (("tokenizer.json", saved), ("tokenizer_config.json", config)):
            with open(os.path.join(work, file), "wb") as out:
                out.write(content)
        plain = tokenizers.Tokenizer.from_file(os.path.join(work, "tokenizer.json"))
        auto = transformers.AutoTokenizer.from_pretrained(work)
    # Hugging Face finds special tokens in any text; prep tokenize does not. Its NFC is that of Unicode 9, which orders
    # about a hundred combining marks added since differently.
    old_nfc = tokenizers.normalizers.NFC().normalize_str if b'"NFC"' in saved else None
    keep = [i for i, text in enumerate(texts) if "<|endoftext|>" not in text]
    if old_nfc is not None:
        keep = [i for i in keep if old_nfc(texts[i]) == unicodedata.normalize("NFC", texts[i])]
    texts, found = [texts[i] for i in keep], [found[i] for i in keep]
    bad = compare(f"{name}, tokenizers", texts, found, lambda t: plain.encode(t, add_special_tokens=False).ids)
    bad += compare(f"{name}, AutoTokenizer", texts, found, lambda t: auto.encode(t, add_special_tokens=False))
    normal = (lambda text: unicodedata.normalize("NFC", text)) if b'"NFC"' in saved else str
    wrong = sum(auto.decode(ids, clean_up_tokenization_spaces=False) != normal(t) for t, ids in zip(texts, found))
    wrong += auto.eos_token_id != eot
    print(f"{'FAIL' if wrong else 'ok  '} {name}, AutoTokenizer: decoding, end of text, {wrong} differ", flush=True)
    return bad + wrong


def random_texts(count):
    rng = random.Random(1)
    texts = ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 40))) for _ in range(count)]
    for _ in range(count // 4):
        codes = (rng.randrange(0x110000 if rng.random() < 0.3 else 0x3000) for _ in range(40))
        texts.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    codes = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts += ["".join(f"a{c}1{c} " for c in codes[i : i + 2000]) for i in range(0, len(codes), 2000)]
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prep", default="build/prep")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--count", type=int, default=4000, help="random texts")
    args = parser.parse_args()
    from bench_tokenizer import load_tiktoken

    texts = random_texts(args.count)
    for path in sorted(glob.glob(os.path.join(args.data, "text", "*"))):
        texts.append(open(path, encoding="utf-8", errors="replace", newline="").read()[:1000000])
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        corpus, trained = os.path.join(work, "corpus.txt"), os.path.join(work, "trained")
        with open(corpus, "w", encoding="utf-8", newline="") as file:
            file.write("".join(texts[-9:]))
        command = [args.prep, "train-tokenizer", "--vocab", "5000", "--reserved", "3", "--out", trained, corpus]
        subprocess.run(command, check=True, capture_output=True)
        tokenizers = os.path.join(args.data, "tokenizers")
        for source in ("bytes", trained, "r50k_base.tiktoken", "gpt2", "cl100k_base.tiktoken"):
            path = source if source in ("bytes", trained) else os.path.join(tokenizers, source)
            found, eot, saved, config = prep_ids(args.prep, path, texts)
            name = os.path.basename(source)
            if name.endswith(".tiktoken"):
                bad += compare(f"{name}, tiktoken", texts, found, load_tiktoken(path).encode_ordinary)
            bad += hugging_face(name, texts, found, eot, saved, config)
        # The last vocabulary, cl100k, with other split patterns.
        for name, digits, form in (
            ("Llama 3's pattern", r"\p{N}{1,3}", None),
            ("Qwen 2's pattern and NFC", r"\p{N}", {"type": "NFC"}),
        ):
            edited = json.loads(saved)
            edited["normalizer"] = form
            edited["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = HEAD + digits + TAIL
            path = os.path.join(work, "tokenizer.json")
            with open(path, "w") as file:
                json.dump(edited, file)
            bad += hugging_face(name, texts, *prep_ids(args.prep, path, texts))
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
