#!/usr/bin/env python3
"""Makes tests/golden/tiny-gemma3: a random Gemma 3 (text) model and its logits.

The forward pass is written here in float64 from the description of the architecture: embedding times
sqrt(E), norms with weight 1 + w in front of and behind attention and MLP, norms of the heads of q and
k, RoPE with one table for blocks with a sliding window and another one for the rest, scores times
query_pre_attn_scalar ** -0.5, a gate of GELU in its tanh form, tied output head.

Usage: tools/make_gemma3_golden.py [FOLDER]       Needs numpy.
"""
import json
import pathlib
import struct
import sys

import numpy as np

TOKENS, WINDOW = 30, 5
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "float32",
}


def make_weights(rng):
    c = CONFIG
    e, f, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    h, hkv = c["num_attention_heads"], c["num_key_value_heads"]
    weights = {}

    def matrix(name, rows, cols):
        weights[name + ".weight"] = rng.normal(0, 1.2 / np.sqrt(cols), (rows, cols))

    def norm(name, size):
        weights[name + ".weight"] = rng.normal(0, 0.2, size)

    weights["model.embed_tokens.weight"] = rng.normal(0, 0.3, (c["vocab_size"], e))
    norm("model.norm", e)
    for i in range(c["num_hidden_layers"]):
        b = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm"):
            norm(b + name, e)
        matrix(b + "self_attn.q_proj", h * d, e)
        matrix(b + "self_attn.k_proj", hkv * d, e)
        matrix(b + "self_attn.v_proj", hkv * d, e)
        matrix(b + "self_attn.o_proj", e, h * d)
        norm(b + "self_attn.q_norm", d)
        norm(b + "self_attn.k_norm", d)
        matrix(b + "mlp.gate_proj", f, e)
        matrix(b + "mlp.up_proj", f, e)
        matrix(b + "mlp.down_proj", e, f)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def logits_of(stored, tokens):
    c = CONFIG
    weights = {name: value.astype(np.float64) for name, value in stored.items()}
    e, d = c["hidden_size"], c["head_dim"]
    h, hkv = c["num_attention_heads"], c["num_key_value_heads"]
    positions = np.arange(len(tokens))

    def norm(x, name):
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c["rms_norm_eps"])
        return x * scale * (1 + weights[name + ".weight"])

    def linear(x, name):
        return x @ weights[name + ".weight"].T

    def rotate(x, values):  # [T, heads, D]
        frequencies = values["rope_theta"] ** (-np.arange(0, d, 2) / d) / values.get("factor", 1.0)
        angles = positions[:, None, None] * frequencies
        low, high = x[..., : d // 2], x[..., d // 2:]
        return np.concatenate([low * np.cos(angles) - high * np.sin(angles),
                               high * np.cos(angles) + low * np.sin(angles)], axis=-1)

    x = weights["model.embed_tokens.weight"][tokens] * np.sqrt(e)
    for i, kind in enumerate(c["layer_types"]):
        b = f"model.layers.{i}."
        rope = c["rope_parameters"][kind]
        y = norm(x, b + "input_layernorm")
        q = rotate(norm(linear(y, b + "self_attn.q_proj").reshape(-1, h, d),
                        b + "self_attn.q_norm"), rope)
        k = rotate(norm(linear(y, b + "self_attn.k_proj").reshape(-1, hkv, d),
                        b + "self_attn.k_norm"), rope)
        v = linear(y, b + "self_attn.v_proj").reshape(-1, hkv, d)
        out = np.zeros_like(q)
        for head in range(h):
            g = head // (h // hkv)
            scores = q[:, head] @ k[:, g].T * c["query_pre_attn_scalar"] ** -0.5
            behind = positions[:, None] - positions[None, :]
            seen = behind >= 0
            if kind == "sliding_attention":
                seen &= behind < c["sliding_window"]
            scores = np.where(seen, scores, -np.inf)
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = p / p.sum(axis=-1, keepdims=True) @ v[:, g]
        y = linear(out.reshape(-1, h * d), b + "self_attn.o_proj")
        x = x + norm(y, b + "post_attention_layernorm")
        y = norm(x, b + "pre_feedforward_layernorm")
        gate = linear(y, b + "mlp.gate_proj")
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate ** 3)))
        y = linear(gate * linear(y, b + "mlp.up_proj"), b + "mlp.down_proj")
        x = x + norm(y, b + "post_feedforward_layernorm")
    return norm(x, "model.norm") @ weights["model.embed_tokens.weight"].T


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, value in sorted(tensors.items()):
        header[name] = {"dtype": "F32", "shape": list(value.shape),
                        "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/golden/tiny-gemma3"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    weights = make_weights(rng)
    tokens = rng.integers(3, CONFIG["vocab_size"], TOKENS)
    logits = logits_of(weights, tokens)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "logits.json").write_text(json.dumps(
        {"tokens": tokens.tolist(), "logits": [[float(f"{v:.9g}") for v in row] for row in logits]},
        separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
