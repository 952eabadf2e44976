"""Which blocks need bits: sensitivities, widths, a plan. Cells for Jupyter or an editor: notebook_widths.py [MODEL [FOLDER]]"""
# %% A model, and a folder for pictures.
import pathlib
import sys

import pmkvq
from pmkvq import plot

path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m")
folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build")
model = pmkvq.load_model(path)

# %% How much the loss suffers where a block's keys or values are quantised. [4 widths, blocks] each.
measured = pmkvq.sensitivity(model, path / "calibration.jsonl", n_samples=2, seq_len=128)
print("keys suffer most in block", measured.k[pmkvq.WIDTHS.index(2)].argmax())
axes = plot.sensitivities(measured, bits=(4, 2))
plot.save(axes, folder / "sensitivities.svg")

# %% The best widths for several budgets: an exact integer program, which takes milliseconds.
for budget in ("4.5MiB", "6MiB", "8MiB"):
    found = pmkvq.allocate(model, measured, memory_budget=budget, max_len=4096, separate_kv=True)
    print(f"{budget}: K {found.k_bits}, V {found.v_bits}, {found.total_bytes} bytes, loss {found.objective:.3g}")

# %% A whole plan, with key scales, and the cache that it makes of one long answer.
plan = pmkvq.calibrate(model, path / "calibration.jsonl", memory_budget="4.75MiB", max_len=4096, n_samples=2, seq_len=128)
plot.save(plot.widths(plan), folder / "widths.svg")
llm = pmkvq.LLM(model, kv="pm-kvq", plan=plan, max_len=4096)
problem = [{"role": "user", "content": (path / "example.txt").read_text()}]
events = list(llm.stream_chat(problem, pmkvq.SamplingParams(temperature=0, max_tokens=1500)))
plot.save(plot.ladder(events), folder / "ladder.svg")
print("pages by width at the end:", [event.completion.kv.pages for event in events if isinstance(event, pmkvq.FinishEvent)])
