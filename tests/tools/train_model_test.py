"""tools/train: the decoders equal transformers' and their own decoding; kernels, packing, schedule. Called with ROOT.

Needs torch, safetensors and transformers; without them the tests are skipped (77).
"""
import os
import sys
import tempfile
import types
import unittest

ROOT = sys.argv.pop(1)
sys.path.insert(0, os.path.join(ROOT, "tools", "train"))
try:
    import torch
    import transformers
    from safetensors.torch import load_file
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

import attention  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import export  # noqa: E402
import model as decoders  # noqa: E402
import problems  # noqa: E402
import train  # noqa: E402

MODEL = os.path.join(ROOT, "models", "longcot-10m")


def small(name, seed=3):
    """Three blocks in float32; weights are those of a BF16 file, and large enough that routing and norms matter."""
    config = decoders.Config(**{**vars(decoders.MODELS[name]), "blocks": 3})
    model = decoders.Decoder(config, torch.float32, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 2 + 0.1 * torch.randn(p.shape, generator=generator) * (p.dim() == 1)).bfloat16().float())
        model.router_bias.copy_(0.1 * torch.randn(model.router_bias.shape, generator=generator))
    return model


def logits_of(model, ids, attend=attention.plain):
    n = len(ids)
    starts = torch.tensor([0, n], dtype=torch.int32)
    return model.logits(torch.tensor(ids), torch.arange(n), starts, [0, n], n, attend)


def examples(count=1, seed=1):
    return data.held_out(MODEL, seed, count, [0, 6, 12, 17, 23], "test")


class Models(unittest.TestCase):
    def test_logits_are_those_of_transformers(self):
        ids = examples()[0].ids.tolist()
        for name, kind in (
            ("longcot-10m", transformers.Qwen2ForCausalLM),
            ("longcot-mla", transformers.DeepseekV3ForCausalLM),
            ("longcot-32k", transformers.Qwen2ForCausalLM),
        ):
            model = small(name)
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                export.export(model, folder, MODEL)
                reference = kind.from_pretrained(folder, dtype=torch.float32)
                want = reference(torch.tensor([ids])).logits[0]
            got = logits_of(model, ids).detach()
            self.assertGreater(want.abs().max().item(), 0.5)
            self.assertLess((got - want).abs().max().item(), 1e-4, name)

    def test_far_positions_are_those_of_transformers(self):
        """Scaled rotation: a text at the end of the 32,768 positions."""
        ids = examples()[0].ids[:64].tolist()
        positions = torch.arange(32768 - 64, 32768)
        model = small("longcot-32k")
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            export.export(model, folder, MODEL)
            reference = transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
            want = reference(torch.tensor([ids]), position_ids=positions[None]).logits[0]
            starts = torch.tensor([0, 64], dtype=torch.int32)
            got = model.logits(torch.tensor(ids), positions, starts, [0, 64], 64, attention.plain)
        self.assertGreater(want.abs().max().item(), 0.5)
        self.assertLess((got - want).abs().max().item(), 1e-4)

    def test_training_begins_with_the_weights_of_a_folder(self):
        model, other = small("longcot-10m"), small("longcot-32k", seed=4)
        with tempfile.TemporaryDirectory() as folder:
            export.export(model, folder, MODEL)
            export.load(other, folder)
            for (name, want), (_, got) in zip(export.tensors(model), export.tensors(other)):
                self.assertTrue(torch.equal(want, got), name)
            config = decoders.Config(**{**vars(decoders.MODELS["longcot-10m"]), "blocks": 2})
            for wrong in (small("longcot-mla"), decoders.Decoder(config)):
                with self.assertRaises(SystemExit):
                    export.load(wrong, folder)

    def test_scaling_keeps_near_offsets_and_slows_far_ones(self):
        plain = decoders.frequencies(decoders.MODELS["longcot-10m"])
        scaled = decoders.frequencies(decoders.MODELS["longcot-32k"])
        ratio = (plain / scaled).tolist()
        self.assertEqual(ratio[:40], [1.0] * 40)
        self.assertEqual(ratio[50:], [8.0] * 14)
        self.assertEqual(sorted(ratio), ratio)
        # The slowest pairs turn no further at 32,768 positions than they did at the 8,192 of the first model.
        self.assertLess(32768 * scaled[-1].item(), 8192 * plain[-1].item())

    def test_shards_hold_every_weight_once(self):
        model = decoders.Decoder(decoders.MODELS["longcot-mla"])
        with tempfile.TemporaryDirectory() as folder:
            export.export(model, folder, MODEL)
            files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
            self.assertEqual(len(files), 2)
            sizes = [os.path.getsize(os.path.join(folder, f)) for f in files]
            self.assertLessEqual(max(sizes), 15_000_000)
            self.assertLessEqual(sum(sizes), 20_000_000)
            weights = {k: v for f in files for k, v in load_file(os.path.join(folder, f)).items()}
        count = sum(v.numel() for v in weights.values())
        self.assertEqual(count, sum(p.numel() for p in model.parameters()) + 11 * 8)

    def test_greedy_decoding_follows_the_whole_forward_pass(self):
        """Absorbed attention over a cache against the plain form over the whole text."""
        for name in decoders.MODELS:
            model = small(name)
            some = [e._replace(ids=e.ids[: e.prompt + 1 + 5 * i]) for i, e in enumerate(examples())]
            replies = evaluate.Decoding(model, "cpu").run(some)
            for example, reply in zip(some, replies):
                self.assertTrue(reply[-1] == 544 or len(reply) >= 48)
                whole = example.ids[: example.prompt].tolist() + reply
                best = logits_of(model, whole).argmax(-1)[example.prompt - 1 : -1].tolist()
                self.assertEqual(reply, best)

    def test_documents_of_a_pack_do_not_see_each_other(self):
        some = examples()
        batch = data.pack(some, 4096)
        ids, labels, positions, starts, lengths, longest = evaluate.put(batch, "cpu")
        for name in decoders.MODELS:
            model = small(name)
            with torch.no_grad():
                packed = model.logits(ids, positions, starts, lengths, longest, attention.documents)
                for example, a in zip(some, lengths):
                    alone = logits_of(model, example.ids.tolist())
                    difference = (packed[a : a + len(example.ids)] - alone).abs().max().item()
                    self.assertLess(difference, 1e-4)
        for example, a in zip(some, lengths):
            end = a + len(example.ids) - 1
            self.assertEqual(labels[a + example.prompt - 1 : end].tolist(), example.ids[example.prompt :].tolist())
            self.assertEqual(labels[end].item(), -1)
            self.assertTrue((labels[a : a + example.prompt - 1] == -1).all())

    def test_gates_are_the_published_routing(self):
        generator = torch.Generator().manual_seed(1)
        h, router = torch.randn(50, 16, generator=generator), torch.randn(8, 16, generator=generator)
        bias = torch.randn(8, generator=generator)
        got, load = decoders.gates(h, router, bias, 4, 2.5)
        scores = (h @ router.T).sigmoid()
        index = (scores + bias).topk(4, -1).indices
        picked = scores.gather(1, index)
        want = torch.zeros(50, 8).scatter(1, index, picked / picked.sum(-1, keepdim=True) * 2.5)
        self.assertLess((got - want).abs().max().item(), 1e-6)
        self.assertEqual(load.sum().item(), 200)
        tied, _ = decoders.gates(torch.zeros(1, 16), router, torch.zeros(8), 4, 1.0)
        self.assertEqual(tied.tolist(), [[0.25] * 4 + [0.0] * 4])

    def test_kernels_that_do_not_agree_are_refused(self):
        def no_mask(q, k, v, starts, lengths, longest):
            return attention.plain(q, k, v, None, [0, q.shape[0]], q.shape[0])

        self.assertLess(attention.worst_difference(attention.documents, 4, 2, 32, "cpu", torch.float32), 1e-4)
        self.assertGreater(attention.worst_difference(no_mask, 4, 2, 32, "cpu", torch.float32), 0.1)

    def test_schedule_and_shares(self):
        options = types.SimpleNamespace(
            model="longcot-mla", learning_rate=2e-3, warm_up=150, max_level=10, tasks=",".join(problems.LEVELS)
        )
        self.assertAlmostEqual(train.rate_at(0.0, 0, options), 2e-3 / 150)
        self.assertAlmostEqual(train.rate_at(0.45, 500, options), 2e-3)
        self.assertAlmostEqual(train.rate_at(1.0, 500, options), 2e-5)
        self.assertEqual([train.top_level(p, options) for p in (0, 0.02, 0.1, 0.3, 1.0)], [1, 3, 5, 6, 6])
        errors = [0.0] * len(problems.CELLS)
        errors[1] = 0.2
        weights = train.cell_weights(0.1, errors, options)
        self.assertAlmostEqual(weights[0], 0.35)
        self.assertAlmostEqual(weights[1], 0.85)
        self.assertEqual(weights[5], 0.0)
        last = train.cell_weights(1.0, errors, options)
        self.assertEqual([w > 0 for w in last], [cell < problems.SHORT_CELLS for cell in range(len(errors))])
        options.model = "longcot-32k"
        self.assertEqual([train.top_level(p, options) for p in (0, 0.1, 0.2, 1.0)], [7, 8, 9, 10])
        self.assertTrue(all(w > 0 for w in train.cell_weights(1.0, errors, options)))
        drawn = [problems.CELLS[cell][1] for cell, w in enumerate(train.cell_weights(0.0, errors, options)) if w > 0]
        self.assertEqual(max(drawn), 7)

    def test_rows_of_long_documents_are_filled_with_short_ones(self):
        source = data.Examples(MODEL, MODEL, 7, "train", "test")
        shares = [1.0] * len(problems.CELLS)
        room = 12000
        chosen = data.fill(source, shares, room)
        self.assertLessEqual(sum(len(e.ids) for e in chosen), room)
        self.assertGreater(sum(len(e.ids) for e in chosen), room // 2)
        self.assertTrue(all(e.cell < problems.SHORT_CELLS for e in chosen))
        shares[problems.SHORT_CELLS :] = [0.0] * (len(shares) - problems.SHORT_CELLS)
        self.assertEqual(data.fill(source, shares, room), [])

    def test_bias_goes_to_experts_with_few_tokens(self):
        model = small("longcot-mla")
        before = model.router_bias.clone()
        model.balance([torch.tensor([9.0, 1.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0])] * 2, 1e-3)
        change = model.router_bias - before
        self.assertTrue((change[0] == 0).all())
        self.assertLess(change[1, 0].item(), 0)
        self.assertGreater(change[2, 1].item(), 0)


if __name__ == "__main__":
    unittest.main()
