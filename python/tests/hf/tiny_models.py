"""Small models of random weights, and what the tests do with them."""
from __future__ import annotations

import inspect
import pathlib
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Cache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import pmkvq

# Of a model's forward; renamed in transformers 5.24.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
KINDS = ["llama", "qwen2", "qwen3"]
VOCAB = 96
NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 3, 4, 2, 32
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": NUM_HEADS * HEAD_DIM,
    "intermediate_size": 192,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def tiny(kind: str, attention: str = "pmkvq", **more: Any) -> Any:
    """Weights so large that attention is far from uniform, and logits are of size 1 to 10."""
    head_dim = int(more.pop("head_dim", HEAD_DIM))
    settings = {**_SHAPE, "hidden_size": NUM_HEADS * head_dim, **more}
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(head_dim=head_dim, **settings))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(head_dim=head_dim, **settings))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=head_dim, **settings))
    generator = torch.Generator().manual_seed(len(kind) + ord(kind[-1]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name else 0.0))
            else:
                parameter.copy_(noise * (1.0 if "embed" in name else 1.5 / parameter.shape[1] ** 0.5))
    model.set_attn_implementation(attention)
    model.eval()
    return model


def random_ids(count: int, seed: int = 1, batch: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, count), generator=torch.Generator().manual_seed(seed))


def logits_of(model: Any, cache: Cache | None, ids: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """Logits [B, T, V] of all tokens, which go through the model in pieces that end at `cuts`."""
    parts, begin = [], 0
    with torch.no_grad():
        for end in [*cuts, ids.shape[1]]:
            if end > begin:
                piece = ids[:, begin:end].to(model.device)
                parts.append(model(piece, **{CACHE: cache}, use_cache=cache is not None).logits)
            begin = max(begin, end)
    return torch.cat(parts, dim=1).cpu()


def one_by_one(prompt: int, count: int) -> list[int]:
    """Cuts: a prompt, then single tokens."""
    return list(range(prompt, count))


def in_engine(model: Any, folder: pathlib.Path, **options: Any) -> pmkvq.LLM:
    model.save_pretrained(folder)
    return pmkvq.LLM(folder, max_len=2048, max_sequences=2, **options)


def family(config: Any, attention: str) -> Any:
    """A small model of another architecture. Weights are so large that attention is far from uniform."""
    torch.manual_seed(1)
    models: Any = AutoModelForCausalLM
    model = models.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.eval()
    return model
