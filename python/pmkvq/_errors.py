"""Exceptions. Their text is the line that the C++ library says: "[where] what, found, expected"."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._pmkvq import Completion


class Error(Exception):
    """Base of everything that the library raises on purpose."""


class InvalidInput(Error, ValueError):
    """A value in a file, an argument or a request is wrong."""


class Unsupported(Error):
    """Well-formed, but outside of what the library supports."""


class IoError(Error, OSError):
    """The operating system refused: open, read, write, map, allocate."""


class DeviceError(Error, RuntimeError):
    """A compute device failed."""


class KvBudgetExhausted(Error):
    """The KV budget does not hold the tokens that a call needs, even at the lowest widths."""


class RequestFailed(Error):
    """The model or the cache could not go on with a request (Completion.error)."""


class MethodError(Error, RuntimeError):
    """A cache method in Python (pmkvq.methods) failed: what it raised is __cause__, and the text
    names the method and the place."""


class UnfitValues(InvalidInput):
    """Raised by a cache method in Python for values that it cannot hold. It ends that request with
    finish_reason "error", and no other."""


class Cancelled(KeyboardInterrupt):
    """Ctrl-C ended a call. As a KeyboardInterrupt it ends a script that does not catch it.

    completions: of generate, chat and sample, in their order, with what was drawn so far;
    finish_reason is "cancelled" for those that had not finished.
    """

    def __init__(self, message: str = "interrupted", completions: list[Completion] | None = None):
        super().__init__(message)
        self.completions: list[Completion] = completions or []
