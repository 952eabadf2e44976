"""pmkvq as a model of lm-eval (EleutherAI's lm-evaluation-harness).

    pmkvq-lm-eval --model pmkvq --model_args pretrained=MODEL,kv=pm-kvq,plan=PLAN,kv_budget=64MiB --tasks TASK

lm-eval looks for no plug-ins of other packages. So `pmkvq-lm-eval` (or python -m pmkvq.lm_eval) is
lm-eval's own command with this model registered; in a script `import pmkvq.lm_eval` registers it. Plain
`lm_eval --model pmkvq` knows it by a file of tasks: --tasks "$(pmkvq-lm-eval --model-file)",TASK

Log-likelihoods go through the cache: the context is stored as a prompt is, and the continuation
token by token, so that it reads pages at the widths that they have. With scoring="prompt" context
and continuation are computed as one prompt, whose own rows are floats, as servers do it for `echo`.
"""
from __future__ import annotations

import itertools
import logging
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ._errors import DeviceError, Error, InvalidInput, Unsupported
from ._llm import LLM, load_model
from ._pmkvq import Completion, Model
from ._sampling import SamplingParams

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as missing:
    raise ImportError("pmkvq.lm_eval wants lm-eval 0.4.13 or later: pip install 'pmkvq[lm-eval]'") from missing

_log = logging.getLogger(__name__)

# Generation arguments of lm-eval that SamplingParams has under the same names.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "frequency_penalty",
             "presence_penalty", "min_tokens")  # fmt: skip

MODEL_FILE_VERSION = "1"  # lm_eval_model.yaml names it: who reads that file imports this module.

Scored = tuple[float, bool]
_LOST: Scored = (-math.inf, False)  # A choice that could not be scored loses.
# ((context, continuation) or None, ids of the context, ids of the continuation)
ScoringRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("pmkvq")
class PmkvqLM(TemplateLM):
    """`--model pmkvq`. What it is given by --model_args:

    pretrained (or model): a model folder or GGUF file. kv, kv_budget, plan, kv_dtype, weights,
    chunk, threads, tokenizer, device: as those of LLM, but for cuda:0, which lm-eval's command asks
    for by itself: the CPU takes its place, with a warning, where there is none. max_length: tokens of the longest sequence,
    of which one is the last token drawn or scored; default: the model's. batch_size: sequences
    decoded together; 1 and "auto" are 8. scoring: "cache" or "prompt", see the module.
    chat_template: "none", a template of the model, a built-in one or a Jinja file.
    max_gen_toks: tokens of a generation where the task does not say. add_bos_token: whether a text
    begins with a BOS token; default: as the tokenizer does it.
    A context that leaves no room is cut from the left, with a warning.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | None = None,
        model: str | os.PathLike[str] | None = None,
        *,
        kv: str = "fp16",
        kv_budget: int | str | None = None,
        plan: str | None = None,
        kv_dtype: str = "f16",
        weights: str = "as-stored",
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        chunk: int = 512,
        threads: int = 0,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        scoring: str = "cache",
        add_bos_token: bool | None = None,
    ) -> None:
        super().__init__()
        path = pretrained if pretrained is not None else model
        if path is None:
            raise InvalidInput("[pretrained] found none, expected a model folder or a GGUF file")
        if scoring not in ("cache", "prompt"):
            raise InvalidInput(f"[scoring] found {scoring!r}, expected 'cache' or 'prompt'")
        self._path = os.fspath(path)
        self._scoring = scoring
        self._add_bos_token = add_bos_token
        self.batch_size = _batch_size_of(batch_size, max_batch_size)
        loaded = _load(self._path, weights, int(threads), device)
        self.llm = LLM(
            loaded,
            kv=kv,
            kv_budget=kv_budget,
            plan=plan,
            kv_dtype=kv_dtype,
            max_sequences=self.batch_size,
            max_len=0 if max_length is None else int(max_length),
            chunk=int(chunk),
            threads=int(threads),
            tokenizer=tokenizer,
            chat_template=chat_template,
        )
        self._codec = self.llm.tokenizer
        if add_bos_token and self._codec.bos_token_id is None:
            raise InvalidInput(f"[add_bos_token] found True, but {self._path} names no BOS token; expected False or none")
        self._max_len = int(max_length) if max_length is not None else self.llm.model.max_positions
        self.max_gen_toks = int(max_gen_toks)
        self._settings = {"kv": kv, "kv_budget": kv_budget, "plan": plan, "kv_dtype": kv_dtype, "weights": weights,
                          "scoring": scoring, "max_length": self._max_len}  # fmt: skip
        self._num_exhausted = 0
        self._num_failed = 0

    # Tokens.

    @property
    def max_length(self) -> int:
        """Tokens that a forward pass may see: the last token of a sequence is only predicted."""
        return self._max_len - 1

    @property
    def eot_token_id(self) -> int:
        named = self._codec.eos_token_id
        ids = [named] if named is not None else self.llm.model.eos_token_ids
        if not ids:
            raise InvalidInput(f"[{self._path}] names no end-of-sequence token, expected one for an empty context")
        return ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What an empty context becomes: the BOS token, else the one that ends a text."""
        named = self._codec.bos_token_id
        return self.eot_token_id if named is None else named

    @property
    def tokenizer_name(self) -> str:
        return self._path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, which may hold control tokens. A BOS that the text has already is not put
        there twice."""
        add = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add is None or not add:
            return self._codec.encode(string, parse_special=True, add_special=add is None)
        ids = self._codec.encode(string, parse_special=True, add_special=True)
        bos = self._codec.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def tok_decode(self, tokens: int | Iterable[int], skip_special_tokens: bool = True) -> str:
        ids = [tokens] if isinstance(tokens, int) else tokens
        return self._codec.decode(ids, skip_special=skip_special_tokens)

    # Chat templates.

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Jinja text, for the record; chat_template= of --model_args chooses another."""
        if isinstance(chat_template, str):
            raise InvalidInput(
                f"[apply_chat_template] found {chat_template!r}, expected no name: --model_args chat_template={chat_template}"
            )
        return self._codec.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self._codec.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        # The last message is the beginning of an answer: what the template writes behind it goes.
        last = chat_history[-1]["content"].strip()
        if last not in text:
            raise InvalidInput(f"[chat_template] leaves out the last message, {last!r:.60}, which was to be continued")
        return text[: text.rindex(last) + len(last)]

    # Log-likelihoods.

    def _loglikelihood_tokens(
        self, requests: list[ScoringRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Scored]:
        results: dict[int, Scored] = {}
        # Long ones first, so that memory and time are known early; choices of one context meet.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i][1]), requests[i][1], i))
        bar = tqdm(total=len(order), desc="log-likelihoods", disable=disable_tqdm)
        for part in _parts(order, 16 * self.batch_size, lambda i: requests[i][1]):
            pairs = {i: self._fitting(requests[i][1], requests[i][2]) for i in part}
            begun = [i for i in part if self._can_begin(sum(map(len, pairs[i][: 1 if self._scoring == "cache" else 2])))]
            results.update(dict.fromkeys(part, _LOST))
            results.update(zip(begun, self._score([pairs[i] for i in begun]), strict=True))
            for index in part:
                scored = results[index]
                key = requests[index][0]
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, scored)
            bar.update(len(part))
        bar.close()
        return [results[index] for index in range(len(requests))]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        spare = self._max_len - len(continuation)
        if spare < 1 or not context:
            raise InvalidInput(
                f"[max_length] found {self._max_len} for a context of {len(context)} and a continuation of "
                f"{len(continuation)} tokens, expected more: a token of the context has to fit"
            )
        if len(context) > spare:
            _log.warning("context of %d tokens was cut to its last %d", len(context), spare)
        return context[-spare:], continuation

    def _can_begin(self, num_tokens: int) -> bool:
        """False, and counted, where the KV budget does not hold a prompt of so many tokens."""
        holds = self.llm._engine.holds(num_tokens)
        if not holds:
            self._num_exhausted += 1
        return holds

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        if self._scoring == "cache":
            completions = self.llm._force(pairs)
            return [
                self._scored(completion, completion.logprobs, len(output))
                for completion, (_, output) in zip(completions, pairs, strict=True)
            ]
        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=1)
        completions = self.llm.generate([context + output for context, output in pairs], params)
        return [
            self._scored(completion, completion.prompt_logprobs[len(context) - 1 :], len(output))
            for completion, (context, output) in zip(completions, pairs, strict=True)
        ]

    def _scored(self, completion: Completion, tokens: Sequence[Any], count: int) -> Scored:
        if len(tokens) < count:
            self._note_failure(completion)
            return _LOST
        return sum(one.logprob for one in tokens), all(one.logprob == one.top[0][1] for one in tokens)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[ScoringRequest] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, continuation = make_disjoint_window(window)
                windows.append((None, list(context), list(continuation)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # Generation.

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        prompts = [self._prompt_of(*request.args[:2]) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(prompts[i][0]))
        bar = tqdm(total=len(order), desc="generations", disable=disable_tqdm)
        for part in _parts(order, 4 * self.batch_size):
            begun = [i for i in part if self._can_begin(len(prompts[i][0]))]
            texts.update(dict.fromkeys(part, ""))
            completions = self.llm.generate([prompts[i][0] for i in begun], [prompts[i][1] for i in begun])
            for index, completion in zip(begun, completions, strict=True):
                texts[index] = completion.text
                if completion.finish_reason in ("kv_budget", "error"):
                    self._note_failure(completion)
            for index in part:
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
            bar.update(len(part))
        bar.close()
        return [texts[index] for index in range(len(requests))]

    def _prompt_of(self, context: str, gen_kwargs: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        known = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        max_tokens = int(known.pop("max_gen_toks"))
        until = [text for text in known.pop("until") if text]
        known.pop("do_sample", None)
        given = {name: known.pop(name) for name in _SAMPLING if known.get(name) is not None}
        given = {"temperature": 0.0, "top_p": 1.0, **given}
        if known:
            raise InvalidInput(
                f"[gen_kwargs] found {', '.join(sorted(known))}, expected until, max_gen_toks, do_sample, {', '.join(_SAMPLING)}"
            )
        ids = self.tok_encode(context)
        spare = self._max_len - max_tokens
        if spare < 1:
            raise InvalidInput(
                f"[max_length] found {self._max_len} for {max_tokens} tokens of a generation, expected more"
            )
        if len(ids) > spare:
            _log.warning("context of %d tokens was cut to its last %d", len(ids), spare)
        # A control token is in no text, so it ends the answer as a token.
        control = [token for token in map(self._control_token, until) if token is not None]
        stop = [text for text in until if self._control_token(text) is None]
        return ids[-spare:], SamplingParams(max_tokens=max_tokens, stop=stop, stop_token_ids=control, **given)

    def _control_token(self, text: str) -> int | None:
        token = self._codec.token_id(text)
        return token if token is not None and self._codec.decode([token]) == "" else None

    # The record.

    def _note_failure(self, completion: Completion) -> None:
        if completion.finish_reason == "kv_budget":
            self._num_exhausted += 1
        else:
            self._num_failed += 1
        if self._num_exhausted + self._num_failed == 1:
            _log.warning(
                "a request ended early (%s) at %d tokens of cache, %d of %d bytes; the results count such requests",
                completion.error or completion.finish_reason, completion.kv.num_tokens, completion.kv.peak_bytes,
                completion.kv.budget_bytes,
            )  # fmt: skip

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into the config of its results."""
        return {
            "model_identity": self.llm.model.identity,
            **{f"pmkvq_{name}": value for name, value in self._settings.items()},
            "pmkvq_budget_bytes": self.llm.kv_stats().budget_bytes,
            "pmkvq_requests_over_kv_budget": self._num_exhausted,
            "pmkvq_requests_failed": self._num_failed,
        }


def _load(path: str, weights: str, threads: int, device: str | None) -> Model:
    """lm-eval's command asks for cuda:0 where its user asked for nothing: that means a GPU if there is
    one, as it does for hf. Any other device has to be there."""
    if device is None:
        return load_model(path, weights=weights, threads=threads)
    try:
        return load_model(path, weights=weights, threads=threads, device=str(device))
    except (DeviceError, Unsupported) as error:
        if device != "cuda:0":
            raise
        _log.warning("on the CPU: %s", error)
        return load_model(path, weights=weights, threads=threads)


def _batch_size_of(batch_size: int | str | None, most: int | None) -> int:
    if batch_size is None or (isinstance(batch_size, str) and batch_size.startswith("auto")):
        return 8 if most is None else int(most)
    size = int(batch_size)
    if size < 1:
        raise InvalidInput(f"[batch_size] found {batch_size!r}, expected 1 or more, or 'auto'")
    return 8 if size == 1 else size


def _parts(order: list[int], size: int, key: Callable[[int], object] | None = None) -> Iterator[list[int]]:
    """Pieces of about `size`; neighbours with one key stay together."""
    groups = [[index] for index in order] if key is None else [list(group) for _, group in itertools.groupby(order, key)]
    part: list[int] = []
    for group in groups:
        part += group
        if len(part) >= size:
            yield part
            part = []
    if part:
        yield part


def main() -> None:
    """lm-eval's command, which knows --model pmkvq. --model-file prints the path of lm_eval_model.yaml."""
    if sys.argv[1:] == ["--model-file"]:
        print(pathlib.Path(__file__).with_name("lm_eval_model.yaml"))
        return
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except Error as error:
        raise SystemExit(f"pmkvq: {error}") from None


if __name__ == "__main__":
    main()
