"""Runs long chain-of-thought language models inside a fixed KV-cache memory budget.

    import pmkvq
    llm = pmkvq.LLM("models/longcot-10m", kv="pm-kvq", kv_budget="4.75MiB")
    answer = llm.chat([{"role": "user", "content": "..."}])[0]
"""
from ._load import load as _load

_load()

from . import methods, ops  # noqa: E402
from ._compare import Comparison, LevelScore, MethodResult, PairedResult, compare
from ._devices import Devices, devices
from ._errors import (
    Cancelled,
    DeviceError,
    Error,
    InvalidInput,
    IoError,
    KvBudgetExhausted,
    MethodError,
    RequestFailed,
    Unsupported,
)
from ._evaluate import Judgement, Report, Response, Summary, evaluate, judge
from ._llm import LLM, Event, FinishEvent, KvStats, Score, load_model
from ._plan import WIDTHS, Allocation, Plan, Sensitivity, allocate, calibrate, sensitivity
from ._pmkvq import (
    Completion,
    Device,
    HalvingEvent,
    KvSnapshot,
    Model,
    TokenEvent,
    TokenLogprob,
)
from ._pmkvq import version as __version__
from ._sampling import SamplingParams
from ._tokenizer import Tokenizer
from ._weights import Weight, logits, weights

__all__ = [
    "LLM",
    "WIDTHS",
    "Allocation",
    "Cancelled",
    "Comparison",
    "Completion",
    "Device",
    "DeviceError",
    "Devices",
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
    "LevelScore",
    "MethodError",
    "MethodResult",
    "Model",
    "PairedResult",
    "Plan",
    "Report",
    "RequestFailed",
    "Response",
    "SamplingParams",
    "Score",
    "Sensitivity",
    "Summary",
    "TokenEvent",
    "TokenLogprob",
    "Tokenizer",
    "Unsupported",
    "Weight",
    "__version__",
    "allocate",
    "calibrate",
    "compare",
    "devices",
    "evaluate",
    "judge",
    "load_model",
    "logits",
    "methods",
    "ops",
    "sensitivity",
    "weights",
]
