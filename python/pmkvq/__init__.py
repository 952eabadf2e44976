"""Runs long chain-of-thought language models inside a fixed KV-cache memory budget.

    import pmkvq
    llm = pmkvq.LLM("models/longcot-10m", kv="pm-kvq", kv_budget="4.75MiB")
    answer = llm.chat([{"role": "user", "content": "..."}])[0]
"""
from . import ops
from ._errors import (
    Cancelled,
    DeviceError,
    Error,
    InvalidInput,
    IoError,
    KvBudgetExhausted,
    RequestFailed,
    Unsupported,
)
from ._evaluate import Report, evaluate
from ._llm import LLM, Event, FinishEvent, KvStats, Score, load_model
from ._plan import Plan, calibrate
from ._pmkvq import (
    Completion,
    HalvingEvent,
    Judgement,
    KvSnapshot,
    Model,
    Response,
    TokenEvent,
    TokenLogprob,
    judge,
)
from ._pmkvq import version as __version__
from ._sampling import SamplingParams
from ._tokenizer import Tokenizer

__all__ = [
    "LLM",
    "Cancelled",
    "Completion",
    "DeviceError",
    "Error",
    "Event",
    "FinishEvent",
    "HalvingEvent",
    "InvalidInput",
    "IoError",
    "Judgement",
    "KvBudgetExhausted",
    "KvSnapshot",
    "KvStats",
    "Model",
    "Plan",
    "Report",
    "RequestFailed",
    "Response",
    "SamplingParams",
    "Score",
    "TokenEvent",
    "TokenLogprob",
    "Tokenizer",
    "Unsupported",
    "__version__",
    "calibrate",
    "evaluate",
    "judge",
    "load_model",
    "ops",
]
