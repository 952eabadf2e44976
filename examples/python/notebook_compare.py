"""Methods at equal bytes, as tables, frames and a picture. Cells for Jupyter or an editor: notebook_compare.py [MODEL [FOLDER]]"""
# %% A comparison: every method gets the same problems and seeds, and what one sequence may take.
import pathlib
import sys

import pmkvq
from pmkvq import plot

path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m")
folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build")
model = pmkvq.load_model(path)
found = pmkvq.compare(
    model, kv=["pm-kvq", "static-2", "rtn:bits=2"], kv_budget=["1.5MiB", "2MiB"], plan=path / "plan.json",
    max_len=1500, allow_partial=True, per_cell=1, max_level=1, on_begin=lambda kv, budget, *_: print("runs", kv, budget),
)  # fmt: skip
print(found)

# %% The same as a frame, for statistics of your own.
print(found.to_pandas()[["kv", "budget_bytes", "solved", "low", "high", "peak_bytes"]])

# %% Right answers against bytes.
plot.save(plot.accuracy(found), folder / "accuracy.svg")

# %% One answer in depth: what the cache did to the probabilities of a text that fp16 wrote.
messages = [{"role": "user", "content": "Multiply 472 by 58 with column sums of digit products. What is the product?"}]
(answer,) = pmkvq.LLM(model, max_len=1500).chat(messages, pmkvq.SamplingParams(temperature=0))
for kv in ("fp16", "static-4", "static-2"):
    score = pmkvq.LLM(model, kv=kv, max_len=1500).score(answer.prompt_token_ids, answer.token_ids)
    print(f"{kv}: log-probability {score.logprob:.3f}, still the likeliest: {score.is_greedy}, pages {score.kv.pages}")
