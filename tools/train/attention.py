"""Causal attention inside each document of a packed row. Kernels are tried in order, and each is verified first.

All take q [N, H, D], k and v [N, Hkv, D], `starts` int32 [documents + 1] on the device, the same as a list, and the
longest document's tokens; all return [N, H, D]. The scale is D ** -0.5.
"""
import inspect
from itertools import pairwise

import torch
import torch.nn.functional as F


def plain(q, k, v, starts, lengths, longest):
    """The formula, document by document in float32: the reference."""
    out = []
    groups = q.shape[1] // k.shape[1]
    for a, b in pairwise(lengths):
        x, y, z = (t[a:b].float().transpose(0, 1) for t in (q, k, v))
        y, z = y.repeat_interleave(groups, 0), z.repeat_interleave(groups, 0)
        scores = x @ y.transpose(1, 2) * q.shape[2] ** -0.5
        scores = scores.masked_fill(torch.ones(b - a, b - a, device=q.device).triu(1).bool(), float("-inf"))
        out.append((scores.softmax(-1) @ z).transpose(0, 1))
    return torch.cat(out).to(q.dtype)


def documents(q, k, v, starts, lengths, longest):
    """scaled_dot_product_attention, document by document."""
    out = []
    groups = q.shape[1] // k.shape[1]
    for a, b in pairwise(lengths):
        x, y, z = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        if groups > 1:
            y, z = y.repeat_interleave(groups, 1), z.repeat_interleave(groups, 1)
        out.append(F.scaled_dot_product_attention(x, y, z, is_causal=True)[0].transpose(0, 1))
    return torch.cat(out)


def make_varlen():
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    base = {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}

    def attend(q, k, v, starts, lengths, longest):
        more = {"enable_gqa": True} if "enable_gqa" in names and q.shape[1] != k.shape[1] else {}
        return varlen_attn(q, k, v, starts, starts, longest, longest, **base, **more)

    return attend


class Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, starts, longest):
        out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, longest, longest, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, out, lse, state, unused, starts)
        ctx.longest = longest
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse, state, unused, starts = ctx.saved_tensors
        n = ctx.longest
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grad.contiguous(), q, k, v, out, lse, starts, starts, n, n, 0.0, True, state, unused
        )
        return dq, dk, dv, None, None


def make_flash():
    def attend(q, k, v, starts, lengths, longest):
        return Flash.apply(q, k, v, starts, longest)

    return attend


def make_flex():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    last = {}

    def attend(q, k, v, starts, lengths, longest):
        n, _, d = q.shape
        if last.get("starts") is not starts:
            document = torch.zeros(n, dtype=torch.int32, device=q.device)
            document[starts[1:-1].long()] = 1
            document = document.cumsum(0)

            def mask(b, h, i, j):
                return (document[i] == document[j]) & (i >= j)

            last["starts"] = starts
            last["mask"] = create_block_mask(mask, None, None, n, n, device=q.device, _compile=True)
        width = 1 << (d - 1).bit_length()
        x, y, z = (F.pad(t, (0, width - d)).transpose(0, 1)[None] for t in (q, k, v))
        out = compiled(x, y, z, block_mask=last["mask"], scale=d**-0.5, enable_gqa=q.shape[1] != k.shape[1])
        return out[0].transpose(0, 1)[..., :d]

    return attend


def worst_difference(attend, heads, kv_heads, head_dim, device, dtype):
    """Largest relative difference to the formula, of the output and of the three gradients."""
    generator = torch.Generator().manual_seed(7)
    lengths = [0, 300, 301, 430, 687, 1500, 2048]
    starts = torch.tensor(lengths, dtype=torch.int32, device=device)

    def draw(h):
        return torch.randn(lengths[-1], h, head_dim, generator=generator).to(device, dtype)

    q, k, v, grad = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
    results = []
    for function in (plain, attend):
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        out = function(*inputs, starts, lengths, 1500 - 687)
        out.backward(grad)
        results.append([out.detach()] + [t.grad for t in inputs])
    worst = 0.0
    for want, got in zip(*results):
        if got.shape != want.shape or not torch.isfinite(got).all():
            return float("inf")
        worst = max(worst, ((got.float() - want.float()).abs().max() / want.float().abs().max()).item())
    return worst


def first_line(error):
    return f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0][:200]}"


def choose(heads, kv_heads, head_dim, device, dtype, log, only=None):
    """The first kernel that runs here and agrees with the formula, forward and backward. `only`: this one or none."""
    makers = [("documents", lambda: documents)]
    if device == "cuda":
        makers = [("varlen_attn", make_varlen), ("flash", make_flash), ("flex", make_flex)] + makers
    if only:
        makers = [maker for maker in makers if maker[0] == only]
    limit = 0.03 if dtype == torch.bfloat16 else 1e-4
    for name, make in makers:
        try:
            attend = make()
            worst = worst_difference(attend, heads, kv_heads, head_dim, device, dtype)
        except Exception as error:  # Whatever a missing kernel raises: the next one is tried.
            log(f"attention {name}: not usable here ({first_line(error)})")
            continue
        if worst <= limit:
            log(f"attention {name}: differs from the formula by {worst:.1e} at most; used")
            return attend
        log(f"attention {name}: differs from the formula by {worst:.1e}; not used")
    raise SystemExit("[train] no attention kernel agrees with the formula on this device")
