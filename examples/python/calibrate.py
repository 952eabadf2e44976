"""Makes a plan for a budget, and compares it with a static cache: calibrate.py [MODEL]"""
import pathlib
import sys

import pmkvq

path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m")
model = pmkvq.load_model(path)
plan = pmkvq.calibrate(
    model, path / "calibration.jsonl", memory_budget="4.75MiB", max_len=4096, n_samples=4, seq_len=256
)
print("final widths of keys:", plan.k_bits, "and values:", plan.v_bits)
for kv in ("pm-kvq", "static-2"):
    report = pmkvq.evaluate(model, kv=kv, plan=plan, max_len=4096, per_cell=1, max_level=2)
    low, high = report.summary.interval
    print(f"{kv}: {report.summary.num_correct} of {report.summary.num_responses} solved ({low:.2f} to {high:.2f})")
