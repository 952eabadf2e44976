"""A model with its cache: text in, text out."""
from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from . import _pmkvq
from ._arguments import bytes_of, ids_of, path_of, threads_of
from ._errors import Cancelled, InvalidInput, KvBudgetExhausted, RequestFailed
from ._pmkvq import Completion, HalvingEvent, TokenEvent
from ._plan import Plan
from ._sampling import SamplingParams, make_request
from ._tokenizer import Message, Tokenizer

# A text, which is taken as it is, or token ids.
Prompt = str | Iterable[int]


@dataclass(frozen=True)
class FinishEvent:
    """The end of a stream."""

    completion: Completion


Event = TokenEvent | HalvingEvent | FinishEvent


@dataclass(frozen=True)
class Score:
    """Of a continuation: natural logarithms of probabilities, one per token."""

    logprobs: list[float]
    is_greedy: bool  # Each token was the likeliest one in its place.
    kv: _pmkvq.KvSnapshot

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)


@dataclass(frozen=True)
class KvStats:
    """The cache of an LLM, in bytes, and its load."""

    budget_bytes: int  # The most that one sequence may take.
    arena_bytes: int  # Reserved once, for all sequences; pages are used as they are needed.
    num_running: int
    num_waiting: int
    prompt_tokens: int  # Stored since the LLM was made.
    decoded_tokens: int  # Drawn since then.
    step_seconds: float  # Spent in steps.


def load_model(
    path: str | os.PathLike[str], *, weights: str = "as-stored", threads: int = 0, device: str = "cpu"
) -> _pmkvq.Model:
    """Loads weights, which several LLMs may share. weights: "as-stored", "q8" or "q4".

    device: "cpu", "cuda" or "cuda:N". Raises Unsupported where the package was built without CUDA,
    DeviceError where there is no such device or its memory is short, InvalidInput, IoError.
    """
    model = _pmkvq.Model.load(path_of(path), weights, threads_of(threads), device)
    for warning in model.warnings:
        warnings.warn(warning, RuntimeWarning, stacklevel=3)
    return model


class LLM:
    """Generates text inside a KV budget.

    path: a model folder (Hugging Face layout), a GGUF file, or a model of load_model.
    kv: cache method, the SPEC of `pmkvq run --kv`. kv_budget: what one sequence may take, all
    blocks: bytes, or a text with a unit. plan: a plan of calibrate, or its file.
    kv_dtype: of what is not quantised: "f16", "bf16" or "f32".
    weights: "as-stored", "q8" or "q4"; device: "cpu", "cuda" or "cuda:N", where model and cache
    lie; both of a path only (see load_model). max_sequences: decoded together, others wait. max_len: tokens of the longest sequence, prompt and output; 0: the model's maximum.
    threads: 0: torch.get_num_threads() where torch is imported, else all processors.
    tokenizer, chat_template: in place of the model's (see Tokenizer).

    Threads: all methods may be called from any thread; the GIL is released while the engine works.
    Requests of several threads are decoded as one batch, and each has the text that it has alone.
    Not to be used in a child of os.fork().
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | _pmkvq.Model,
        *,
        kv: str = "fp16",
        kv_budget: int | str | None = None,
        plan: Plan | str | os.PathLike[str] | None = None,
        weights: str | None = None,
        device: str | None = None,
        kv_dtype: str = "f16",
        max_sequences: int = 8,
        max_len: int = 0,
        chunk: int = 512,
        threads: int = 0,
        tokenizer: str | os.PathLike[str] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
    ):
        if isinstance(path, _pmkvq.Model):
            if weights is not None and weights != path.weights:
                raise InvalidInput(f"[weights] found {weights!r}, expected the {path.weights!r} of the loaded model")
            if device is not None and device not in (path.device, path.device.removesuffix(":0")):
                raise InvalidInput(f"[device] found {device!r}, expected the {path.device!r} of the loaded model")
            self.model = path
        else:
            self.model = load_model(path, weights=weights or "as-stored", threads=threads, device="cpu" if device is None else device)
        self._tokenizer: Tokenizer | None = None
        if tokenizer is not None or _pmkvq.Tokenizer.is_in(self.model.path):
            self._tokenizer = Tokenizer(self.model.path, tokenizer=tokenizer, chat_template=chat_template)
        if plan is not None and not isinstance(plan, Plan):
            plan = Plan.load(plan)
        self._engine = _pmkvq.Engine.open(
            self.model,
            None if self._tokenizer is None else self._tokenizer._native,
            kv=kv,
            plan=None if plan is None else plan._native,
            kv_budget=bytes_of(kv_budget, "kv_budget"),
            max_sequences=max_sequences,
            max_len=max_len,
            chunk=chunk,
            threads=threads_of(threads),
            kv_dtype=kv_dtype,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises InvalidInput for a model without one."""
        if self._tokenizer is None:
            raise InvalidInput(f"[{self.model.path}] has no tokenizer; expected one, tokenizer=, or token ids")
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continues prompts; answers are in their order. One prompt is a list of one.

        A text is taken as it is, without a chat template (`chat` applies it). params: for all, or
        one for each. Every prompt draws with its own seed's numbers, so a prompt has the answer
        that it has alone. A spent budget, the length and an error of one request end that answer:
        finish_reason "kv_budget", "length", "error".
        Raises InvalidInput for a prompt that cannot be begun; nothing is generated then. Ctrl-C
        raises Cancelled, which has what was drawn.
        """
        batch = [self._ids(prompt) for prompt in _as_list(prompts)]
        requests = [make_request(ids, one) for ids, one in zip(batch, _each(params, len(batch)), strict=True)]
        return self._wait(lambda: self._engine.submit(requests, False)) if requests else []

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> list[Completion]:
        """Answers one conversation, or several, by the model's chat template; otherwise as generate.

        A message is {"role": "user", "content": TEXT}. `pmkvq run --prompt TEXT` draws the same
        answer to one such message.
        """
        if isinstance(messages, str):
            raise InvalidInput('[messages] found a text, expected a list of messages: [{"role": "user", "content": TEXT}]')
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            self.tokenizer.encode_chat(conversation, tools=tools, template_args=template_args, date=date)  # type: ignore[arg-type]
            for conversation in conversations
        ]
        return self.generate(prompts, params)

    def sample(self, prompt: Prompt, n: int, params: SamplingParams | None = None) -> list[Completion]:
        """n answers to one prompt, which is computed once; answer i is that of
        `pmkvq run --n-samples`."""
        one = params or SamplingParams()
        ids = self._ids(prompt)
        requests = [make_request(ids, one, index) for index in range(n)]
        return self._wait(lambda: self._engine.submit_samples(requests)) if requests else []

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Event]:
        """What happens to one request: TokenEvent, HalvingEvent, and at its end a FinishEvent.

        The request ends early when the iterator is closed or dropped.
        """
        run = self._engine.submit([make_request(self._ids(prompt), params or SamplingParams())], True)
        return _events(run)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> Iterator[Event]:
        """stream for one conversation."""
        ids = self.tokenizer.encode_chat(messages, tools=tools, template_args=template_args, date=date)
        return self.stream(ids, params)

    async def astream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[Event]:
        """stream for asyncio: steps are computed in the loop's default executor. Requests of several
        tasks are decoded as one batch. The request ends early when its task is cancelled."""
        run = self._engine.submit([make_request(self._ids(prompt), params or SamplingParams())], True)
        loop = asyncio.get_running_loop()
        try:
            while True:
                for event in await loop.run_in_executor(None, run.events):
                    if isinstance(event, Completion):
                        yield FinishEvent(event)
                        return
                    yield event
        finally:
            run.forget()

    def score(self, prompt_ids: Iterable[int], continuation_ids: Iterable[int]) -> Score:
        """Log-probabilities of a continuation, through the cache.

        The prompt is stored in chunks, as that of any request; the continuation goes through the
        cache token by token, so that it reads pages at the widths that they have. Raises
        KvBudgetExhausted where the budget ends first, and InvalidInput.
        """
        return self.score_choices(prompt_ids, [continuation_ids])[0]

    def score_choices(self, prompt_ids: Iterable[int], continuations: Iterable[Iterable[int]]) -> list[Score]:
        """`score` of several continuations of one prompt, which is computed once. Each has the
        values that it has alone."""
        prompt = ids_of(prompt_ids, "prompt_ids")
        choices = [ids_of(ids, "continuation_ids") for ids in continuations]
        completions = self._force([(prompt, choice) for choice in choices])
        return [_score_of(completion, choice) for completion, choice in zip(completions, choices, strict=True)]

    def _force(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Completion]:
        """Completions whose outputs are given, of (prompt, output); neighbours with equal prompts
        compute them once."""
        size = self.model.vocab_size
        groups: list[list[_pmkvq.Request]] = []
        for index, (prompt, output) in enumerate(pairs):
            if index == 0 or prompt != pairs[index - 1][0]:
                groups.append([])
            groups[-1].append(_pmkvq.Request.forced(prompt, output, size))
        runs: list[_pmkvq.Run] = []
        try:
            for group in groups:
                runs.append(self._engine.submit_samples(group))
            for run in runs:  # A step of one is a step of all.
                while not run.step():
                    pass
            return [completion for run in runs for completion in run.completions()]
        finally:
            for run in runs:
                run.forget()

    def kv_stats(self) -> KvStats:
        stats = self._engine.stats()
        return KvStats(
            budget_bytes=self._engine.budget_bytes,
            arena_bytes=self._engine.arena_bytes(),
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            prompt_tokens=stats.prompt_tokens,
            decoded_tokens=stats.decoded_tokens,
            step_seconds=stats.step_seconds,
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else ids_of(prompt, "prompt")

    def _wait(self, submit: Callable[[], _pmkvq.Run]) -> list[Completion]:
        run: _pmkvq.Run | None = None
        try:
            run = submit()
            # Between two steps Python runs the handlers of signals.
            while not run.step():
                pass
        except KeyboardInterrupt:
            if run is None:
                raise
            run.cancel()
            raise Cancelled("[generate] interrupted", run.completions()) from None
        except BaseException:
            if run is not None:
                run.forget()  # Its traceback may keep `run` alive.
            raise
        return run.completions()


def _events(run: _pmkvq.Run) -> Iterator[Event]:
    try:
        while True:
            for event in run.events():
                if isinstance(event, Completion):
                    yield FinishEvent(event)
                    return
                yield event
    finally:
        run.forget()


def _score_of(completion: Completion, output: list[int]) -> Score:
    if completion.finish_reason == "kv_budget":
        raise KvBudgetExhausted(
            f"[score] the KV budget of {completion.kv.budget_bytes} bytes was spent after "
            f"{len(completion.token_ids)} tokens of the continuation, expected room for all"
        )
    if completion.finish_reason == "error":
        raise RequestFailed(completion.error)
    if len(completion.logprobs) < len(output):
        raise InvalidInput(
            f"[continuation_ids] found {len(output)} tokens behind a prompt of {len(completion.prompt_token_ids)}, "
            f"expected {len(completion.logprobs)} or fewer: so many fit max_len"
        )
    return Score(
        logprobs=[token.logprob for token in completion.logprobs],
        is_greedy=all(token.top[0][0] == token.token_id for token in completion.logprobs),
        kv=completion.kv,
    )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    if items and isinstance(items[0], Integral):
        return [items]  # The ids of one prompt.
    return items


def _each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if isinstance(params, Mapping):
        raise InvalidInput(f"[params] found {type(params).__name__}, expected SamplingParams(...)")
    if len(params) != count:
        raise InvalidInput(f"[params] found {len(params)} for {count} prompts, expected one for each")
    return list(params)
