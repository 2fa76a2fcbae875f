#!/usr/bin/env python3
"""PyTorch's times for the cases of `bench op`: the same shapes, the same rotation over copies, the same JSON rows.

  build/bench op --device cuda --list --json cases.json
  dev/bench/peer_ops_pytorch.py --device cuda --cases cases.json --json pytorch.json
  build/bench op --device cuda --peer pytorch.json

Matmuls run on cuBLAS(Lt) or the CPU's BLAS, attention on scaled_dot_product_attention, the rest on PyTorch's own kernels;
with --compile, torch.compile fuses the operations without a single PyTorch kernel (SwiGLU, fused epilogues, cross-entropy
with its gradient). Cases without a PyTorch equivalent are skipped. One difference: PyTorch's dW has the dtype of its
inputs, ours is fp32, so PyTorch moves fewer bytes.
"""

import argparse
import json
import sys
import time

import torch
from torch.nn import functional as F

SAMPLES, MAX_SETS = 11, 64
GELU_FLAG, RESIDUAL, BIAS = 16, 8, 4  # of dev/cases/matmul.c


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True, help="JSON file of `bench op --list --json`")
    parser.add_argument("--json", required=True, help="output file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--compile", action="store_true", help="also the cases that torch.compile must fuse; takes minutes")
    parser.add_argument("--seconds", type=float, default=300, help="time limit; later cases are skipped")
    return parser.parse_args()


def gelu(x):
    return F.gelu(x, approximate="tanh")


def matmul_case(case, draw):
    M, N, K = case["dims"]
    if case["variant"] == "fp8":
        return None
    if case["op"] == "matmul forward":
        x, w = draw(M, K), draw(N, K)
        if case["variant"] == "plain":
            return [x, w], F.linear, False
        flags, bias = case["flags"], draw(N) if case["flags"] & BIAS else None
        if flags & GELU_FLAG:
            return [x, w, bias], lambda x, w, b: (lambda pre: (pre, gelu(pre)))(F.linear(x, w, b)), True
        if flags & RESIDUAL:
            return [x, w, bias, draw(M, N)], lambda x, w, b, r: F.linear(x, w, b) + r, True
        return [x, w, bias], F.linear, False
    if case["variant"] != "plain":
        return None
    if case["op"] == "matmul dX":  # dims: rows, in, out
        return [draw(M, K), draw(K, N)], torch.mm, False
    return [draw(K, M), draw(K, N)], lambda dout, x: torch.mm(dout.t(), x), False


def attention_case(case, draw):
    B, T, NH, NKV, HS = case["dims"]
    if case["flags"] != 0:  # a window
        return None
    def heads(count):
        return draw(B, T, count, HS).transpose(1, 2)
    grouped = {"enable_gqa": True} if NKV != NH else {}
    def forward(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
    q, k, v = heads(NH), heads(NKV), heads(NKV)
    if case["op"] == "attention forward":
        return [q, k, v], forward, False
    return backward_of(forward, [q, k, v])


def backward_of(forward, inputs):
    """A function that runs only the backward pass of `forward`; the graph is kept."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    out = forward(*leaves)
    dout, wanted = torch.randn_like(out), [x for x in leaves if x.requires_grad]
    return [out, dout, wanted], lambda o, d, w: torch.autograd.grad(o, w, d, retain_graph=True), False


def norm_case(case, draw):
    N, C = case["dims"]
    x, weight, bias = draw(N, C), draw(C), draw(C)
    if case["variant"] == "layer":
        forward, inputs = (lambda x, w, b: F.layer_norm(x, (C,), w, b)), [x, weight, bias]
    elif hasattr(F, "rms_norm"):
        forward, inputs = (lambda x, w: F.rms_norm(x, (C,), w)), [x, weight]
    else:
        return None
    return (inputs, forward, False) if case["op"] == "norm forward" else backward_of(forward, inputs)


def activation_case(case, draw):
    N, width = case["dims"]
    if case["variant"] == "GELU":
        return ([draw(N, width)], gelu, False) if "forward" in case["op"] else backward_of(gelu, [draw(N, width)])
    if case["variant"] == "SwiGLU" and "forward" in case["op"]:
        def swiglu(x):
            gate, up = x.chunk(2, dim=-1)
            return F.silu(gate) * up
        return [draw(N, 2 * width)], swiglu, True
    return None


def loss_case(case, draw):
    N, padded, vocab = case["dims"]
    if case["variant"] != "plain":
        return None
    targets = torch.randint(0, vocab, (N,), device=draw.device)
    def forward_backward(logits, targets):
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(logits.float(), targets, reduction="sum"), logits)
    return [draw(N, padded), targets], forward_backward, False


def embedding_case(case, draw):
    N, C, vocab = case["dims"]
    tokens = torch.randint(0, vocab, (N,), device=draw.device)
    if case["op"] == "embedding forward" and case["flags"] == 0:
        return [tokens, draw(vocab, C)], F.embedding, False
    return None


def adamw_case(case, draw):
    if case["dtype"] != "fp32" or case["variant"] != "plain":
        return None
    parameter = draw(case["dims"][0]).requires_grad_()
    parameter.grad = draw(case["dims"][0])
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.1, fused=True)
    return [optimizer], lambda o: o.step(), False


def elementwise_case(case, draw):
    N, C = case["dims"]
    if case["op"] == "add":
        return [draw(N, C), draw(N, C)], torch.add, False
    return [torch.randn(N, C, device=draw.device)], lambda x: x.to(torch.bfloat16), False


MAKERS = {"matmul forward": matmul_case, "matmul dX": matmul_case, "matmul dW": matmul_case,
          "attention forward": attention_case, "attention backward": attention_case, "norm forward": norm_case,
          "norm backward": norm_case, "activation forward": activation_case, "activation backward": activation_case,
          "cross-entropy": loss_case, "embedding forward": embedding_case, "AdamW": adamw_case, "add": elementwise_case,
          "cast": elementwise_case}


class Draw:
    """Random tensors of a case's dtype; counts their bytes, so that the copies together exceed any cache."""

    def __init__(self, case, device):
        self.device, self.dtype = device, {"fp32": torch.float32, "bf16": torch.bfloat16}[case["dtype"]]
        self.bytes = 0

    def __call__(self, *dims):
        tensor = torch.randn(*dims, device=self.device, dtype=self.dtype)
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def measure(call, sets, on_gpu):
    def run(count, at):
        if on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        start = time.perf_counter()
        for i in range(count):
            call(*sets[(at + i) % len(sets)])
        if not on_gpu:
            return time.perf_counter() - start
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    for _ in range(2):
        seconds = run(len(sets), 0) / len(sets)
    count = max(1, min(20000, int((4e-3 if on_gpu else 1e-4) / max(seconds, 1e-9))))
    times = sorted(run(count, i * count) / count for i in range(SAMPLES))
    return {"p10": times[1], "median": times[SAMPLES // 2], "p90": times[SAMPLES - 2], "samples": SAMPLES, "calls": count}


def run_case(case, rotation_bytes, args):
    draw = Draw(case, args.device)
    made = MAKERS[case["op"]](case, draw)
    if made is None or (made[2] and not args.compile):
        return None
    inputs, call, fuse = made
    copies = max(2, min(MAX_SETS, int(rotation_bytes / max(draw.bytes, 1))))
    sets = [inputs] + [MAKERS[case["op"]](case, draw)[0] for _ in range(copies - 1)]
    return measure(torch.compile(call) if fuse else call, sets, args.device == "cuda")


def main():
    args = parse_arguments()
    with open(args.cases, encoding="utf-8") as file:
        listed = json.load(file)
    started, rows, seen = time.monotonic(), [], {}
    for number, case in enumerate(listed["rows"]):
        key = {k: case[k] for k in ("op", "variant", "dtype", "label", "shape")}
        if case["op"] not in MAKERS:
            continue
        if time.monotonic() - started > args.seconds:
            print(f"peer_ops_pytorch.py: {len(listed['rows']) - number} cases skipped after {args.seconds:.0f} s",
                  file=sys.stderr)
            break
        # Our attention variants are one case in PyTorch.
        variant = "" if "attention" in case["op"] else case["variant"]
        same = (case["op"], variant, case["dtype"], case["shape"], case["flags"])
        if seen.get(same) is None:
            try:
                seen[same] = run_case(case, listed["rotation_bytes"], args)
            except RuntimeError as error:
                print(f"peer_ops_pytorch.py: {case['op']}, {case['label']}: {str(error).splitlines()[0]}",
                      file=sys.stderr)
                continue
            finally:
                if args.device == "cuda":
                    torch.cuda.empty_cache()
        if seen[same] is not None:
            rows.append({**key, "cold": seen[same]})
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    with open(args.json, "w", encoding="utf-8") as file:
        json.dump({"bench": "op", "program": "pytorch", "version": torch.__version__, "device": name, "rows": rows},
                  file, indent=0)
        file.write("\n")
    print(f"{len(rows)} of {len(listed['rows'])} cases in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
