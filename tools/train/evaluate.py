#!/usr/bin/env python3
"""Accuracy of a trained checkpoint on fresh held-out problems: teacher-forced exact chains, and greedy decoding.

evaluate.py CHECKPOINT [--per-cell 20] [--seed 9] [--out FILE] [--device cuda]
"""
import argparse
import json
import os
import time
from itertools import pairwise

import data
import problems
import torch
import torch.nn.functional as F
from model import linear, mla_latent, mla_query, norm

HERE = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.normpath(os.path.join(HERE, "..", "..", "models", "longcot-10m"))
END = 544


def put(batch, device):
    """A batch on the device: the arguments of Decoder.loss but for the kernel."""
    lengths = batch.starts.tolist()
    longest = max(b - a for a, b in pairwise(lengths))

    def move(array):
        tensor = torch.from_numpy(array)
        if device == "cuda":  # From pinned memory, so that the host does not wait for the device.
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor

    ids, labels, positions = (move(a).long() for a in (batch.ids, batch.labels, batch.positions))
    starts = move(batch.starts)
    return ids, labels, positions, starts, lengths, longest


@torch.no_grad()
def exact_chains(model, attend, packs, device):
    """Share of held-out replies of which every token is the most likely one, by cell: {cell: [exact, number]}.

    The tokens before are those of the reference, so an exact reply is the greedy reply.
    """
    result = {}
    for batch, examples in packs:
        ids, labels, positions, starts, lengths, longest = put(batch, device)
        best = model.predict(ids, positions, starts, lengths, longest, attend)
        wrong = F.pad(((best != labels) & (labels >= 0)).long().cumsum(0), (1, 0))
        wrong = (wrong[starts[1:].long()] - wrong[starts[:-1].long()]).tolist()
        for example, count in zip(examples, wrong):
            cell = result.setdefault(example.cell, [0, 0])
            cell[0] += count == 0
            cell[1] += 1
    return result


class Decoding:
    """Greedy decoding of many sequences at once. The cache of a block: [B, T, width].

    Width: latent and rotated key part (DeepSeek-V3, attention in the absorbed form), or keys and values (Qwen2).
    """

    def __init__(self, model, device):
        self.model, self.c, self.device = model, model.config, device
        c = self.c
        self.width = 2 * c.kv_heads * c.head_dim if c.form == "qwen2" else c.latent + c.rope

    def prefill(self, examples, room):
        """Caches of the prompts, one by one, and each prompt's first reply token."""
        m, c = self.model, self.c
        size = len(examples)
        self.cache = torch.zeros(c.blocks, size, room, self.width, dtype=m.dtype, device=self.device)
        first = []
        for row, example in enumerate(examples):
            ids = torch.from_numpy(example.ids[: example.prompt]).to(self.device).long()
            n = len(ids)
            positions = torch.arange(n, device=self.device)
            cos, sin = m.cos[positions], m.sin[positions]
            x = F.embedding(ids, m.embedding).to(m.dtype)
            for index in range(c.blocks):
                p = m.block(index)
                q, k, v = m.before(x, p, cos, sin, *m.before_arguments())
                if c.form == "qwen2":
                    kept = torch.cat((k.flatten(1), v.flatten(1)), -1)
                else:
                    h = norm(x, p["input_layernorm"], c.eps)
                    latent, k_rope = mla_latent(h, p, cos, sin, c.latent, c.eps)
                    kept = torch.cat((latent, k_rope[:, 0]), -1)
                self.cache[index, row, :n] = kept
                groups = q.shape[1] // k.shape[1]
                x4, y4, z4 = (t.transpose(0, 1)[None] for t in (q, k, v))
                y4, z4 = y4.repeat_interleave(groups, 1), z4.repeat_interleave(groups, 1)
                o = F.scaled_dot_product_attention(x4, y4, z4, is_causal=True)[0].transpose(0, 1)
                x, _ = m.after(x, o, p, *m.after_arguments())
            first.append(linear(norm(x[-1:], m.norm, c.eps), m.embedding).argmax(-1))
        self.lengths = torch.tensor([e.prompt for e in examples], device=self.device)
        return torch.cat(first)

    def attend(self, index, x, p, cos, sin, rows, span):
        """Attention of one new token per sequence; the token's own entry is stored first. Returns [B, H, value]."""
        m, c = self.model, self.c
        cache = self.cache[index]
        hidden = torch.arange(span, device=self.device)[None, None] > self.lengths[:, None, None]
        if c.form == "qwen2":
            q, k, v = m.before(x, p, cos, sin, *m.before_arguments())
            cache[rows, self.lengths] = torch.cat((k.flatten(1), v.flatten(1)), -1)
            seen = cache[:, :span]
            keys, values = (t.unflatten(-1, (c.kv_heads, -1)).transpose(1, 2) for t in seen.chunk(2, -1))
            q = q.unflatten(1, (c.kv_heads, -1))  # [B, Hkv, H / Hkv, D]
            scores = (q @ keys.transpose(2, 3)).float().flatten(1, 2) * c.key_dim**-0.5
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(x.dtype)
            return (weights.unflatten(1, (c.kv_heads, -1)) @ values).flatten(1, 2)
        h = norm(x, p["input_layernorm"], c.eps)
        latent, k_rope = mla_latent(h, p, cos, sin, c.latent, c.eps)
        q_nope, q_rope = mla_query(h, p, cos, sin, c.heads, c.nope)
        cache[rows, self.lengths] = torch.cat((latent, k_rope[:, 0]), -1)
        both = p["kv_b_proj"].to(x.dtype).view(c.heads, c.nope + c.value, c.latent)
        query = torch.cat((torch.einsum("bhd,hdr->bhr", q_nope, both[:, : c.nope]), q_rope), -1)
        seen = cache[:, :span]
        scores = (query @ seen.transpose(1, 2)).float() * c.key_dim**-0.5
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(x.dtype)
        mixed = weights @ seen[..., : c.latent]
        return torch.einsum("bhr,hdr->bhd", mixed, both[:, c.nope :])

    def step(self, tokens, span):
        """Next tokens [B] after `tokens` [B] at places `lengths`."""
        m, c = self.model, self.c
        x = F.embedding(tokens, m.embedding).to(m.dtype)
        cos, sin = m.cos[self.lengths], m.sin[self.lengths]
        rows = torch.arange(len(tokens), device=self.device)
        for index in range(c.blocks):
            p = m.block(index)
            o = self.attend(index, x, p, cos, sin, rows, span)
            x, _ = m.after(x, o, p, *m.after_arguments())
        return linear(norm(x, m.norm, c.eps), m.embedding).argmax(-1)

    @torch.no_grad()
    def run(self, examples):
        """Reply tokens of each example, the end token included where there is one.

        At most reference length x 1.04 + 48 tokens each. Finished sequences leave the batch from time to time.
        """
        limits = [int((len(e.ids) - e.prompt) * 1.04) + 48 for e in examples]
        room = min(self.c.max_positions, max(e.prompt + n for e, n in zip(examples, limits)))
        replies = [[] for _ in examples]
        alive = list(range(len(examples)))
        tokens = self.prefill(examples, room)
        pending = []
        while alive:
            pending.append(tokens)
            done_before = len(replies[alive[0]])
            steps = len(pending)
            longest = int(max(examples[i].prompt for i in alive)) + done_before + steps
            if steps == 64 or longest >= room or any(done_before + steps >= limits[i] for i in alive):
                block = torch.stack(pending, 1).tolist()
                pending, stay = [], []
                for row, i in enumerate(alive):
                    cut = block[row]
                    replies[i] += cut[: cut.index(END) + 1] if END in cut else cut
                    if END not in cut and len(replies[i]) < limits[i] and examples[i].prompt + len(replies[i]) < room:
                        stay.append(row)
                if len(stay) < len(alive):
                    keep = torch.tensor(stay, device=self.device, dtype=torch.long)
                    self.cache, tokens = self.cache[:, keep], tokens[keep]
                    self.lengths = self.lengths[keep]
                    alive = [alive[row] for row in stay]
                    if not alive:
                        break
            tokens = self.step(tokens, min(room, -(-(longest + 1) // 256) * 256))
            self.lengths = self.lengths + 1
        return replies


def greedy(model, examples, device, tokens, batch=256, deadline=None, log=print):
    """Accuracy of the boxed answer by cell, longest last: {cell: [right, number]}. Stops at `deadline`."""
    result = {}
    order = sorted(examples, key=lambda e: len(e.ids))
    for at in range(0, len(order), batch):
        if deadline and time.monotonic() > deadline:
            log(f"greedy decoding: {len(order) - at} problems left out for time")
            break
        part = order[at : at + batch]
        for example, reply in zip(part, Decoding(model, device).run(part)):
            cell = result.setdefault(example.cell, [0, 0])
            text = tokens.decode(reply)
            cell[0] += f"The answer is \\boxed{{{example.answer}}}." in text and text.endswith("<|im_end|>")
            cell[1] += 1
        log(f"greedy decoding: {at + len(part)} of {len(order)} problems")
    return result


def named(result):
    """Cells by name, rates and numbers."""
    return {
        "{}-{}".format(*problems.CELLS[cell]): {"rate": right / number, "problems": number}
        for cell, (right, number) in sorted(result.items())
    }


def table(title, result):
    """A text table of rates: tasks down, levels across."""
    lines = [title]
    last = max(problems.CELLS[cell][1] for cell in result)
    by_name = {problems.CELLS[cell]: counts for cell, counts in result.items()}
    for task in problems.LEVELS:
        cells = [by_name.get((task, level)) for level in range(1, last + 1)]
        lines.append(f"  {task:10s}" + " ".join(f"{c[0] / c[1]:6.3f}" if c else "     -" for c in cells))
    right, number = (sum(c[i] for c in result.values()) for i in (0, 1))
    lines.append(f"  all {right} of {number}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Accuracy of a checkpoint on fresh held-out problems.")
    parser.add_argument("checkpoint", help="checkpoint.pt of train.py")
    parser.add_argument("--per-cell", type=int, default=20)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=300, help="no new greedy batch starts after this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="JSON file of the result")
    parser.add_argument("--max-level", type=int, default=problems.LAST_LEVEL)
    parser.add_argument("--skip-greedy", action="store_true")
    options = parser.parse_args()
    import attention
    import train

    model, state = train.load_model(options.checkpoint, options.device)
    c = model.config
    kernel = (c.heads, c.attention_kv_heads, c.key_dim, options.device, model.dtype)
    attend = attention.choose(*kernel, lambda text: print(text, flush=True))
    cells = train.RECIPES[state["name"]].cells if "name" in state else problems.SHORT_CELLS
    cells = [i for i, (_, level) in enumerate(problems.CELLS[:cells]) if level <= options.max_level]
    examples = data.held_out(SHIPPED, options.seed, options.per_cell, cells, "evaluate", c.max_positions)
    packs = data.packs(examples, 131072 if options.device == "cuda" else max(len(e.ids) for e in examples))
    exact = exact_chains(model, attend, packs, options.device)
    print(table("exact chains, teacher-forced", exact), flush=True)
    result = {"seed": options.seed, "exact": named(exact)}
    if not options.skip_greedy:
        tokens = data.Tokens(os.path.join(SHIPPED, "tokenizer.json"))
        deadline = time.monotonic() + options.seconds
        answers = greedy(model, examples, options.device, tokens, deadline=deadline)
        print(table("answers, greedy", answers), flush=True)
        result["greedy"] = named(answers)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
