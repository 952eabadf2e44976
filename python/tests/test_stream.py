"""Events, and requests that nobody waits for any more."""
from __future__ import annotations

import gc
import json
import pathlib

import pytest
from conftest import GREEDY, LONG_PROBLEM, PLAN, PROBLEM, Program

import pmkvq
from pmkvq import LLM, FinishEvent, HalvingEvent, SamplingParams, TokenEvent


def test_events_make_up_the_answer(program: Program, model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    llm = LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="4.75MiB")
    messages = [{"role": "user", "content": LONG_PROBLEM}]
    events = list(llm.stream_chat(messages, GREEDY))
    (whole,) = llm.chat(messages, GREEDY)
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    halvings = [event for event in events if isinstance(event, HalvingEvent)]
    (finish,) = [event for event in events if isinstance(event, FinishEvent)]
    assert events[-1] is finish and len(events) == len(tokens) + len(halvings) + 1
    assert finish.completion.token_ids == whole.token_ids == [event.token_id for event in tokens]
    assert finish.completion.text == whole.text == "".join(event.text for event in tokens)
    assert all(event.logprob is None and event.top_logprobs == [] for event in tokens)
    assert {(event.from_bits, event.to_bits) for event in halvings} == {(16, 8), (8, 4), (4, 2)}
    assert all(event.pages > 0 and 0 <= event.layer < model.num_layers for event in halvings)
    path = tmp_path / "stats.jsonl"
    options = ("--kv", "pm-kvq", "--plan", str(PLAN), "--kv-budget", "4.75MiB", "--temperature", "0")
    program.run("--prompt", LONG_PROBLEM, "--stats", str(path), *options)
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["event"] == "halving"]
    assert [(event.layer, event.num_tokens, event.from_bits, event.to_bits, event.pages) for event in halvings] == [
        (row["block"], row["position"], row["from_bits"], row["to_bits"], row["k_pages"] + row["v_pages"])
        for row in rows
    ]


def test_logprobs_come_with_their_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=1)
    events = [event for event in llm.stream("12", params) if isinstance(event, TokenEvent)]
    (whole,) = llm.generate("12", params)
    assert [event.logprob for event in events] == [token.logprob for token in whole.logprobs]
    assert [event.top_logprobs for event in events] == [token.top for token in whole.logprobs]


@pytest.mark.parametrize("end", ["close", "drop", "collect"])
def test_a_stream_that_is_left_ends_its_request(llm: LLM, end: str) -> None:
    stream = llm.stream_chat([{"role": "user", "content": LONG_PROBLEM}], GREEDY)
    assert isinstance(next(stream), TokenEvent)
    assert llm.kv_stats().num_running == 1
    if end == "close":
        stream.close()  # type: ignore[attr-defined]
    elif end == "collect":
        circle: list[object] = [stream]
        circle.append(circle)
        del circle
    del stream
    gc.collect()
    assert llm.kv_stats().num_running == 0
    assert llm.generate("12", SamplingParams(temperature=0, max_tokens=3))[0].finish_reason


def test_a_stream_that_waits_goes_on_when_others_do(model: pmkvq.Model) -> None:
    llm = LLM(model, max_len=2048, max_sequences=1)
    messages = [{"role": "user", "content": PROBLEM}]
    (alone,) = llm.chat(messages, GREEDY)
    stream = llm.stream_chat(messages, GREEDY)
    first = next(stream)
    # There is one place: the stream's request has to end first.
    assert llm.chat(messages, GREEDY)[0].token_ids == alone.token_ids
    rest = list(stream)
    ids = [event.token_id for event in [first, *rest] if isinstance(event, TokenEvent)]
    assert ids == alone.token_ids and isinstance(rest[-1], FinishEvent)


def test_a_stream_keeps_its_llm(model: pmkvq.Model) -> None:
    llm = LLM(model, max_len=2048)
    stream = llm.stream("12", SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    next(stream)
    del llm
    gc.collect()
    events = list(stream)
    assert isinstance(events[-1], FinishEvent) and len(events[-1].completion.token_ids) == 20


def test_two_streams_in_turns(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected = [one.token_ids for one in llm.generate(["12", "345"], params)]
    streams = [llm.stream("12", params), llm.stream("345", params)]
    found: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=True):
        for ids, event in zip(found, pair, strict=True):
            if isinstance(event, TokenEvent):
                ids.append(event.token_id)
    assert found == expected
