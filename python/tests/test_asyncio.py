"""Streams of several tasks."""
from __future__ import annotations

import asyncio

from conftest import LONG_PROBLEM

from pmkvq import LLM, FinishEvent, SamplingParams, TokenEvent

PARAMS = [SamplingParams(temperature=1, seed=seed, max_tokens=40, ignore_eos=True) for seed in range(3)]


async def ids_of(llm: LLM, params: SamplingParams) -> list[int]:
    events = [event async for event in llm.astream("12", params)]
    assert isinstance(events[-1], FinishEvent)
    ids = [event.token_id for event in events if isinstance(event, TokenEvent)]
    assert ids == events[-1].completion.token_ids
    return ids


def test_tasks_have_the_answers_of_generate(llm: LLM) -> None:
    async def main() -> list[list[int]]:
        return await asyncio.gather(*(ids_of(llm, params) for params in PARAMS))

    assert asyncio.run(main()) == [llm.generate("12", params)[0].token_ids for params in PARAMS]


def test_a_cancelled_task_ends_its_request(llm: LLM) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in llm.astream(LONG_PROBLEM):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(main())
    assert llm.kv_stats().num_running == 0
