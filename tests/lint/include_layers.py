#!/usr/bin/env python3
"""Checks that every module includes only itself and modules of a lower level.

Usage: include_layers.py SOURCE_ROOT. Levels are those of docs/architecture.md.
Also checks that third-party headers stay inside the modules that own them.
"""
import pathlib
import re
import sys

LEVELS = {
    "base": 0, "tensor": 1, "io": 2, "kernels": 2, "text": 3, "kv": 3, "model": 4,
    "calib": 5, "methods": 6, "engine": 7, "eval": 8, "bench": 8,
}
# header prefix -> folders (below the root) whose .cc files may include it; headers never may.
OWNERS = {
    "rapidjson/": ["src/pmkvq/io/"],
    "CLI/": ["apps/"],
    "histedit": ["apps/"],
    "pcre2": ["src/pmkvq/text/"],
    "utf8proc": ["src/pmkvq/text/"],
    "cblas": ["src/pmkvq/kernels/gemm/"],
    "xxhash": ["src/pmkvq/io/"],
    "gmp": ["src/pmkvq/eval/"],
    "mpfr": ["src/pmkvq/eval/"],
    "mpc": ["src/pmkvq/eval/"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    errors = []
    files = 0
    for path in sorted([*root.glob("src/**/*.h"), *root.glob("src/**/*.cc"), *root.glob("apps/**/*.*")]):
        if path.suffix not in (".h", ".cc"):
            continue
        files += 1
        relative = path.relative_to(root).as_posix()
        module = path.relative_to(root / "src/pmkvq").parts[0] if relative.startswith("src/") else None
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            header = match.group(1)
            parts = header.split("/")
            if module and parts[0] == "pmkvq" and len(parts) > 2 and parts[1] != module:
                if parts[1] not in LEVELS:
                    errors.append(f"{relative}:{number}: unknown module {parts[1]}")
                elif LEVELS[parts[1]] >= LEVELS[module]:
                    errors.append(f"{relative}:{number}: {module} (level {LEVELS[module]}) includes "
                                  f"{parts[1]} (level {LEVELS[parts[1]]})")
            for prefix, owners in OWNERS.items():
                if header.startswith(prefix) and (
                        path.suffix == ".h" and not relative.startswith("apps/")
                        or not any(relative.startswith(owner) for owner in owners)):
                    errors.append(f"{relative}:{number}: {header} may be included only in .cc files of "
                                  f"{', '.join(owners)}")
    print(f"{files} files checked, {len(errors)} violations")
    print("\n".join(errors))
    return 1 if errors or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
