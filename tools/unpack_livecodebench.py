#!/usr/bin/env python3
"""Unpacks the private tests of LiveCodeBench's .jsonl files, so that pmkvq reads them.

In those files `private_test_cases` is base64 of a zlib stream of a pickled string that holds JSON;
afterwards it is that JSON text. Rows that are unpacked already stay as they are. The unpickler
loads nothing but plain values: a pickle that names a class or function is refused.

Usage: unpack_livecodebench.py [--from YYYY-MM-DD] [--to YYYY-MM-DD] IN.jsonl... > OUT.jsonl
Keeps the problems whose contest date lies between --from and --to, both included.
"""
import argparse
import base64
import io
import json
import pickle
import sys
import zlib


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"found {module}.{name}, expected plain text only")


def unpack(text: str) -> str:
    """The tests as JSON text."""
    if text.lstrip()[:1] in ("", "["):
        return text
    packed = zlib.decompress(base64.b64decode(text, validate=True))
    tests = PlainUnpickler(io.BytesIO(packed)).load()
    if not isinstance(tests, str):
        tests = json.dumps(tests)
    if not isinstance(json.loads(tests), list):
        raise ValueError("found no list of tests")
    return tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="IN.jsonl")
    parser.add_argument("--from", dest="first", default="", metavar="YYYY-MM-DD")
    parser.add_argument("--to", dest="last", default="9999", metavar="YYYY-MM-DD")
    options = parser.parse_args()
    kept = 0
    for path in options.files:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not options.first <= str(row.get("contest_date", ""))[:10] <= options.last:
                        continue
                    row["private_test_cases"] = unpack(row.get("private_test_cases") or "")
                except (ValueError, TypeError, AttributeError, zlib.error,
                        pickle.UnpicklingError, EOFError, IndexError) as error:
                    print(f"[{path}:{number}] private_test_cases: {error}", file=sys.stderr)
                    return 1
                print(json.dumps(row, ensure_ascii=False))
                kept += 1
    print(f"{kept} problems", file=sys.stderr)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.exit(main())
