"""Answers problems inside a KV budget, as one batch: generate.py [MODEL]"""
import sys

import pmkvq

model = sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m"
llm = pmkvq.LLM(model, kv="pm-kvq", plan=f"{model}/plan.json", kv_budget="4.75MiB")
problem = "Multiply {} by 58 with column sums of digit products. What is the product?"
conversations = [[{"role": "user", "content": problem.format(number)}] for number in (472, 315, 608)]
answers = llm.chat(conversations, pmkvq.SamplingParams(temperature=0))
for answer in answers:
    print(answer.text.strip().splitlines()[-1], f"[{answer.finish_reason}, {answer.kv.peak_bytes / 2**20:.2f} MiB]")
