"""Writes a trained Decoder as a Hugging Face folder: BF16 safetensors in shards, index, config, tokenizer files.

`load` reads the weights of such a folder, to train on from them.
"""
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

SHARD_BYTES = 15_000_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def rope_scaling(c):
    if c.rope_factor == 1.0:
        return None
    return {
        "rope_type": "llama3",
        "factor": c.rope_factor,
        "low_freq_factor": c.low_factor,
        "high_freq_factor": c.high_factor,
        "original_max_position_embeddings": c.original_positions,
    }


def configuration(c):
    """config.json of a model's Config."""
    common = {
        "attention_dropout": 0.0,
        "bos_token_id": 542,
        "eos_token_id": 544,
        "pad_token_id": 542,
        "hidden_act": "silu",
        "hidden_size": c.hidden,
        "initializer_range": 0.02,
        "intermediate_size": c.mlp,
        "max_position_embeddings": c.max_positions,
        "num_attention_heads": c.heads,
        "num_hidden_layers": c.blocks,
        "num_key_value_heads": c.attention_kv_heads,
        "rms_norm_eps": c.eps,
        "rope_scaling": rope_scaling(c),
        "rope_theta": c.theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": c.vocab,
    }
    if c.form == "qwen2":
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "head_dim": c.head_dim,
            "max_window_layers": c.blocks,
            "sliding_window": None,
            "use_sliding_window": False,
            **common,
        }
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "kv_lora_rank": c.latent,
        "moe_intermediate_size": c.expert_mlp,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": c.experts,
        "n_shared_experts": c.shared,
        "norm_topk_prob": True,
        "num_experts_per_tok": c.per_token,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": None,
        "qk_nope_head_dim": c.nope,
        "qk_rope_head_dim": c.rope,
        "rope_interleave": True,
        "routed_scaling_factor": c.scaling,
        "scoring_func": "sigmoid",
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": c.value,
        **common,
    }


def tensors(model):
    """(name, tensor) of every weight, as published models name them."""
    c = model.config
    yield "model.embed_tokens.weight", model.embedding
    for index, p in enumerate(model.layers):
        at = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield at + name + ".weight", p[name]
        for name in ("q_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"):
            if name in p:
                yield f"{at}self_attn.{name}.weight", p[name]
        for name in ("q", "k", "v"):
            if f"{name}_bias" in p:
                yield f"{at}self_attn.{name}_proj.bias", p[f"{name}_bias"]
        mlp = {name: p[name] for name in ("gate_proj", "up_proj", "down_proj")}
        if not model.is_mixture(index):
            for name, weight in mlp.items():
                yield f"{at}mlp.{name}.weight", weight
            continue
        yield at + "mlp.gate.weight", p["router"]
        yield at + "mlp.gate.e_score_correction_bias", model.router_bias[index]
        width = c.expert_mlp
        parts = [(f"experts.{e}", e * width, width) for e in range(c.experts)]
        parts.append(("shared_experts", c.experts * width, c.shared * width))
        for part, start, size in parts:
            for name, weight in mlp.items():
                cut = weight[:, start : start + size] if name == "down_proj" else weight[start : start + size]
                yield f"{at}mlp.{part}.{name}.weight", cut
    yield "model.norm.weight", model.norm


@torch.no_grad()
def load(model, folder):
    """Sets the weights of a dense model to those of `folder`. Its shape must be the model's, positions and scaling aside."""
    with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    weights = {k: v for name in names for k, v in load_file(os.path.join(folder, name)).items()}
    for name, tensor in tensors(model):
        if name not in weights or weights[name].shape != tensor.shape:
            raise SystemExit(f"[train] {folder} has no {name} of shape {list(tensor.shape)}: start from a model of equal shape")
        tensor.copy_(weights.pop(name))
    if weights:
        raise SystemExit(f"[train] {folder} has {min(weights)}, which this model lacks: start from a model of equal shape")


def export(model, folder, tokenizer_folder):
    """Writes `folder`. The routing bias stays float32, as in published models; all else is BF16."""
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if name.startswith("model") and name.endswith((".safetensors", ".json")):
            os.remove(os.path.join(folder, name))
    shards, used = [{}], 0
    for name, tensor in tensors(model):
        dtype = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        tensor = tensor.detach().to("cpu", dtype).contiguous().clone()
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > SHARD_BYTES - 200_000:  # Room for the header.
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    index = {"metadata": {"total_size": 0}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, os.path.join(folder, file), metadata={"format": "pt"})
        os.chmod(os.path.join(folder, file), 0o644)
        index["metadata"]["total_size"] += sum(t.numel() * t.element_size() for t in shard.values())
        index["weight_map"].update(dict.fromkeys(shard, file))
    generation = {
        "bos_token_id": 542,
        "eos_token_id": [544, 542],
        "pad_token_id": 542,
        "do_sample": False,
        "max_new_tokens": model.config.max_positions // 2,
    }
    texts = {
        "model.safetensors.index.json": index,
        "config.json": configuration(model.config),
        "generation_config.json": generation,
    }
    for name, content in texts.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(os.path.join(tokenizer_folder, name), os.path.join(folder, name))
