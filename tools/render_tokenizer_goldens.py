#!/usr/bin/env python3
"""Random forms and added tokens of a SentencePiece tokenizer.json, and what the library `tokenizers`
makes of random texts and ids with them.

Usage: render_tokenizer_goldens.py > tests/golden/tokenizers/mistral-v1/forms.jsonl
Needs the Python package tokenizers (the goldens were made with 0.23.3). One object a line: the
fields of tokenizer.json that replace those of the file, and `cases` with `text` (absent: ids were
given), `ids`, `decoded` (special tokens left out) and `whole`.
"""
import json
import pathlib
import random
import sys

import tokenizers

FOLDER = pathlib.Path(__file__).parent.parent / "tests/golden/tokenizers/mistral-v1"
NUM_FORMS, NUM_TEXTS, NUM_IDS = 60, 5, 2
CONTENTS = ["<|im_start|>", "[INST]", "▁▁", "  ", "foo bar", "ing", " x", "é", "\n\n", "<tool>", "Hello", "你"]
WORDS = ["the", "of", " ", "  ", "Hello", "world", "izer\n\n", "\t", "▁", "▁▁", "<0x41>", "123", "½", "é", "你好",
         "мир", "😀", "def", " return", "x", "e\u0301"]
DECODER = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]


def metaspace(scheme: str, split: bool) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def form(rng, base: dict) -> dict:
    """The fields normalizer, pre_tokenizer and decoder of one form."""
    scheme = rng.choice(["first", "always", "never"])
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    fields = {"normalizer": None, "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": [*DECODER, strip]}}
    kind = rng.choice(["legacy", "metaspace", "metaspace", "digits", "gemma"])
    if kind == "legacy":
        fields["normalizer"] = base["normalizer"]
    elif kind == "metaspace":
        fields["pre_tokenizer"] = metaspace(scheme, rng.random() < 0.3)
    elif kind == "digits":
        digits = {"type": "Digits", "individual_digits": rng.random() < 0.5}
        fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, metaspace(scheme, rng.random() < 0.5)]}
    else:
        fields["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        fields["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                   "invert": False}
        fields["decoder"] = {"type": "Sequence", "decoders": DECODER}
    return fields


def added_tokens(rng, base: dict) -> list:
    tokens = [dict(token, normalized=rng.random() < 0.3) for token in base["added_tokens"]]
    next_id = len(base["model"]["vocab"])
    for content in rng.sample(CONTENTS, rng.randint(0, 5)):
        if content == "  " and any(token["content"] == "▁▁" for token in tokens):
            continue  # The same token where both are normalised.
        known = base["model"]["vocab"].get(content)
        spaces = content.strip() != content  # The library overlaps tokens that strip spaces and begin with them.
        tokens.append({"id": next_id if known is None else known, "content": content,
                       "single_word": rng.random() < 0.3, "lstrip": not spaces and rng.random() < 0.3,
                       "rstrip": not spaces and rng.random() < 0.3, "normalized": rng.random() < 0.5,
                       "special": rng.random() < 0.5})
        next_id += known is None
    return tokens


def main() -> None:
    base = json.loads((FOLDER / "tokenizer.json").read_text())
    rng = random.Random(1)
    for _ in range(NUM_FORMS):
        fields = dict(form(rng, base), added_tokens=added_tokens(rng, base))
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**base, **fields}))
        contents = [token["content"] for token in fields["added_tokens"]]
        cases = []
        for _ in range(NUM_TEXTS):
            text = "".join(rng.choice(WORDS + contents) for _ in range(rng.randint(0, 14)))
            cases.append({"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids})
        for _ in range(NUM_IDS):
            cases.append({"ids": [rng.choice([rng.randrange(3, 259), rng.randrange(len(base["model"]["vocab"]))])
                                  for _ in range(rng.randint(0, 10))]})
        for case in cases:
            case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=True)
            case["whole"] = tokenizer.decode(case["ids"], skip_special_tokens=False)
        json.dump({**fields, "cases": cases}, sys.stdout, ensure_ascii=False, separators=(",", ":"))
        print()


if __name__ == "__main__":
    main()
