"""Packed training batches, made by worker processes, and held-out sets. Needs numpy, not torch.

A batch is one row of `tokens_per_step` tokens: whole documents one after another, then padding. Its arrays:
`ids` int16 [N], `labels` int16 [N] (next token inside the reply, -1 elsewhere), `positions` int16 [N] (from 0 in each
document), `starts` int32 [documents + 1] (cumulative lengths; the padding is the last document).
"""
import multiprocessing
import os
import queue
import random
import time
from collections import namedtuple

import numpy as np
import problems
from tokens import Tokens

PAD = 542
MAX_DOCUMENT = 8192
SHORTEST = 200  # No document has fewer tokens: bounds the documents of a batch.
Batch = namedtuple("Batch", "ids labels positions starts")
Example = namedtuple("Example", "cell ids prompt answer")


def max_documents(tokens_per_step):
    return tokens_per_step // SHORTEST + 1


class Examples:
    """Tokenised problems of one split."""

    def __init__(self, tokenizer_folder, published_folder, seed, split, stream):
        self.tokens = Tokens(os.path.join(tokenizer_folder, "tokenizer.json"))
        self.draw = problems.Generator(seed, split, stream, problems.published(published_folder)).draw
        self.rng = random.Random(f"pmkvq-suffix/{seed}/{split}/{stream}")

    def example(self, cell, suffix=None):
        task, level = problems.CELLS[cell]
        text, trace, answer = self.draw(task, level)
        if suffix is None:
            suffix = self.rng.random() < 0.5
        prompt = self.tokens.encode(problems.prompt_text(text, suffix))
        reply = self.tokens.encode(problems.reply_text(trace, answer))
        return Example(cell, np.array(prompt + reply, dtype=np.int16), len(prompt), answer)


def pack(examples, size):
    """One batch of `size` tokens from examples that fit."""
    ids = np.full(size, PAD, dtype=np.int16)
    labels = np.full(size, -1, dtype=np.int16)
    positions = np.empty(size, dtype=np.int16)
    starts = [0]
    at = 0
    for example in examples:
        end = at + len(example.ids)
        ids[at:end] = example.ids
        labels[at + example.prompt - 1 : end - 1] = example.ids[example.prompt :]
        positions[at:end] = np.arange(end - at)
        starts.append(end)
        at = end
    while at < size:  # The padding, in documents no longer than the longest that a model takes.
        end = min(size, at + MAX_DOCUMENT)
        positions[at:end] = np.arange(end - at)
        starts.append(end)
        at = end
    return Batch(ids, labels, positions, np.array(starts, dtype=np.int32))


def fill(source, shares, room):
    """Short examples for the room that is left before a long one; none where no long cell is drawn.

    Rows of long documents would else end in padding, a tenth of all tokens.
    """
    chosen = []
    if not any(shares[problems.SHORT_CELLS :]) or not any(shares[: problems.SHORT_CELLS]):
        return chosen
    for _ in range(16):
        example = source.example(source.rng.choices(range(problems.SHORT_CELLS), shares[: problems.SHORT_CELLS])[0])
        if len(example.ids) <= room:
            chosen.append(example)
            room -= len(example.ids)
    return chosen


def _work(folder, seed, stream, size, weights, out):
    """Makes batches until the parent is gone. `weights` is shared: documents drawn by cell."""
    parent = os.getppid()
    source = Examples(folder, folder, seed, "train", stream)
    cells = range(len(problems.CELLS))
    held = None
    while os.getppid() == parent:
        shares = list(weights)
        chosen, used = [], 0
        for _ in range(max_documents(size)):
            example = held or source.example(source.rng.choices(cells, shares)[0])
            held = None
            if shares[example.cell] == 0 or len(example.ids) > size:
                continue  # Held over from a time with other shares, or too long for a small trial.
            if used + len(example.ids) > size:
                held = example
                chosen += fill(source, shares, size - used)
                break
            chosen.append(example)
            used += len(example.ids)
        if not chosen:
            continue
        batch = pack(chosen, size)
        while os.getppid() == parent:
            try:
                out.put(tuple(batch), timeout=2)
                break
            except queue.Full:
                pass


class Source:
    """Batches from workers. Made before CUDA starts: the workers are forked.

    Where the workers are slower than the trainer, earlier batches are read again, and counted.
    """

    def __init__(self, folder, seed, workers, size, backlog=64, keep=3000):
        context = multiprocessing.get_context("fork")
        self.weights = context.Array("d", len(problems.CELLS), lock=False)
        self.queue = context.Queue(backlog)
        self.kept, self.keep = [], keep
        self.rng = random.Random(seed)
        self.fresh = self.again = 0
        self.arguments = (folder, seed), (size, self.weights, self.queue)
        self.context, self.workers, self.processes = context, workers, []

    def start(self, weights, stream):
        """Starts the workers. `stream` is unlike in every start of one training, so that nothing is drawn twice."""
        self.set_weights(weights)
        (folder, seed), rest = self.arguments
        for worker in range(self.workers):
            arguments = (folder, seed, f"{stream}.{worker}", *rest)
            process = self.context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def set_weights(self, weights):
        self.weights[:] = list(weights)

    def forget(self):
        """Earlier batches are not read again: their lengths are of an earlier part of the curriculum."""
        self.kept.clear()

    def backlog(self):
        return self.queue.qsize()

    def next(self):
        waited = time.monotonic()
        while True:
            try:
                batch = Batch(*self.queue.get(timeout=0.02 if len(self.kept) > 50 else 1))
                break
            except queue.Empty:
                if len(self.kept) > 50:
                    self.again += 1
                    return self.rng.choice(self.kept)
                if not any(p.is_alive() for p in self.processes):
                    raise SystemExit("[train] all data workers have ended") from None
                if time.monotonic() - waited > 120:
                    raise SystemExit("[train] no batch came from the data workers for 120 s") from None
        self.fresh += 1
        if len(self.kept) < self.keep:
            self.kept.append(batch)
        else:
            self.kept[self.rng.randrange(self.keep)] = batch
        return batch

    def stop(self):
        for process in self.processes:
            process.terminate()


def held_out(folder, seed, per_cell, cells, stream="held-out", longest=MAX_DOCUMENT):
    """`per_cell` fresh held-out examples of each cell, without the prompt's suffix."""
    source = Examples(folder, folder, seed, "held-out", stream)
    made = [source.example(cell, suffix=False) for cell in cells for _ in range(per_cell)]
    return [e for e in made if len(e.ids) <= longest]


def packs(examples, size):
    """Batches that hold all `examples`, each with the list of its examples in order."""
    chosen, used, out = [], 0, []
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        if used + len(example.ids) > size or len(chosen) + 1 >= max_documents(size):
            out.append((pack(chosen, size), chosen))
            chosen, used = [], 0
        chosen.append(example)
        used += len(example.ids)
    if chosen:
        out.append((pack(chosen, size), chosen))
    return out
