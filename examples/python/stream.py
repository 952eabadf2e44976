"""Shows an answer as it comes, and when the cache steps down: stream.py [MODEL]"""
import pathlib
import sys

import pmkvq

model = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m")
llm = pmkvq.LLM(model, kv="pm-kvq", plan=model / "plan.json", kv_budget="4.75MiB")
problem = (model / "example.txt").read_text()
halved = {16: 0, 8: 0, 4: 0}
for event in llm.stream_chat([{"role": "user", "content": problem}], pmkvq.SamplingParams(temperature=0)):
    if isinstance(event, pmkvq.TokenEvent):
        print(event.text, end="", flush=True)
    elif isinstance(event, pmkvq.HalvingEvent):
        halved[event.from_bits] += event.pages
    else:
        kv = event.completion.kv
        print(f"\n[{event.completion.finish_reason}] peak {kv.peak_bytes} of {kv.budget_bytes} bytes, pages {kv.pages}")
        print("pages halved, by width:", halved)
