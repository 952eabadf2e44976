#!/usr/bin/env python3
"""Checks that cmake/public_headers.txt is closed: entry headers, and exactly what they include.

Usage: public_headers.py SOURCE_ROOT. The file's first block lists the entry headers.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+"(pmkvq/[^"]+)"', re.MULTILINE)


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    blocks: list[list[str]] = []
    for line in (root / "cmake/public_headers.txt").read_text().splitlines():
        if line.startswith("#"):
            if not blocks or blocks[-1]:
                blocks.append([])
        else:
            blocks[-1].append(line)
    errors = []
    closure: set[str] = set()
    todo = list(blocks[0])
    while todo:
        header = todo.pop()
        if header in closure:
            continue
        closure.add(header)
        path = root / "src" / header
        if not path.exists():
            errors.append(f"{header}: no such header")
            continue
        todo += INCLUDE.findall(path.read_text())
    listed = [header for block in blocks for header in block]
    errors += [f"{header}: is included and not listed" for header in sorted(closure - set(listed))]
    errors += [f"{header}: is listed and not included" for header in sorted(set(listed) - closure)]
    errors += [f"{header}: an internal header" for header in listed
               if "/research/" in header or header.endswith(("_impl.h", "-inl.h", "/detail.h"))]
    print(f"{len(listed)} headers listed, {len(errors)} errors")
    print("\n".join(errors))
    return 1 if errors or not listed else 0


if __name__ == "__main__":
    sys.exit(main())
