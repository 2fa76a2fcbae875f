#!/usr/bin/env python3
"""Tokens per second of a training step in PyTorch: the peer of `make bench-cpu` and of scripts/gpu_check.sh.

A step is forward, backward, clip_grad_norm_ to 1, AdamW with decay on matrices, zero_grad(set_to_none); bf16 is autocast
over fp32 parameters. Prints one JSON line: {"peer", "version", "shape", "dtype", "threads", "setting", "tok_per_s"
(median), "list" (every step), "losses" (warm-up included)}.

  peer_pytorch.py --shape 124M-b4-t64                          one of the CPU shapes
  peer_pytorch.py --device cuda --arch "$(build/bench step --shape gpt2-1.5B --describe)" --dtype bf16 --compile

With --arch, weights and tokens are the initial ones of `bench step`: the losses must agree.

Runs on PyTorch 1.13 (Debian 12) or later. It tunes PyTorch for speed. On a CPU these made a difference, in this order
(--untuned disables the first two):
  * malloc: glibc returns every large activation to the kernel and faults it in again. glibc.malloc.hugetlb=1 (the
    script restarts itself with it) and thresholds above any tensor keep the pages: 1.3x to 1.6x in one comparison.
  * threads: OMP_NUM_THREADS and torch.set_num_threads; otherwise Debian's build multiplies with one thread. It needs
    the OpenMP build of OpenBLAS (package libopenblas0-openmp).
  * the optimizer: fused AdamW (CPUs: since 2.4) was 5 % (fp32) and 14 % (bf16) faster than foreach at B=4 T=64.
  * torch.compile, and explicit attention scores (--attention manual) instead of scaled_dot_product_attention, were
    within about 10 % of the default, on a machine too busy to decide: bench_cpu.sh tries all and takes the best.
On a GPU: scaled_dot_product_attention selects its flash kernels, the optimizer is fused, the vocabulary is padded, fp32
matmuls stay in fp32. A micro-batch that does not fit into memory is halved; "setting" reports it.
"""

import argparse
import contextlib
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
    parser.add_argument("--arch", help="output of `bench step --describe`, instead of --shape")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="warm-up steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizer", choices=["best", "foreach", "fused"], default="best")
    parser.add_argument("--attention", choices=["best", "manual"], default="best")
    parser.add_argument("--vocab", type=int, default=0, help="rows of the embedding (default: the shape's, padded on a GPU)")
    parser.add_argument("--batch-rows", type=int, default=0, help="of a micro-batch (default: the shape's)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; needs a C++ compiler")
    parser.add_argument("--compile-blocks", action="store_true", help="compile each block by itself: faster to compile for deep models")
    parser.add_argument("--untuned", action="store_true", help="do not tune malloc and OpenMP")
    parser.add_argument("--profile", action="store_true", help="print where the time goes to stderr")
    return parser.parse_args()


def tune_environment(threads):
    """malloc and OpenMP read their settings at process start: restart with them."""
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


def gpt2_arch(shape):
    layers, heads, channels, rows, length = SHAPES[shape]
    return {"shape": shape, "layers": layers, "channels": channels, "heads": heads, "kv_heads": heads,
            "head_size": channels // heads, "ffn": 4 * channels, "vocab": VOCAB, "padded_vocab": VOCAB,
            "positions": length, "norm": "layer", "norm_eps": 1e-5, "rope_theta": 0, "activation": "gelu",
            "norm_bias": True, "qkv_bias": True, "proj_bias": True, "mlp_bias": True, "init_std": 0.02,
            "batch_rows": rows, "seq_len": length, "batch_tokens": rows * length, "seed": None, "lr": 6e-4}


def main():
    args = parse_arguments()
    on_gpu = args.device == "cuda"
    if not args.untuned and not on_gpu:
        tune_environment(args.threads)
    import torch
    from torch import nn

    import peer_model

    if on_gpu and not torch.cuda.is_available():
        sys.exit("peer_pytorch.py: --device cuda: this PyTorch finds no GPU")
    torch.manual_seed(1)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    version = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
    if args.optimizer == "best":  # fused AdamW runs on CPUs since 2.4
        args.optimizer = "fused" if version >= (2, 4) else "foreach"
    if version < (2, 0) and (args.compile or args.compile_blocks or args.attention == "manual"):
        sys.exit(f"peer_pytorch.py: PyTorch {torch.__version__} has only manual attention and no compiler")
    arch = json.loads(args.arch) if args.arch else gpt2_arch(args.shape)
    length, step_tokens = arch["seq_len"], arch["batch_tokens"]
    fast_attention = args.attention == "best" and hasattr(nn.functional, "scaled_dot_product_attention")

    rows = args.vocab or arch["padded_vocab" if on_gpu else "vocab"]
    with torch.device(args.device) if version >= (2, 0) else contextlib.nullcontext():
        model = peer_model.Decoder(arch, rows, length, fast_attention)
    if arch["seed"] is None:
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        ids = torch.randint(0, arch["vocab"], (step_tokens // length, length + 1))
        tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    else:
        model.same_start(arch["seed"])
        stream = peer_model.make_tokens(arch, arch["seed"], step_tokens + 1, args.device)
        tokens, targets = stream[:-1].view(-1, length), stream[1:].view(-1, length)
    if args.compile_blocks:
        for block in model.blocks:
            block.compile()
        model.loss = torch.compile(model.loss)
    forward = torch.compile(model) if args.compile else model
    groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arch["lr"], betas=(0.9, 0.95), eps=1e-8, **{args.optimizer: True})

    def step(micro_rows):
        loss_sum = 0
        parts = len(tokens) // micro_rows
        for i in range(parts):
            part = slice(i * micro_rows, (i + 1) * micro_rows)
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
                loss = forward(tokens[part], targets[part]) / parts
            loss.backward()
            loss_sum = loss_sum + loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss_sum  # read later: no wait for the GPU

    micro_rows = args.batch_rows or arch["batch_rows"]
    losses, seconds = [], []
    while not losses:  # the first step shows whether the micro-batch fits; a step that fails has changed nothing
        try:
            losses = [float(step(micro_rows))]
        except RuntimeError as error:
            if "out of memory" not in str(error) or micro_rows == 1:
                raise
            micro_rows //= 2
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    losses += [float(step(micro_rows)) for _ in range(args.warmup - 1)]
    if on_gpu:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(args.steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            losses.append(step(micro_rows))
            mark.record()
        torch.cuda.synchronize()
        seconds = [marks[i].elapsed_time(marks[i + 1]) / 1e3 for i in range(args.steps)]
        losses = [float(loss) for loss in losses]
    else:
        for _ in range(args.steps):
            start = time.perf_counter()
            losses.append(float(step(micro_rows)))
            seconds.append(time.perf_counter() - start)
    if not losses[-1] < losses[0]:
        sys.exit(f"peer_pytorch.py: the loss went from {losses[0]} to {losses[-1]}: this is not training")
    if args.profile:
        from torch.profiler import profile
        with profile() as report:
            step(micro_rows)
        print(report.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)

    speeds = [step_tokens / s for s in seconds]
    setting = [args.optimizer, "sdpa" if fast_attention else "manual attention"]
    setting += ["compiled"] * args.compile + ["blocks compiled"] * args.compile_blocks + ["untuned"] * args.untuned
    if args.arch:
        setting.append(f"micro-batches of {micro_rows} rows")
    print(json.dumps({
        "peer": "pytorch", "version": torch.__version__, "shape": arch["shape"], "dtype": args.dtype,
        "threads": torch.get_num_threads(), "setting": ", ".join(setting),
        "tok_per_s": round(statistics.median(speeds), 1), "list": [round(s, 1) for s in speeds],
        "losses": [round(loss, 6) for loss in losses],
        **({"device_bytes": torch.cuda.max_memory_allocated()} if on_gpu else {}),
    }))


if __name__ == "__main__":
    main()
