"""Log-probabilities of continuations, through the cache."""
from __future__ import annotations

import pytest
from conftest import LONG_PROBLEM, PLAN

import pmkvq
from pmkvq import LLM, SamplingParams


@pytest.mark.parametrize("kv", ["fp16", "static-2", "pm-kvq"])
def test_a_drawn_answer_has_the_logprobs_that_it_was_drawn_with(model: pmkvq.Model, kv: str) -> None:
    plan = PLAN if kv == "pm-kvq" else None
    llm = LLM(model, kv=kv, plan=plan, kv_budget="2MiB" if plan else None, max_len=1024)
    params = SamplingParams(temperature=20, top_p=1, max_tokens=400, logprobs=1, ignore_eos=True)
    (drawn,) = llm.chat([{"role": "user", "content": LONG_PROBLEM}], params)
    score = llm.score(drawn.prompt_token_ids, drawn.token_ids)
    assert score.logprobs == [token.logprob for token in drawn.logprobs]
    assert score.logprob == sum(score.logprobs) and not score.is_greedy
    assert score.kv.pages == drawn.kv.pages
    if kv != "fp16":
        assert score.kv.pages[16] < sum(score.kv.pages.values())


def test_greedy(llm: LLM) -> None:
    (drawn,) = llm.generate("12", SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    assert llm.score(drawn.prompt_token_ids, drawn.token_ids).is_greedy
    other = [(drawn.token_ids[0] + 1) % 10 + 20, *drawn.token_ids[1:]]
    assert not llm.score(drawn.prompt_token_ids, other).is_greedy


def test_choices_have_what_they_have_alone(model: pmkvq.Model) -> None:
    llm = LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="1.5MiB", max_len=1024)
    prompt = llm.tokenizer.encode(LONG_PROBLEM * 2)
    choices = [[5, 6, 7], [5] * 300, [8]]
    found = llm.score_choices(prompt, choices)
    assert llm.kv_stats().prompt_tokens == len(prompt), "computed once"
    assert [one.logprobs for one in found] == [llm.score(prompt, choice).logprobs for choice in choices]
    assert llm.score_choices(prompt, []) == []


def test_a_continuation_that_is_too_long(model: pmkvq.Model) -> None:
    with pytest.raises(pmkvq.InvalidInput, match="max_len"):
        LLM(model, max_len=20).score([5] * 10, [6] * 11)


def test_nothing_to_score(llm: LLM) -> None:
    with pytest.raises(pmkvq.InvalidInput):
        llm.score([5], [])
    with pytest.raises(pmkvq.InvalidInput):
        llm.score([5], [10**6])
