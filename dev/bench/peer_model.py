"""The decoder of `bench step --describe` in PyTorch, with the engine's initial weights and tokens.

Both come from the engine's counter-based random numbers (llmc/base/rng.h), so the two programs start equal without exchanging a
file, and their losses can be compared step by step. Imported by peer_pytorch.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

STREAM_INIT, STREAM_TEST = 1, 5  # RngStream
MASK = 0xFFFFFFFF


def philox(seed, stream, index):
    """Philox4x32-10 at every element of `index` (int64): four tensors of 32-bit words."""
    c = [index & MASK, (index >> 32) & MASK, torch.full_like(index, stream & MASK), torch.full_like(index, stream >> 32)]
    key = [seed & MASK, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57  # modulo 2^64: the bits are right, the sign does not matter
        c = [((p1 >> 32) & MASK) ^ c[1] ^ key[0], p1 & MASK, ((p0 >> 32) & MASK) ^ c[3] ^ key[1], p0 & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return c


def tensor_seed(seed, name):
    """rng_u64(seed, RNG_STREAM_INIT, rng_hash(name))"""
    fnv = 0xCBF29CE484222325
    for byte in name.encode():
        fnv = (fnv ^ byte) * 0x100000001B3 % 2**64
    index = torch.tensor([fnv - 2**64 if fnv >= 2**63 else fnv])
    words = philox(seed, STREAM_INIT, index)
    return int(words[1]) << 32 | int(words[0])


@torch.no_grad()
def fill_normal(out, seed, std):
    """Box-Muller over pairs of elements, as in llmc/model/params.c."""
    flat, chunk = out.view(-1), 1 << 23
    for first in range(0, flat.numel(), 2 * chunk):
        part = flat[first:first + 2 * chunk]
        pairs = torch.arange(first // 2, (first + part.numel() + 1) // 2, device=out.device)
        w = philox(seed, STREAM_INIT, pairs)
        u = (((w[1] << 32 | w[0]) >> 11) & (2**53 - 1)).double().add_(0.5).mul_(2.0**-53)
        v = (((w[3] << 32 | w[2]) >> 11) & (2**53 - 1)).double().mul_(2.0**-53 * 2 * math.pi)
        radius = u.log_().mul_(-2).sqrt_().mul_(std)
        part.copy_(torch.stack((radius * v.cos(), radius * v.sin()), dim=1).view(-1)[:part.numel()])


def make_tokens(arch, seed, count, device):
    words = philox(seed, STREAM_TEST, torch.arange(count, device=device))
    return words[0] % arch["vocab"]


class Norm(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.eps, self.layer = arch["norm_eps"], arch["norm"] == "layer"
        self.weight = nn.Parameter(torch.ones(arch["channels"]))
        self.bias = nn.Parameter(torch.zeros(arch["channels"])) if arch["norm_bias"] else None

    def forward(self, x):
        if self.layer:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        if hasattr(F, "rms_norm"):
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps).to(x.dtype) * self.weight


class Block(nn.Module):
    def __init__(self, arch, fast_attention):
        super().__init__()
        self.arch, self.fast_attention = arch, fast_attention
        C, NH, NKV, HS, ffn = (arch[key] for key in ("channels", "heads", "kv_heads", "head_size", "ffn"))
        self.norm1, self.norm2 = Norm(arch), Norm(arch)
        self.qkv = nn.Linear(C, (NH + 2 * NKV) * HS, bias=arch["qkv_bias"])
        self.attention_out = nn.Linear(NH * HS, C, bias=arch["proj_bias"])
        self.gated = arch["activation"] == "swiglu"
        self.up = nn.Linear(C, (2 if self.gated else 1) * ffn, bias=arch["mlp_bias"])
        self.down = nn.Linear(ffn, C, bias=arch["mlp_bias"])

    def attention(self, x, cos, sin, future):
        B, T, _ = x.shape
        NH, NKV, HS = self.arch["heads"], self.arch["kv_heads"], self.arch["head_size"]
        q, k, v = self.qkv(x).split((NH * HS, NKV * HS, NKV * HS), dim=2)
        q, k, v = (y.view(B, T, -1, HS).transpose(1, 2) for y in (q, k, v))
        if cos is not None:
            q, k = (torch.cat((y[..., :HS // 2] * cos - y[..., HS // 2:] * sin,
                               y[..., HS // 2:] * cos + y[..., :HS // 2] * sin), dim=-1).to(v.dtype) for y in (q, k))
        grouped = {}
        if NKV != NH:
            if self.fast_attention and torch.__version__ >= (2, 5):
                grouped = {"enable_gqa": True}
            else:
                k, v = (y.repeat_interleave(NH // NKV, dim=1) for y in (k, v))
        if self.fast_attention:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
        else:
            scores = (q * HS ** -0.5) @ k.transpose(-2, -1)
            y = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v
        return self.attention_out(y.transpose(1, 2).reshape(B, T, NH * HS))

    def forward(self, x, cos, sin, future):
        x = x + self.attention(self.norm1(x), cos, sin, future)
        y = self.up(self.norm2(x))
        if self.gated:
            gate, up = y.chunk(2, dim=-1)
            y = F.silu(gate) * up
        else:
            y = F.gelu(y, approximate="tanh")
        return x + self.down(y)


class Decoder(nn.Module):
    """rows: of the embedding. The softmax includes padding rows, as in nanoGPT; this changes a loss by 0.001."""

    def __init__(self, arch, rows, length, fast_attention):
        super().__init__()
        self.arch = arch
        self.wte = nn.Embedding(rows, arch["channels"])
        self.wpe = nn.Embedding(arch["positions"], arch["channels"]) if arch["rope_theta"] == 0 else None
        self.blocks = nn.ModuleList(Block(arch, fast_attention) for _ in range(arch["layers"]))
        self.norm = Norm(arch)
        self.register_buffer("future", None if fast_attention
                             else torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)
        cos = sin = None
        if arch["rope_theta"] > 0:
            half = arch["head_size"] // 2
            frequency = arch["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
            angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
            cos, sin = angle.cos().float(), angle.sin().float()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens, targets):
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.future)
        return self.loss(x, targets)

    def loss(self, x, targets):
        logits = F.linear(self.norm(x), self.wte.weight)  # tied head
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    @torch.no_grad()
    def same_start(self, seed):
        """Sets the engine's initial weights for this seed."""
        arch, std = self.arch, self.arch["init_std"]
        for parameter in self.parameters():
            if parameter.dim() == 1:
                continue
            parameter.zero_()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        fill_normal(self.wte.weight[:arch["vocab"]], tensor_seed(seed, "wte"), std)
        if self.wpe is not None:
            fill_normal(self.wpe.weight, tensor_seed(seed, "wpe"), std)
        residual = std / math.sqrt(2 * arch["layers"])
        for i, block in enumerate(self.blocks):
            for name, linear, deviation in (("attn.qkv", block.qkv, std), ("attn.proj", block.attention_out, residual),
                                            ("mlp.fc", block.up, std), ("mlp.proj", block.down, residual)):
                fill_normal(linear.weight, tensor_seed(seed, f"block.{i}.{name}.weight"), deviation)
