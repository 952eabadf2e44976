#!/usr/bin/env python3
"""Checks file lengths: at most 600 lines per source file, 800 per test. Usage: file_sizes.py ROOT."""
import pathlib
import sys

LIMIT, TEST_LIMIT = 600, 800


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    errors = []
    files = 0
    for folder in ("src", "apps", "python", "tests", "bench", "tools", "scripts"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".h", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake"):
                continue
            files += 1
            lines = len(path.read_text().splitlines())
            limit = TEST_LIMIT if path.stem.endswith("_test") else LIMIT
            if lines > limit:
                errors.append(f"{path.relative_to(root)}: {lines} lines, at most {limit}")
    print(f"{files} files checked, {len(errors)} too long")
    print("\n".join(errors))
    return 1 if errors or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
