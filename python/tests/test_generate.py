"""Answers are those of `pmkvq run`: text, ids, bytes and pages."""
from __future__ import annotations

import pytest
from conftest import GREEDY, LONG_PROBLEM, MODEL, PLAN, PROBLEM, Program, as_program_says, without_times

import pmkvq
from pmkvq import LLM, SamplingParams


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_cache_steps_down_as_in_the_program(program: Program, model: pmkvq.Model) -> None:
    options = ("--kv", "pm-kvq", "--plan", str(PLAN), "--kv-budget", "4.75MiB")
    (expected,) = program.run("--prompt", LONG_PROBLEM, "--temperature", "0", *options)
    llm = LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="4.75MiB", max_sequences=2)
    (found,) = llm.chat(user(LONG_PROBLEM), GREEDY)
    assert as_program_says(found) == without_times(expected)
    assert found.kv.pages[2] > 0  # It did step down.


@pytest.mark.parametrize("kv", ["fp16", "static-4", "pm-kvq:bits=4", "kivi"])
def test_a_seed_draws_what_it_draws_in_the_program(program: Program, model: pmkvq.Model, kv: str) -> None:
    options = ("--seed", "7", "--temperature", "1.5", "--top-p", "0.9", "--top-k", "20", "--min-p", "0.01")
    (expected,) = program.run("--prompt", PROBLEM, "--kv", kv, "--max-tokens", "300", "--max-len", "2048", *options)
    params = SamplingParams(temperature=1.5, top_p=0.9, top_k=20, min_p=0.01, seed=7, max_tokens=300)
    (found,) = LLM(model, kv=kv, max_len=2048).chat(user(PROBLEM), params)
    assert as_program_says(found) == without_times(expected)


def test_defaults_are_those_of_the_program(program: Program, llm: LLM) -> None:
    (expected,) = program.run("--prompt", PROBLEM)
    (found,) = llm.chat(user(PROBLEM))
    assert found.token_ids == expected["output_ids"]
    assert found.text == expected["text"]


def test_plain_prompts_and_ids_have_no_template(program: Program, llm: LLM) -> None:
    text = "The product is"
    (of_text,) = program.run("--prompt", text, "--chat-template", "none", "--temperature", "0", "--max-tokens", "20")
    (of_ids,) = program.run("--prompt-ids", "5,6,7", "--temperature", "0", "--max-tokens", "20")
    params = SamplingParams(temperature=0, max_tokens=20)
    prompts: list[str | list[int]] = [text, [5, 6, 7]]
    found = llm.generate(prompts, params)
    assert [one.token_ids for one in found] == [of_text["output_ids"], of_ids["output_ids"]]
    assert [one.prompt_token_ids for one in found] == [of_text["prompt_ids"], of_ids["prompt_ids"]]
    assert llm.generate([5, 6, 7], params)[0].token_ids == of_ids["output_ids"]


def test_samples_of_one_prompt(program: Program, llm: LLM) -> None:
    options = ("--temperature", "20", "--top-p", "1", "--max-tokens", "40")
    expected = program.run("--prompt", PROBLEM, "--n-samples", "3", *options)
    ids = llm.tokenizer.encode_chat(user(PROBLEM))
    found = llm.sample(ids, 3, SamplingParams(temperature=20, top_p=1, max_tokens=40))
    assert [one.token_ids for one in found] == [one["output_ids"] for one in expected]
    assert len({tuple(one.token_ids) for one in found}) == 3
    assert llm.sample(ids, 0) == []


def test_converted_weights(program: Program) -> None:
    (expected,) = program.run("--prompt", PROBLEM, "--weights", "q8", "--temperature", "0")
    (found,) = LLM(MODEL, weights="q8", max_len=2048).chat(user(PROBLEM), GREEDY)
    assert found.token_ids == expected["output_ids"]


def test_answers_are_in_order_and_do_not_depend_on_the_batch(model: pmkvq.Model) -> None:
    prompts = [f"Multiply {a} by 58 with column sums of digit products. What is the product?" for a in range(300, 306)]
    params = [SamplingParams(temperature=1, seed=seed, max_tokens=30 + seed) for seed in range(len(prompts))]
    together = LLM(model, max_sequences=8, max_len=1024)
    apart = LLM(model, max_sequences=1, max_len=1024, chunk=512)
    found = together.chat([user(prompt) for prompt in prompts], params)
    for prompt, one, completion in zip(prompts, params, found, strict=True):
        (alone,) = apart.chat(user(prompt), one)
        assert alone.token_ids == completion.token_ids
        assert len(completion.token_ids) <= one.max_tokens


def test_why_an_answer_ends(llm: LLM, model: pmkvq.Model) -> None:
    (whole,) = llm.chat(user(PROBLEM), GREEDY)
    assert whole.finish_reason == "stop" and whole.stop_string == ""
    assert "27376" in whole.text
    (cut,) = llm.chat(user(PROBLEM), SamplingParams(temperature=0, max_tokens=5))
    assert cut.finish_reason == "length" and cut.token_ids == whole.token_ids[:5]
    word = whole.text[20:26]
    (stopped,) = llm.chat(user(PROBLEM), SamplingParams(temperature=0, stop=[word]))
    assert stopped.finish_reason == "stop" and stopped.stop_string == word
    assert stopped.text == whole.text[: whole.text.index(word)]
    (spent,) = LLM(model, kv="fp16", kv_budget="3MiB").chat(user(LONG_PROBLEM), GREEDY)
    assert spent.finish_reason == "kv_budget" and spent.kv.peak_bytes <= 3 * 2**20


def test_logprobs(program: Program, llm: LLM) -> None:
    options = ("--logprobs", "2", "--prompt-logprobs", "1", "--temperature", "0", "--max-tokens", "8")
    (expected,) = program.run("--prompt", PROBLEM, *options)
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=2, prompt_logprobs=1)
    (found,) = llm.chat(user(PROBLEM), params)
    assert [token.token_id for token in found.logprobs] == found.token_ids
    assert [token.logprob for token in found.logprobs] == [token["logprob"] for token in expected["logprobs"]]
    assert [len(token.top) for token in found.logprobs] == [2] * 8
    assert [token.logprob for token in found.prompt_logprobs] == [
        token["logprob"] for token in expected["prompt_logprobs"][1:]
    ]
    (without,) = llm.chat(user(PROBLEM), SamplingParams(temperature=0, max_tokens=8))
    assert without.logprobs == [] and without.token_ids == found.token_ids


def test_rules_of_logits(program: Program, llm: LLM) -> None:
    rules = ("--repetition-penalty", "1.2", "--frequency-penalty", "0.3", "--presence-penalty", "0.1")
    options = ("--logit-bias", "20=5", "--min-tokens", "30", "--max-tokens", "60", "--temperature", "1")
    (expected,) = program.run("--prompt", PROBLEM, *rules, *options)
    params = SamplingParams(
        temperature=1,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.1,
        logit_bias={20: 5},
        min_tokens=30,
        max_tokens=60,
    )
    assert llm.chat(user(PROBLEM), params)[0].token_ids == expected["output_ids"]


def test_nothing_to_do(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_kv_stats(model: pmkvq.Model) -> None:
    llm = LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="4.75MiB", max_sequences=2)
    stats = llm.kv_stats()
    assert stats.budget_bytes <= 4.75 * 2**20
    assert stats.arena_bytes >= 2 * stats.budget_bytes
    assert stats.num_running == stats.num_waiting == stats.decoded_tokens == 0
    llm.generate("12", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    assert llm.kv_stats().prompt_tokens == 2


def test_the_model_is_described(model: pmkvq.Model) -> None:
    assert model.path == str(MODEL) and model.weights == "as-stored" and model.num_layers > 0
    assert model.vocab_size > 0 and model.weight_bytes > 0 and model.max_positions >= 4096
