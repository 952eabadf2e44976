#!/usr/bin/env python3
"""Checks that every module includes only itself and modules of a lower level.

Usage: include_layers.py SOURCE_ROOT. Levels are those of docs/architecture.md.
Also checks that third-party headers stay inside the modules that own them, and that no headers
include each other in a circle.
"""
import pathlib
import re
import sys

LEVELS = {
    "base": 0, "comm": 1, "tensor": 1, "comm_mpi": 2, "io": 2, "kernels": 2, "text": 3, "kv": 3, "model": 4,
    "engine": 5, "server": 6,
    # What measures. Its levels are above the product's, so the product cannot include it.
    "research/calib": 6, "research/methods": 7, "research/bench": 8, "research/judge": 8, "research/sandbox": 8, "research/statistics": 8, "research/report": 8,
    "research/benchmarks": 9, "research/eval": 10, "research/compare": 11, "research/analysis": 11,
}
# header prefix -> folders (below the root) whose .cc files may include it; headers never may.
OWNERS = {
    "rapidjson/": ["src/pmkvq/io/"],
    "CLI/": ["apps/"],
    "histedit": ["apps/"],
    "pcre2": ["src/pmkvq/text/"],
    "utf8proc": ["src/pmkvq/text/"],
    "sentencepiece_": ["src/pmkvq/text/"],
    "cblas": ["src/pmkvq/kernels/gemm/"],
    "xxhash": ["src/pmkvq/io/"],
    "gmp": ["src/pmkvq/research/judge/"],
    "mpfr": ["src/pmkvq/research/judge/"],
    "mpc": ["src/pmkvq/research/judge/"],
    "boost/": ["src/pmkvq/server/http/"],
    "openssl/": ["src/pmkvq/server/"],
    "nanobind/": ["python/src/"],
    "mpi.h": ["src/pmkvq/comm_mpi/"],
}
# Only files of the CUDA backend include its headers.
CUDA_HEADERS = re.compile(r"cuda|cublas|cub/|mma\.h|pmkvq/tensor/device/cuda_runtime\.h|.*\.cuh$")
CUDA_FILES = re.compile(r".*(\.cu|\.cuh|_cuda\.cc|/cuda_runtime\.h)$")
# Headers that only .cc files of their folder include.
PRIVATE_HEADERS = {"src/pmkvq/server/http/connection.h", "src/pmkvq/server/http/socket_stream.h"}


def module_of(parts) -> str:
    """The module of the path pmkvq/PARTS: its first folder, or two below research/."""
    return "/".join(parts[:2]) if parts[0] == "research" else parts[0]


INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')


def circles(root) -> list[str]:
    """A message for every circle of includes among the headers below src/."""
    includes = {}
    for path in (root / "src").rglob("*.h"):
        found = (INCLUDE.match(line) for line in path.read_text().splitlines())
        includes[path.relative_to(root / "src").as_posix()] = [m.group(1) for m in found if m]
    errors, done = [], set()

    def visit(header, path):
        if header in path:
            errors.append("circle: " + " -> ".join([*path[path.index(header):], header]))
        elif header not in done:
            for included in includes.get(header, []):
                visit(included, [*path, header])
            done.add(header)

    for header in sorted(includes):
        visit(header, [])
    return errors


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    errors = []
    files = 0
    for path in sorted([*root.glob("src/**/*.h"), *root.glob("src/**/*.c*"), *root.glob("apps/**/*.*"),
                        *root.glob("python/src/*.*")]):
        if path.suffix not in (".h", ".cc", ".cu", ".cuh"):
            continue
        files += 1
        relative = path.relative_to(root).as_posix()
        module = module_of(path.relative_to(root / "src/pmkvq").parts) if relative.startswith("src/") else None
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            header = match.group(1)
            parts = header.split("/")
            included = module_of(parts[1:]) if parts[0] == "pmkvq" and len(parts) > 2 else None
            if module and included and included != module:
                if included not in LEVELS:
                    errors.append(f"{relative}:{number}: unknown module {included}")
                elif LEVELS[included] >= LEVELS[module]:
                    errors.append(f"{relative}:{number}: {module} (level {LEVELS[module]}) includes "
                                  f"{included} (level {LEVELS[included]})")
            if CUDA_HEADERS.match(header) and not CUDA_FILES.match(relative):
                errors.append(f"{relative}:{number}: {header} may be included only in files of the CUDA backend")
            for prefix, owners in OWNERS.items():
                if header.startswith(prefix) and (
                        path.suffix == ".h" and not relative.startswith(("apps/", "python/"))
                        and relative not in PRIVATE_HEADERS
                        or not any(relative.startswith(owner) for owner in owners)):
                    errors.append(f"{relative}:{number}: {header} may be included only in .cc files of "
                                  f"{', '.join(owners)}")
    errors += circles(root)
    print(f"{files} files checked, {len(errors)} violations")
    print("\n".join(errors))
    return 1 if errors or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
