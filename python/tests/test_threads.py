"""Threads, signals, forks."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest
from conftest import GREEDY, LONG_PROBLEM, PLAN, PROBLEM

import pmkvq
from pmkvq import LLM, SamplingParams

LONG = [{"role": "user", "content": LONG_PROBLEM}]


class Background(threading.Thread):
    """A thread whose failure fails the test."""

    def __init__(self, work: Callable[[], object]):
        super().__init__(daemon=True)
        self.work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.join()
        if self.error is not None:
            raise self.error


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def test_other_threads_run_during_a_step(llm: LLM) -> None:
    begun = threading.Event()
    ended: list[bool] = []

    def generate() -> None:
        begun.set()
        llm.chat(LONG, SamplingParams(temperature=0, max_tokens=1000))
        ended.append(True)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)  # Threads give up the GIL only where they release it.
    try:
        thread = Background(generate)
        begun.wait()
        ran_meanwhile = not ended
        thread.end()
    finally:
        sys.setswitchinterval(interval)
    assert ran_meanwhile


def test_requests_of_several_threads_are_one_batch(model: pmkvq.Model) -> None:
    llm = LLM(model, max_len=2048, max_sequences=4)
    params = [SamplingParams(temperature=1, seed=seed, max_tokens=200, ignore_eos=True) for seed in range(4)]
    alone = [llm.generate("12", one)[0].token_ids for one in params]
    steps = llm._engine.stats().num_steps
    found: dict[int, list[int]] = {}
    barrier = threading.Barrier(4)

    def generate(seed: int) -> None:
        barrier.wait()
        found[seed] = llm.generate("12", params[seed])[0].token_ids

    threads = [Background(lambda seed=seed: generate(seed)) for seed in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.end()
    assert [found[seed] for seed in range(4)] == alone
    assert llm._engine.stats().num_steps - steps < steps


def test_two_llms_at_once(model: pmkvq.Model) -> None:
    llms = [
        LLM(model, kv="static-2", max_len=2048),
        LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="4.75MiB", max_len=4096),
    ]
    params = SamplingParams(temperature=0, max_tokens=300)
    alone = [llm.chat(LONG, params)[0].token_ids for llm in llms]
    found: dict[int, list[int]] = {}

    def generate(index: int) -> None:
        found[index] = llms[index].chat(LONG, params)[0].token_ids

    threads = [Background(lambda index=index: generate(index)) for index in range(2)]  # type: ignore[misc]
    for thread in threads:
        thread.end()
    assert [found[0], found[1]] == alone


def interrupt_when(condition: Callable[[], bool]) -> Background:
    def send() -> None:
        wait_for(condition)
        os.kill(os.getpid(), signal.SIGINT)

    return Background(send)


def test_ctrl_c_ends_generate_with_what_there_is(llm: LLM) -> None:
    def is_the_first_alone() -> bool:
        stats = llm.kv_stats()
        return stats.decoded_tokens > 60 and stats.num_running == 1 and stats.num_waiting == 0

    thread = interrupt_when(is_the_first_alone)
    with pytest.raises(pmkvq.Cancelled) as caught:
        llm.chat([LONG, [{"role": "user", "content": PROBLEM}]], [GREEDY, SamplingParams(temperature=0, max_tokens=5)])
    thread.end()
    cut, done = caught.value.completions
    assert cut.finish_reason == "cancelled" and len(cut.token_ids) > 20 and cut.text
    assert done.finish_reason == "length" and len(done.token_ids) == 5
    assert isinstance(caught.value, KeyboardInterrupt)
    assert llm.kv_stats().num_running == 0
    assert llm.chat(LONG, SamplingParams(temperature=0, max_tokens=20))[0].token_ids == cut.token_ids[:20]


def test_ctrl_c_ends_a_stream(llm: LLM) -> None:
    thread = interrupt_when(lambda: llm.kv_stats().decoded_tokens > 20)
    with pytest.raises(KeyboardInterrupt):
        for _ in llm.stream_chat(LONG, GREEDY):
            pass
    thread.end()
    assert llm.kv_stats().num_running == 0


def test_a_handler_that_raises_ends_generate(llm: LLM) -> None:
    class Stop(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGINT, handler)
    try:
        thread = interrupt_when(lambda: llm.kv_stats().decoded_tokens > 20)
        with pytest.raises(Stop):
            llm.chat(LONG, GREEDY)
        thread.end()
    finally:
        signal.signal(signal.SIGINT, before)
    assert llm.kv_stats().num_running == 0


# Python 3.12 and later warn of what is tested here.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@forks
def test_a_forked_child_is_told(model: pmkvq.Model) -> None:
    llm = LLM(model, max_len=512)
    llm.generate("12", SamplingParams(temperature=0, max_tokens=3))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            llm.generate("12", SamplingParams(temperature=0, max_tokens=3))
        except pmkvq.Unsupported as error:
            status = 0 if str(error).startswith("[fork] ") and "spawn" in str(error) else 2
        finally:
            del llm  # Waits for no thread that is not there.
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert llm.generate("12", SamplingParams(temperature=0, max_tokens=3))[0].token_ids


@forks
def test_a_forked_child_may_make_its_own(model: pmkvq.Model) -> None:
    expected = LLM(model, max_len=512, threads=2).generate("12", SamplingParams(temperature=0, max_tokens=3))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            found = LLM(model, max_len=512, threads=2).generate("12", SamplingParams(temperature=0, max_tokens=3))
            status = 0 if found[0].token_ids == expected[0].token_ids else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
