#!/usr/bin/env python3
"""Writes tests/golden: tiny Hugging Face models with PyTorch's logits, losses, gradients and AdamW steps.

    pip install torch numpy safetensors transformers
    dev/reference/make_golden.py            write tests/golden/<model>/*
    dev/reference/make_golden.py --check    regenerate in memory and compare with the stored files

Run by hand; neither building nor testing needs it. tests/golden/README.md describes every tensor. transformers' models
compute in float64 throughout (the parts that always use fp32 - RMSNorm, rotary tables, softmax - are replaced, and the
result is compared with the original model); results are stored as float32.
"""

import argparse
import json
import os
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden")
B, T = 2, 19  # odd on purpose: no tile divides it
STEPS = 10
LR, BETAS, EPS, WEIGHT_DECAY, MAX_NORM = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
WINDOW = 5


def gpt2_tiny():
    return transformers.GPT2Config(
        vocab_size=61, n_positions=24, n_embd=24, n_layer=2, n_head=3, activation_function="gelu_new",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0)


def llama_tiny():
    return transformers.LlamaConfig(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=24, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2)


def qwen2_tiny():  # one layer: what it adds is biases on q, k, v together with rotation and grouped heads
    return transformers.Qwen2Config(
        vocab_size=59, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=24, rms_norm_eps=1e-6, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2)


def qwen3_tiny():  # head_dim is not hidden_size / heads, as in the small Qwen3 models
    return transformers.Qwen3Config(
        vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=24, rms_norm_eps=1e-6, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2)


# name: (config, class, seed, store the masked case's gradients, write config.json in the style of transformers 4)
MODELS = {
    "gpt2_tiny": (gpt2_tiny, transformers.GPT2LMHeadModel, 101, True, False),
    "llama_tiny": (llama_tiny, transformers.LlamaForCausalLM, 102, True, False),
    "qwen2_tiny": (qwen2_tiny, transformers.Qwen2ForCausalLM, 103, False, True),
    "qwen3_tiny": (qwen3_tiny, transformers.Qwen3ForCausalLM, 104, False, True),
}


def rms_norm_float64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_float64(theta, head_dim):
    inv_freq = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def forward(x, position_ids):
        angle = position_ids.double()[:, :, None] * inv_freq[None, None, :]
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    return forward


def make_float64(model):
    """Replaces the parts of transformers that use fp32 for any dtype of the model. (softmax: the sdpa attention.)"""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = rms_norm_float64.__get__(module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            config = module.config
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            module.forward = rotary_float64(config.rope_parameters["rope_theta"], head_dim)
    return model


def init_weights(model, random):
    """Larger than a training init, and nothing is 0 or 1, so that every gradient is tested."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                value = random.normal(0.0, 0.2, p.shape)
            elif name.endswith("bias"):
                value = random.normal(0.0, 0.1, p.shape)
            else:  # norm weights
                value = random.normal(1.0, 0.1, p.shape)
            p.copy_(torch.from_numpy(value.astype(np.float32)))


def allowed_mask(doc, prefix, window):
    """allowed(i,j) = same document and (j <= i or prefix_j) and (window == 0 or i - j < window): (B,1,T,T) bool."""
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    allowed = (doc[:, :, None] == doc[:, None, :]) & ((j <= i)[None] | (prefix[:, None, :] != 0))
    if window:
        allowed &= (i - j < window)[None]
    return allowed[:, None]


def run(model, case, positions=None):
    logits = model(input_ids=case["tokens"], attention_mask=allowed_mask(case["doc"], case["prefix"], case["window"]),
                   position_ids=case["positions"] if positions is None else positions, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits.reshape(B * T, -1), case["targets"].reshape(-1), reduction="none")
    weight = case["weight"].reshape(-1)
    return logits, (weight * nll).sum() / weight.sum()


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {"grad." + name: p.grad.clone() for name, p in model.named_parameters()}


def adamw_steps(model, case):
    decay = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": WEIGHT_DECAY},
                                   {"params": plain, "weight_decay": 0.0}], lr=LR, betas=BETAS, eps=EPS)
    losses, norms = [], []
    for _ in range(STEPS):
        _, loss = run(model, case)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.sqrt(sum(p.grad.pow(2).sum() for p in model.parameters()))
        scale = min(1.0, MAX_NORM / norm.item())  # exactly this; torch's clip_grad_norm_ adds 1e-6 to the norm
        for p in model.parameters():
            p.grad.mul_(scale)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    losses.append(run(model, case)[1].item())
    result = {"step10." + name: p.detach().clone() for name, p in model.named_parameters()}
    result["step_loss"] = torch.tensor(losses, dtype=torch.float64)
    result["step_grad_norm"] = torch.tensor(norms, dtype=torch.float64)
    return result


def check_against_untouched(name, model, case, logits):
    """The float64 replacements change only rounding."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = "eager"
    plain = type(model)(config).double().eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        other = plain(input_ids=case["tokens"], use_cache=False).logits
    error = ((other - logits).norm() / logits.norm()).item()
    print(f"{name}: logits compared with the original transformers model, relative difference {error:.1e}")
    assert error < 1e-5, "the float64 replacements changed the model"


def check_mask(model, case):
    """A logit row depends on exactly the tokens that the mask (through all layers) allows."""
    with torch.no_grad():
        base, _ = run(model, case)
        reach = allowed_mask(case["doc"], case["prefix"], case["window"])[:, 0]
        total = reach.clone()
        for _ in range(model.config.num_hidden_layers - 1):
            total = (total.int() @ reach.int()) > 0
        for j in range(T):
            moved = dict(case, tokens=case["tokens"].clone())
            moved["tokens"][:, j] = (moved["tokens"][:, j] + 7) % model.config.vocab_size
            changed = (run(model, moved)[0] - base).abs().amax(-1) > 0
            assert bool((changed == total[:, :, j]).all()), f"token {j} reached the wrong rows"


def build_cases(vocab, random):
    tokens = torch.from_numpy(random.integers(0, vocab, (B, T + 1)))
    base = {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:],
        "positions": torch.arange(T).expand(B, T),
        "doc": torch.zeros(B, T, dtype=torch.int64), "prefix": torch.zeros(B, T, dtype=torch.int64),
        "weight": torch.ones(B, T, dtype=torch.float64), "window": 0,
    }
    doc = torch.zeros(B, T, dtype=torch.int64)
    doc[0, 4:], doc[0, 5:], doc[0, 13:] = 1, 2, 3  # documents of 4, 1, 8 and 6 tokens
    doc[1, 11:] = 1                                # and of 11 and 8
    prefix = torch.zeros(B, T, dtype=torch.int64)
    prefix[0, 5:9] = 1    # the beginning of the third document
    prefix[1, 0:3] = 1    # the beginning of the first document only
    prefix[1, 14:16] = 1  # in the middle of the second: position 11 attends to 14 and 15 too
    weight = torch.from_numpy(random.choice([0.0, 0.5, 1.0, 2.0], (B, T), p=[0.3, 0.2, 0.3, 0.2]))
    weight[0, 3] = weight[0, 4] = 0.0  # includes a whole document (the one-token one) without weight
    return {
        "base": base,
        "docs": dict(base, doc=doc, window=WINDOW, weight=weight),
        "prefix": dict(base, doc=doc, prefix=prefix, weight=weight),
        "all": dict(base, doc=doc, prefix=prefix, weight=weight, window=WINDOW),
    }


def restart_positions(doc):
    positions = torch.zeros_like(doc)
    for t in range(1, T):
        positions[:, t] = torch.where(doc[:, t] == doc[:, t - 1], positions[:, t - 1] + 1, 0)
    return positions


def build(name):
    make_config, model_class, seed, masked_gradients, old_style = MODELS[name]
    random = np.random.default_rng(seed)
    config = make_config()
    config._attn_implementation = "sdpa"
    model = model_class(config).float().eval()
    init_weights(model, random)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(os.path.join(folder, "model.safetensors"))
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            saved_config = json.load(file)
    if old_style:  # most published directories were written by transformers 4
        saved_config["rope_theta"] = saved_config.pop("rope_parameters")["rope_theta"]
        saved_config["torch_dtype"] = saved_config.pop("dtype")
        saved_config.pop("layer_types", None)
    saved_config.pop("transformers_version")

    model = make_float64(model.double())
    cases = build_cases(config.vocab_size, random)
    base = cases["base"]
    logits, loss = run(model, base)
    check_against_untouched(name, model, base, logits.detach())
    golden = {"tokens": base["tokens"], "targets": base["targets"], "logits": logits, "loss": loss.reshape(1)}
    golden.update(gradients(model, loss))

    masked = {"tokens": base["tokens"], "targets": base["targets"], "doc": cases["all"]["doc"],
              "prefix": cases["all"]["prefix"], "weight": cases["all"]["weight"], "window": torch.tensor([WINDOW])}
    masked["all.allowed"] = allowed_mask(masked["doc"], masked["prefix"], WINDOW)[:, 0].long()
    for key in ("docs", "prefix", "all"):
        case = cases[key]
        check_mask(model, case)
        logits, loss = run(model, case)
        masked[key + ".logits"], masked[key + ".loss"] = logits, loss.reshape(1)
    if masked_gradients:
        masked.update({"all." + k: v for k, v in gradients(model, loss).items()})
    if name.startswith("gpt2"):
        positions = restart_positions(cases["docs"]["doc"])
        logits, loss = run(model, cases["docs"], positions)
        masked["restart.positions"], masked["restart.logits"] = positions, logits
        masked["restart.loss"] = loss.reshape(1)

    golden.update(adamw_steps(model, base))
    return saved_config, weights, to_numpy(golden), to_numpy(masked)


def to_numpy(tensors):
    result = {}
    for name, tensor in tensors.items():
        dtype = np.float32 if tensor.dtype.is_floating_point else np.int32
        result[name] = np.ascontiguousarray(tensor.detach().numpy().astype(dtype))
    return result


def write(name, config, weights, golden, masked):
    folder = os.path.join(ROOT, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_file(golden, os.path.join(folder, "golden.safetensors"))
    save_file(masked, os.path.join(folder, "masked.safetensors"))
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    losses = " ".join(f"{x:.4f}" for x in golden["step_loss"])
    norms = " ".join(f"{x:.3f}" for x in golden["step_grad_norm"])
    count = sum(w.size for w in weights.values())
    print(f"{name}: {count} parameters, losses {losses}, gradient norms {norms}")


def check(name, weights, golden, masked):
    """Same weights to the bit; results to 1e-6 of each tensor's norm (another torch may sum in another order)."""
    worst = 0.0
    for file, tensors in (("model", weights), ("golden", golden), ("masked", masked)):
        stored = load_file(os.path.join(ROOT, name, file + ".safetensors"))
        assert stored.keys() == tensors.keys(), f"{name}/{file}.safetensors has other tensors"
        for key, value in tensors.items():
            if value.dtype == np.int32 or file == "model":
                assert np.array_equal(stored[key], value), f"{name}/{file}: {key} differs"
            else:
                difference = float(np.linalg.norm((stored[key] - value).astype(np.float64)))
                worst = max(worst, difference / (float(np.linalg.norm(value.astype(np.float64))) + 1e-9))
                assert difference <= 1e-6 * np.linalg.norm(value) + 1e-9, f"{name}/{file}: {key} differs"
    print(f"{name}: equal to the stored files (largest relative difference {worst:.1e})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name in MODELS:
        config, weights, golden, masked = build(name)
        if args.check:
            check(name, weights, golden, masked)
        else:
            write(name, config, weights, golden, masked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
