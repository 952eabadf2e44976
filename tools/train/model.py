"""Two decoders with float32 master weights: Qwen2's form (longcot-10m, longcot-32k) and DeepSeek-V3's (longcot-mla).

Shapes: N packed tokens, C hidden, H heads, Hkv KV heads, D head width, R latent width, E routed experts.
A block is `before` (norm to q, k, v), attention, `after` (output projection, MLP). Both parts are functions of tensors
so that torch.compile sees one graph for all blocks; attention stays outside the graph.
All experts are computed as one wide MLP whose hidden columns are multiplied by the gate weights: exact, and fast for
a mixture as small as this.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    form: str  # "qwen2" or "deepseek_v3"
    hidden: int = 256
    blocks: int = 12
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 128  # Qwen2.
    mlp: int = 768  # Of every block (Qwen2), of the first block (DeepSeek-V3).
    vocab: int = 576
    theta: float = 10000.0
    eps: float = 1e-6
    max_positions: int = 8192
    # Llama 3's scaling of the rotation for texts longer than `original_positions`; 1: none.
    rope_factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_positions: int = 8192
    latent: int = 256
    rope: int = 32
    nope: int = 64
    value: int = 64
    experts: int = 8
    per_token: int = 4
    expert_mlp: int = 56
    shared: int = 2
    scaling: float = 2.5

    @property
    def key_dim(self):
        """Width of a query and a key."""
        return self.head_dim if self.form == "qwen2" else self.nope + self.rope

    @property
    def attention_kv_heads(self):
        return self.kv_heads if self.form == "qwen2" else self.heads

    @property
    def rope_dim(self):
        return self.head_dim if self.form == "qwen2" else self.rope


MODELS = {
    "longcot-10m": Config(form="qwen2"),
    "longcot-mla": Config(form="deepseek_v3", heads=4, mlp=640),
    "longcot-32k": Config(form="qwen2", max_positions=32768, rope_factor=8.0),
}


def frequencies(c):
    """Radians a position of every rotated pair [rope_dim / 2], float32.

    With `rope_factor`: pairs that turn more than `high_factor` times within the original positions keep their frequency,
    so that exact offsets stay what they were; those that turn less than `low_factor` times are slowed down by the factor,
    so that far positions have angles known from near ones; pairs between are blended.
    """
    f = c.theta ** (-torch.arange(0, c.rope_dim, 2).float() / c.rope_dim)
    if c.rope_factor == 1.0:
        return f
    turns = c.original_positions * f / (2 * math.pi)
    keep = ((turns - c.low_factor) / (c.high_factor - c.low_factor)).clamp(0.0, 1.0)
    return (1.0 - keep) * f / c.rope_factor + keep * f


def norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return y.to(x.dtype) * weight.to(x.dtype)


def linear(x, weight, bias=None):
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def rotate_halves(x, cos, sin):
    """Qwen2's rotation of x [N, H, D]: pairs (i, i + D/2). cos, sin [N, D/2] float32."""
    a, b = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def rotate_pairs(x, cos, sin):
    """DeepSeek's interleaved rotation of x [N, H, D]: pairs (2i, 2i + 1). Both members are stored as halves."""
    y = x.float().unflatten(-1, (-1, 2))
    a, b = y[..., 0], y[..., 1]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def gates(h, router, bias, per_token, scaling):
    """Gate weights [N, E] float32, zero for experts not chosen, and the tokens of each expert [E].

    Chosen by sigmoid score plus bias, weighted by the score alone, normed to `scaling` (DeepSeek-V3, one group).
    An expert's rank is counted by comparison; of equal scores the first wins.
    """
    scores = F.linear(h.float(), router.to(h.dtype).float()).sigmoid()
    choice = scores.detach() + bias
    count = choice.shape[-1]
    before = torch.ones(count, count, device=h.device, dtype=torch.bool).tril(-1)  # before[i, j]: j < i
    mine, other = choice[:, :, None], choice[:, None, :]
    rank = ((other > mine) | ((other == mine) & before)).sum(-1)
    chosen = (rank < per_token).float()
    picked = scores * chosen
    return picked / (picked.sum(-1, keepdim=True) + 1e-20) * scaling, chosen.sum(0)


def qwen2_before(x, p, cos, sin, heads, kv_heads, eps):
    h = norm(x, p["input_layernorm"], eps)
    n = h.shape[0]
    q = linear(h, p["q_proj"], p["q_bias"]).view(n, heads, -1)
    k = linear(h, p["k_proj"], p["k_bias"]).view(n, kv_heads, -1)
    v = linear(h, p["v_proj"], p["v_bias"]).view(n, kv_heads, -1)
    return rotate_halves(q, cos, sin), rotate_halves(k, cos, sin), v


def mla_latent(h, p, cos, sin, latent, eps):
    """Normed latent [N, R] and rotated key part [N, 1, rope] of normed input h."""
    both = linear(h, p["kv_a_proj_with_mqa"])
    return norm(both[:, :latent], p["kv_a_layernorm"], eps), rotate_pairs(both[:, None, latent:], cos, sin)


def mla_query(h, p, cos, sin, heads, nope):
    q = linear(h, p["q_proj"]).view(h.shape[0], heads, -1)
    return q[..., :nope], rotate_pairs(q[..., nope:], cos, sin)


def mla_before(x, p, cos, sin, heads, latent, nope, eps):
    h = norm(x, p["input_layernorm"], eps)
    n = h.shape[0]
    q_nope, q_rope = mla_query(h, p, cos, sin, heads, nope)
    c, k_rope = mla_latent(h, p, cos, sin, latent, eps)
    kv = linear(c, p["kv_b_proj"]).view(n, heads, -1)
    k = torch.cat((kv[..., :nope], k_rope.expand(-1, heads, -1)), -1)
    v = F.pad(kv[..., nope:], (0, k.shape[-1] - kv.shape[-1] + nope))  # Kernels want v as wide as k.
    return torch.cat((q_nope, q_rope), -1), k, v


def after(x, o, p, value, eps, per_token, scaling):
    """Output projection and MLP. o [N, H, >= value]. Returns x and the tokens of each expert (none: empty)."""
    x = x + linear(o[..., :value].reshape(x.shape[0], -1), p["o_proj"])
    h = norm(x, p["post_attention_layernorm"], eps)
    inner = F.silu(linear(h, p["gate_proj"])) * linear(h, p["up_proj"])
    load = x.new_zeros(0)
    if "router" in p:
        weights, load = gates(h, p["router"], p["router_bias"], per_token, scaling)
        experts = weights.shape[1]
        width = p["expert_width"] * experts
        wide = inner[:, :width].unflatten(-1, (experts, -1)) * weights.to(h.dtype)[..., None]
        inner = torch.cat((wide.flatten(1), inner[:, width:]), -1)  # Shared experts are the last columns.
    return x + linear(inner, p["down_proj"]), load


def loss_of(x, weight, embedding, labels, eps):
    """Sum of the cross entropy over labels >= 0, and their number."""
    logits = linear(norm(x, weight, eps), embedding).float()
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total, (labels >= 0).sum()


def argmax_of(x, weight, embedding, eps):
    return linear(norm(x, weight, eps), embedding).argmax(-1)


class Decoder(nn.Module):
    def __init__(self, config, dtype=torch.bfloat16, seed=0):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.before, self.after, self.loss_of, self.argmax_of = qwen2_before, after, loss_of, argmax_of
        if config.form != "qwen2":
            self.before = mla_before
        generator = torch.Generator().manual_seed(seed)
        c = config

        def matrix(rows, columns, scale=1.0):
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * 0.02 * scale)

        def ones(size):
            return nn.Parameter(torch.ones(size))

        out = 1 / math.sqrt(2 * c.blocks)
        self.embedding = matrix(c.vocab, c.hidden)
        self.norm = ones(c.hidden)
        self.layers = nn.ModuleList()
        for block in range(c.blocks):
            p = {"input_layernorm": ones(c.hidden), "post_attention_layernorm": ones(c.hidden)}
            if c.form == "qwen2":
                for name, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
                    p[f"{name}_proj"] = matrix(heads * c.head_dim, c.hidden)
                    p[f"{name}_bias"] = nn.Parameter(torch.zeros(heads * c.head_dim))
                p["o_proj"] = matrix(c.hidden, c.heads * c.head_dim, out)
            else:
                p["q_proj"] = matrix(c.heads * (c.nope + c.rope), c.hidden)
                p["kv_a_proj_with_mqa"] = matrix(c.latent + c.rope, c.hidden)
                p["kv_a_layernorm"] = ones(c.latent)
                p["kv_b_proj"] = matrix(c.heads * (c.nope + c.value), c.latent)
                p["o_proj"] = matrix(c.hidden, c.heads * c.value, out)
            width = c.mlp
            if self.is_mixture(block):
                width = (c.experts + c.shared) * c.expert_mlp
                p["router"] = matrix(c.experts, c.hidden)
            p["gate_proj"], p["up_proj"] = matrix(width, c.hidden), matrix(width, c.hidden)
            p["down_proj"] = matrix(c.hidden, width, out)
            self.layers.append(nn.ParameterDict(p))
        # Not trained by gradient: raised for experts with few tokens, lowered for those with many.
        self.register_buffer("router_bias", torch.zeros(c.blocks, c.experts))
        angles = torch.arange(c.max_positions).float()[:, None] * frequencies(c)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def is_mixture(self, block):
        return self.config.form != "qwen2" and block > 0

    def block(self, index):
        """The tensors of one block by name."""
        p = dict(self.layers[index].items())
        if self.is_mixture(index):
            p["router_bias"] = self.router_bias[index]
            p["expert_width"] = self.config.expert_mlp
        return p

    def before_arguments(self):
        c = self.config
        return (c.heads, c.kv_heads, c.eps) if c.form == "qwen2" else (c.heads, c.latent, c.nope, c.eps)

    def after_arguments(self):
        c = self.config
        return c.head_dim if c.form == "qwen2" else c.value, c.eps, c.per_token, c.scaling

    def trunk(self, ids, positions, starts, lengths, longest, attend):
        """Hidden states [N, C] before the last norm, and the tokens of each expert [blocks with a mixture, E]."""
        x = F.embedding(ids, self.embedding).to(self.dtype)
        cos, sin = self.cos[positions], self.sin[positions]
        loads = []
        for index in range(self.config.blocks):
            p = self.block(index)
            q, k, v = self.before(x, p, cos, sin, *self.before_arguments())
            o = attend(q, k, v, starts, lengths, longest)
            x, load = self.after(x, o, p, *self.after_arguments())
            if self.is_mixture(index):
                loads.append(load)
        return x, loads

    def loss(self, ids, labels, positions, starts, lengths, longest, attend):
        x, loads = self.trunk(ids, positions, starts, lengths, longest, attend)
        total, count = self.loss_of(x, self.norm, self.embedding, labels, self.config.eps)
        return total / count, loads

    def predict(self, ids, positions, starts, lengths, longest, attend):
        """Most likely next token at every place [N]."""
        x, _ = self.trunk(ids, positions, starts, lengths, longest, attend)
        return self.argmax_of(x, self.norm, self.embedding, self.config.eps)

    def logits(self, ids, positions, starts, lengths, longest, attend):
        x, _ = self.trunk(ids, positions, starts, lengths, longest, attend)
        return linear(norm(x, self.norm, self.config.eps), self.embedding).float()

    @torch.no_grad()
    def balance(self, loads, speed):
        """Nudges the routing bias by the load of the last step."""
        if loads:
            load = torch.stack(loads)
            self.router_bias[1:] += speed * torch.sign(load.mean(-1, keepdim=True) - load)

    def compile_parts(self):
        for name in ("before", "after", "loss_of", "argmax_of"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def plain_parts(self):
        """Back to code that is not compiled."""
        self.before = qwen2_before if self.config.form == "qwen2" else mla_before
        self.after, self.loss_of, self.argmax_of = after, loss_of, argmax_of
