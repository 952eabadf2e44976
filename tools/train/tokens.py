"""Text to token ids by a Qwen2-form tokenizer.json, without other packages: pieces are cached.

Only ASCII text is taken (the tasks have no other). Ids are those of the tokenizers package
(tests/tools/train_problems_test.py compares them where that package is installed).
"""
import json
import re
from itertools import pairwise

# Qwen2's Split pattern for ASCII text.
PIECES = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_TEXT = {" ": "\u0120", "\n": "\u010a", "\r": "\u010d", "\t": "\u0109"}


class Tokens:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        self.vocab = data["model"]["vocab"]
        pairs = (m.split(" ") if isinstance(m, str) else m for m in data["model"]["merges"])
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(pairs)}
        self.special = {t["content"]: t["id"] for t in data["added_tokens"]}
        self.split = re.compile("(" + "|".join(re.escape(s) for s in self.special) + ")")
        self.cache = {}
        self.words = {i: s for s, i in self.vocab.items()}
        self.words.update({i: s for s, i in self.special.items()})

    def piece(self, piece):
        """Ids of one piece: lowest rank first, as byte-pair encoding does."""
        parts = [BYTE_TEXT.get(c, c) for c in piece]
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, 1 << 30) for pair in pairwise(parts)]
            best = min(ranks)
            if best == 1 << 30:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.vocab[p] for p in parts]

    def plain(self, text):
        """Ids of text that has no special token."""
        cache = self.cache
        pieces = PIECES.findall(text)
        try:
            return [i for p in pieces for i in cache[p]]
        except KeyError:
            if not text.isascii():
                raise ValueError("[tokens] the text is not ASCII") from None
            for p in set(pieces) - cache.keys():
                cache[p] = self.piece(p)
            return [i for p in pieces for i in cache[p]]

    def encode(self, text):
        ids = []
        for part in self.split.split(text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self.plain(part)
        return ids

    def decode(self, ids):
        text = "".join(self.words[int(i)] for i in ids)
        for plain, shown in BYTE_TEXT.items():
            text = text.replace(shown, plain)
        return text
