"""Arguments as users give them, made into what the native functions take."""
from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterable

from . import _pmkvq
from ._errors import InvalidInput

MOST_ID = 2**31 - 1


def path_of(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)


def bytes_of(size: int | str | None, what: str) -> int:
    """A size in bytes: a number of bytes, or a text with a unit ("6MiB"). None: 0, not given."""
    if size is None:
        return 0
    if isinstance(size, str):
        return _pmkvq.parse_size(size, what)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 2**50:
        raise InvalidInput(f'[{what}] found {size!r}, expected a number of bytes or a text like "6MiB"')
    return size


def ids_of(ids: Iterable[int], what: str) -> list[int]:
    """Token ids of any integer type (NumPy's, torch's), as ints."""
    result = []
    for index, value in enumerate(ids):
        try:
            token = operator.index(value)
        except TypeError:
            raise InvalidInput(f"[{what}] found {value!r} at index {index}, expected a token id") from None
        if not 0 <= token <= MOST_ID:
            raise InvalidInput(f"[{what}] found {token} at index {index}, expected a token id")
        result.append(token)
    return result


def check_model(model: object) -> None:
    """Of functions that take no path, since how a model is loaded is a choice."""
    if not isinstance(model, _pmkvq.Model):
        raise InvalidInput(
            f"[model] found {type(model).__name__}, expected a loaded model: pmkvq.load_model(PATH), or the model of an LLM: llm.model"
        )


def threads_of(threads: int) -> int:
    """0: as many as torch uses where it is imported, so that both do not take all processors."""
    if threads != 0:
        return threads
    torch = sys.modules.get("torch")
    get_num_threads = getattr(torch, "get_num_threads", None)
    return int(get_num_threads()) if get_num_threads is not None else 0
