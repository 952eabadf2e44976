"""transformers' generate with a packed cache in a budget: packed_cache.py [MODEL]"""
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pmkvq.hf import BudgetStop, PackedCache

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m")
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="pmkvq")

problem = (folder / "example.txt").read_text()
questions = [problem, "Multiply 472 by 58. What is the product?"]
texts = [
    tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    for text in questions
]
inputs = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")

cache = PackedCache(model, kv="pm-kvq", plan=folder / "plan.json", kv_budget="1.5MiB")
tokens = model.generate(
    **inputs, past_key_values=cache, stopping_criteria=[BudgetStop(cache)], do_sample=False, max_new_tokens=1500
)
for row in tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True):
    print(row[-80:])
stats = cache.stats()
print(f"{cache.num_tokens()} tokens in {stats.bytes} bytes, at most {stats.budget_bytes} a row; pages {stats.pages}")
