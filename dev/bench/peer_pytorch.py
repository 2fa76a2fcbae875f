#!/usr/bin/env python3
"""Tokens per second of a GPT-2 training step in PyTorch on a CPU: the peer that `make bench-cpu` compares with.

A step is forward, backward, clip_grad_norm_ to 1, AdamW with decay on matrices, zero_grad(set_to_none). Prints one
JSON line: {"peer", "version", "shape", "dtype", "threads", "setting", "tok_per_s" (median), "list" (every step)}.

Runs on any PyTorch from 1.13 (Debian 12) on. It looks for PyTorch at its best, not as it comes; what made a
difference, in this order (--untuned switches the first two off):
  * malloc: glibc returns every large activation to the kernel and faults it in again. glibc.malloc.hugetlb=1 (the
    script starts itself anew with it) and thresholds above any tensor keep the pages: 1.3x to 1.6x in one comparison.
  * threads: OMP_NUM_THREADS and torch.set_num_threads; Debian's build otherwise multiplies with one thread, and
    needs OpenBLAS in its OpenMP flavour (package libopenblas0-openmp).
  * the optimizer: fused AdamW (CPUs: from 2.4 on) was 5 % (fp32) and 14 % (bf16) ahead of foreach at B=4 T=64.
  * torch.compile, and scores written out (--attention manual) instead of scaled_dot_product_attention, were within
    about 10 % of the default on a machine too busy to settle it: bench_cpu.sh tries all and takes the best.
"""

import argparse
import json
import os
import statistics
import sys
import time

SHAPES = {  # layers, heads, channels, batch, sequence
    "124M-b4-t64": (12, 12, 768, 4, 64),
    "124M-b4-t256": (12, 12, 768, 4, 256),
    "small-b8-t256": (6, 6, 384, 8, 256),
}
VOCAB = 50257


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="124M-b4-t64")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizer", choices=["best", "foreach", "fused"], default="best")
    parser.add_argument("--attention", choices=["best", "manual"], default="best")
    parser.add_argument("--vocab", type=int, default=VOCAB, help="rows of the embedding (nanoGPT pads to 50304)")
    parser.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler")
    parser.add_argument("--untuned", action="store_true", help="leave malloc and OpenMP as they are")
    parser.add_argument("--profile", action="store_true", help="print where the time goes to stderr")
    return parser.parse_args()


def tune_environment(threads):
    """malloc and OpenMP read their settings when the process starts: start it again with them."""
    if os.environ.get("PEER_TUNED"):
        return
    huge = "0xffffffffff"
    os.environ.update({
        "PEER_TUNED": "1",
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={huge}"
                          f":glibc.malloc.trim_threshold={huge}:glibc.malloc.top_pad=0x10000000",
    })
    os.execv(sys.executable, [sys.executable] + sys.argv)


def main():
    args = parse_arguments()
    if not args.untuned:
        tune_environment(args.threads)
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(1)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    version = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
    if args.optimizer == "best":  # fused AdamW runs on CPUs from 2.4 on
        args.optimizer = "fused" if version >= (2, 4) else "foreach"
    if version < (2, 0) and (args.compile or args.attention == "manual"):
        sys.exit(f"peer_pytorch.py: PyTorch {torch.__version__} has only manual attention and no compiler")
    layers, heads, channels, batch, length = SHAPES[args.shape]
    fast_attention = args.attention == "best" and hasattr(F, "scaled_dot_product_attention")

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.qkv, self.attention_out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
            self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
            self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

        def attention(self, x):
            B, T, C = x.shape
            q, k, v = (y.view(B, T, heads, C // heads).transpose(1, 2) for y in self.qkv(x).split(C, dim=2))
            if fast_attention:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                scores = (q * (C // heads) ** -0.5) @ k.transpose(-2, -1)
                y = F.softmax(scores.masked_fill(self.future, float("-inf")), dim=-1) @ v
            return self.attention_out(y.transpose(1, 2).reshape(B, T, C))

        def forward(self, x):
            x = x + self.attention(self.ln1(x))
            return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(args.vocab, channels), nn.Embedding(length, channels)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.ln = nn.LayerNorm(channels)
            for p in self.parameters():
                if p.dim() == 2:
                    nn.init.normal_(p, std=0.02)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.ln(x), self.wte.weight)  # tied head
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    model = Gpt()
    forward = torch.compile(model) if args.compile else model
    groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), eps=1e-8, **{args.optimizer: True})
    ids = torch.randint(0, VOCAB, (batch, length + 1))
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step():
        if args.dtype == "bf16":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = forward(tokens, targets)
        else:
            loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    losses = [step() for _ in range(args.warmup)]
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    if not losses[-1] < losses[0]:
        sys.exit(f"peer_pytorch.py: the loss went from {losses[0]} to {losses[-1]}: this is not training")
    if args.profile:
        from torch.profiler import profile
        with profile() as report:
            step()
        print(report.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)

    speeds = [batch * length / s for s in seconds]
    setting = [args.optimizer, "sdpa" if fast_attention else "manual attention"]
    setting += ["compiled"] * args.compile + ["untuned"] * args.untuned
    print(json.dumps({
        "peer": "pytorch", "version": torch.__version__, "shape": args.shape, "dtype": args.dtype,
        "threads": torch.get_num_threads(), "setting": ", ".join(setting),
        "tok_per_s": round(statistics.median(speeds), 1), "list": [round(s, 1) for s in speeds],
    }))


if __name__ == "__main__":
    main()
