#!/usr/bin/env python3
"""Encoding speed compared with tiktoken on one core: the same text and vocabulary, alternating in one run.

    pip install tiktoken && python3 dev/bench/bench_tokenizer.py [--prep build/prep] [--tokenizer FILE] TEXT...

tiktoken: encode_ordinary of the text in memory, seconds of CPU. prep: `prep tokenize --threads 1` of the same file,
seconds of CPU of the whole process after loading the tokenizer, including reading the file and writing shards, which
tiktoken does not do. Both are the best of the rounds; the ids are compared, too.
"""
import argparse
import array
import base64
import os
import re
import subprocess
import tempfile
import time

import tiktoken

R50K = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"""
    r"""\s+(?!\S)|\s"""
)


def load_tiktoken(path):
    with open(path, "rb") as file:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file)}
    pattern = CL100K if "cl100k" in path else R50K
    return tiktoken.Encoding(os.path.basename(path), pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def run_prep(prep, tokenizer, text, threads):
    """MB per second of CPU time and of wall time, and the ids."""
    with tempfile.TemporaryDirectory() as out:
        command = [prep, "tokenize", "--tokenizer", tokenizer, "--out", out, "--docs", "none", "--version", "2"]
        command += ["--shard-tokens", "2000M", "--threads", str(threads), text]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        shard = open(os.path.join(out, "train_000000.bin"), "rb").read()
    wide = array.array("i", shard[:1024])[4] == 4
    ids = array.array("I" if wide else "H", shard[1024:])
    speed, cpu_speed = re.search(r", ([\d.]+) MB/s; ([\d.]+) MB per second of CPU", said).groups()
    return float(cpu_speed), float(speed), ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--prep", default="build/prep")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokenizer", default="../shared/data/tokenizers/r50k_base.tiktoken")
    args = parser.parse_args()
    encoding = load_tiktoken(args.tokenizer)
    print(f"{'text':28} {'MB':>6} {'tiktoken':>9} {'prep':>9} {'ratio':>6}   MB per second of one core")
    for path in args.texts:
        raw = open(path, "rb").read()
        text = raw.decode()
        encoding.encode_ordinary(text[:10000])
        theirs = ours = 0
        for _ in range(args.rounds):
            start = time.process_time()
            expected = encoding.encode_ordinary(text)
            theirs = max(theirs, len(raw) / 1e6 / (time.process_time() - start))
            cpu_speed, _, ids = run_prep(args.prep, args.tokenizer, path, 1)
            ours = max(ours, cpu_speed)
        same = "" if list(ids) == expected else "   THE IDS DIFFER"
        name = os.path.basename(path)[:28]
        print(f"{name:28} {len(raw) / 1e6:6.1f} {theirs:9.1f} {ours:9.1f} {ours / theirs:6.1f}{same}", flush=True)


if __name__ == "__main__":
    main()
