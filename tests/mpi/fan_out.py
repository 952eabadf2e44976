"""What the tests of fan-out over ranks share: how ranks are started, and what their results are."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

SKIPPED = 77  # CTest's exit code for a test that could not run.
ENVIRONMENT = {
    **os.environ,
    # Containers of CI run as root and have fewer processors than ranks.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
TIMES = {"decode_seconds", "longest_pause_us"}


def skip(reason):
    print("skipped: " + reason)
    sys.exit(SKIPPED)


def need_ranks(program):
    """Ends the test as skipped where this build or machine starts no ranks."""
    if shutil.which("mpirun") is None:
        skip("there is no mpirun (Debian: openmpi-bin)")
    if not (pathlib.Path(program).parent / "libpmkvq_mpi.so").exists():
        skip("this build has no MPI plugin (PMKVQ_MPI)")


def run(command, **options):
    return subprocess.run([str(word) for word in command], env=ENVIRONMENT, text=True, capture_output=True,
                          timeout=600, **options)


def check(command, **options):
    result = run(command, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def ranks(number, *command):
    return ["mpirun", "-np", number, *command]


def eval_command(program, model, out, *more):
    """24 short sampled responses whose cache is halved on the way."""
    return [program, "eval", "--model", model, "--end", "12", "--n-responses", "2", "--batch", "3", "--temperature",
            "0.8", "--kv", "pm-kvq", "--kv-budget", "1536KiB", "--max-tokens", "60", "--max-len", "512", "--threads",
            "1", *(["--out", out] if out else []), *more]


def responses(folder):
    """Lines of responses.jsonl by problem and index, without times. Fails where one is there twice."""
    found = {}
    for line in (pathlib.Path(folder) / "responses.jsonl").read_text().splitlines():
        row = json.loads(line)
        key = row["id"], row["response"]
        assert key not in found, f"{key} is there twice in {folder}"
        found[key] = {name: value for name, value in row.items() if name not in TIMES}
    return found


def summary_without_times(text):
    """A summary of eval as a value that does not depend on who computed it and when."""
    summary = json.loads(text)
    for name in ("seconds", "ranks", "responses_per_second", "longest_pause_us"):
        summary.pop(name)
    summary["columns"].pop("decode_seconds")
    return summary
