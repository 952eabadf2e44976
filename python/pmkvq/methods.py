"""Cache methods in Python: the interface of the published ones in C++, with NumPy.

A method quantises stored keys and values in place, and counts the bytes that it would take. The
cache keeps floats: nothing is packed, and the engine's memory is larger than what is counted. A
method that is registered is known by its name wherever a SPEC is: LLM(kv=), evaluate, compare.

    import pmkvq
    from pmkvq import methods

    @methods.register
    class Nearest(methods.CacheMethod):
        name = "nearest"
        keys = {"bits": methods.Integer(1, 8, default=4, help="width of codes")}

        def on_append(self, layer, tokens, block, state):
            new = slice(tokens.first, tokens.last)
            block.keys[new] = methods.affine(block.keys[new], self.bits, self.context.float_type)
            block.values[new] = methods.affine(block.values[new], self.bits, self.context.float_type)

        def block_bytes(self, layer, num_tokens):
            values = 2 * num_tokens * self.context.kv_dim
            return methods.affine_bytes(values, self.context.head_dim, self.bits, self.context.float_type)

    llm = pmkvq.LLM("models/longcot-10m", kv="nearest:bits=3")

Letters: L blocks, H heads, Hkv KV heads, D head size, E hidden size. A method's functions are called
one at a time (they hold the GIL), from several threads.
"""
from __future__ import annotations

import hashlib
import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from . import _pmkvq
from ._errors import Error, InvalidInput, MethodError, UnfitValues

__all__ = [
    "AppendedTokens",
    "Block",
    "CacheMethod",
    "Choice",
    "Context",
    "File",
    "Growth",
    "Integer",
    "Key",
    "MethodError",
    "MethodInfo",
    "Real",
    "Rows",
    "UnfitValues",
    "Word",
    "affine",
    "affine_bytes",
    "list_methods",
    "register",
    "unregister",
]

Floats = npt.NDArray[np.float32]


# Keys of a SPEC: "name:bits=3+group=64+exact".


@dataclass(frozen=True)
class Integer:
    """A whole number from `least` to `most`."""

    least: int
    most: int
    default: int
    help: str = ""


@dataclass(frozen=True)
class Real:
    """A number from `least` to `most`."""

    least: float
    most: float
    default: float
    help: str = ""


@dataclass(frozen=True)
class Choice:
    """One of `choices`, as text."""

    choices: Sequence[str]
    default: str
    help: str = ""


@dataclass(frozen=True)
class File:
    """The path of a file; "": not given. Its content is part of what identifies a run."""

    help: str = ""


@dataclass(frozen=True)
class Word:
    """A word that stands alone; False where it is not given."""

    help: str = ""


Key = Integer | Real | Choice | File | Word


@dataclass(frozen=True)
class Context:
    """What a method is made for."""

    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # Hkv
    head_dim: int  # D
    float_type: str  # Of values at full precision, and of metadata: "F16", "BF16" or "F32".

    @property
    def kv_dim(self) -> int:
        """Hkv D: values of a token's keys, or of its values, in a block."""
        return self.num_kv_heads * self.head_dim

    def float_bytes(self, num_tokens: int) -> int:
        """Bytes of the keys, or of the values, of so many tokens of one block at full precision."""
        return num_tokens * self.kv_dim * (4 if self.float_type == "F32" else 2)


@dataclass(frozen=True)
class Growth:
    """How bytes grow: for every n >= start, block_bytes(n + period) >= block_bytes(n). They may fall
    from one token to the next, where a window is flushed. Budgets are found by looking at start +
    period lengths, so both should be small."""

    start: int = 1
    period: int = 1


@dataclass(frozen=True, eq=False)
class AppendedTokens:
    """Tokens first .. last - 1 of a block, which are stored now. Arrays are copies."""

    first: int
    last: int
    q: Floats  # [last - first, H, D], after RoPE.
    # [Hkv, last]: weights that each stored token got, summed over new tokens and the heads of a
    # group. None unless the method's `attention` is True.
    attention_sums: npt.NDArray[np.float64] | None
    block_input: Floats | None  # [last - first, E]; None unless `block_input` is True.

    @property
    def count(self) -> int:
        return self.last - self.first


class Rows:
    """Keys, or values, of a block: rows[a:b] is a copy [b - a, Hkv, D] float32 of tokens a .. b - 1,
    and rows[a:b] = array stores them anew. A step other than 1 is refused."""

    def __init__(self, block: _pmkvq.MethodBlock, read: Callable[[int, int], Floats], write: Callable[[int, Floats], None]):
        self._block = block
        self._read = read
        self._write = write

    def __len__(self) -> int:
        return self._block.num_tokens

    def __getitem__(self, tokens: slice) -> Floats:
        return self._read(*self._range(tokens))

    def __setitem__(self, tokens: slice, values: npt.ArrayLike) -> None:
        first, last = self._range(tokens)
        shape = (last - first, self._block.num_kv_heads, self._block.head_dim)
        rows = np.asarray(values)
        if rows.shape != shape or rows.dtype.kind != "f":
            raise InvalidInput(f"[block] found {rows.dtype} of shape {list(rows.shape)}, expected floats of {list(shape)}")
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        if not np.isfinite(rows).all():
            raise InvalidInput("[block] found a value that is not finite, expected finite ones")
        self._write(first, rows)

    def _range(self, tokens: slice) -> tuple[int, int]:
        if not isinstance(tokens, slice):
            raise InvalidInput(f"[block] found the index {tokens!r}, expected a range of tokens: [a:b]")
        first, last, step = tokens.indices(self._block.num_tokens)
        if step != 1:
            raise InvalidInput(f"[block] found the step {step}, expected a range of tokens: [a:b]")
        return first, max(first, last)


class Block:
    """One block of one sequence. Only to be used during on_append."""

    def __init__(self, native: _pmkvq.MethodBlock):
        self._native = native
        self.keys = Rows(native, native.read_keys, native.write_keys)
        self.values = Rows(native, native.read_values, native.write_values)

    @property
    def num_tokens(self) -> int:
        return self._native.num_tokens


class CacheMethod(ABC):
    """A cache method. Derive a class, give it a `name` and @register it.

    One object serves all blocks and sequences of a cache; what a method remembers of one block of
    one sequence is its state. The rule must depend on what it is given alone.
    """

    name: ClassVar[str]  # Of the SPEC: lower-case letters, digits and '-'.
    description: ClassVar[str] = ""  # One line of help.
    keys: ClassVar[Mapping[str, Key]] = {}  # Of the SPEC; their values become attributes.
    # What the method sees besides stored keys and values; not the first two together.
    keys_before_rope: ClassVar[bool] = False  # Keys are handed over, and damaged, as before RoPE.
    attention: ClassVar[bool] = False  # AppendedTokens.attention_sums. Costs a slower attention.
    block_input: ClassVar[bool] = False  # AppendedTokens.block_input.

    def __init__(self, context: Context, **values: Any):
        """values: of all keys. Raise InvalidInput for values that do not go together, or do not suit
        the context."""
        self.context = context
        for name, value in values.items():
            setattr(self, name, value)

    @abstractmethod
    def on_append(self, layer: int, tokens: AppendedTokens, block: Block, state: Any) -> None:
        """Quantises rows that lose full precision by this append, in place (block.keys, block.values).

        Values that were stored are finite. Rows that a truncation cut off and an append stored
        again may have been quantised before.
        """

    @abstractmethod
    def block_bytes(self, layer: int, num_tokens: int) -> int:
        """Everything that the method keeps of a block with num_tokens >= 1 tokens: codes, metadata,
        values at full precision, tags, scores. Each length is asked for once."""

    def growth(self, layer: int) -> Growth:
        """How block_bytes grows; default: it never falls. Checked for short lengths."""
        return Growth()

    def new_state(self, layer: int) -> Any:
        """The state of a block of a new sequence, or None. It must have truncate(num_tokens), which
        is called when the block is cut to so many tokens."""
        return None


Method = TypeVar("Method", bound=type[CacheMethod])


def register(method: Method) -> Method:
    """Adds a method to those that a SPEC may name, for the rest of the process; in place of one of
    the same name. Use it as a decorator. Raises InvalidInput."""
    if not (isinstance(method, type) and issubclass(method, CacheMethod)) or inspect.isabstract(method):
        raise InvalidInput(f"[method] found {method!r}, expected a class derived from CacheMethod with on_append and block_bytes")
    name = getattr(method, "name", "")
    if method.keys_before_rope and method.attention:
        raise InvalidInput(f"[method {name}] found keys_before_rope and attention, expected one of them")
    _pmkvq.add_method(
        str(name),
        method.description or inspect.cleandoc(method.__doc__ or "").partition("\n")[0],
        [_declare(key, value) for key, value in method.keys.items()],
        _code_hash(method),
        lambda values, words, text, shape: _Adapter(method, values, words, text, Context(*shape)),
    )
    return method


def unregister(name: str) -> bool:
    """Takes a method of `register` away; False where there is none. Caches that exist keep theirs."""
    return _pmkvq.remove_method(name)


@dataclass(frozen=True)
class MethodInfo:
    """A method that a SPEC may name."""

    name: str
    description: str
    is_simulated: bool  # Counts the method's bytes; its speed is not the method's.


def list_methods() -> list[MethodInfo]:
    """All of them, those of `register` last."""
    return [MethodInfo(*one) for one in _pmkvq.list_methods()]


def affine(x: npt.NDArray[Any], bits: int, float_type: str = "F16") -> Floats:
    """Values that asymmetric uniform codes of `bits` (1 to 8) bits stand for, float32 [..., G]: each
    row along the last axis is a group, with a minimum and a range stored as float_type.

    step = range / (2^bits - 1), value = round_half_even((x - minimum) / step) step + minimum, with
    the minimum rounded down and the range up to the stored type first. Raises UnfitValues where the
    type cannot hold them.
    """
    values = np.array(x, dtype=np.float32, order="C")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InvalidInput(f"[affine] found an array of shape {list(values.shape)}, expected [..., G]")
    _check_bits(bits)
    _pmkvq.damage_groups(values.reshape(-1, values.shape[-1]), bits, float_type)
    return values


def affine_bytes(num_values: int, group: int, bits: int, float_type: str = "F16") -> int:
    """Bytes of num_values values in groups of `group`: codes, in whole bytes per group, and the
    group's minimum and range."""
    _check_bits(bits)
    if group < 1 or num_values < 0 or num_values % group != 0:
        raise InvalidInput(f"[affine_bytes] found {num_values} values in groups of {group}, expected whole groups")
    return _pmkvq.affine_bytes(bits, float_type, num_values, group)


def _check_bits(bits: int) -> None:
    if not 1 <= operator.index(bits) <= 8:
        raise InvalidInput(f"[bits] found {bits!r}, expected 1 to 8")


def _declare(name: str, key: Key) -> tuple[str, str, float, float, list[str], str, str]:
    if isinstance(key, Integer):
        return "integer", name, key.least, key.most, [], str(key.default), key.help
    if isinstance(key, Real):
        return "real", name, key.least, key.most, [], str(key.default), key.help
    if isinstance(key, Choice):
        return "choice", name, 0, 0, list(map(str, key.choices)), str(key.default), key.help
    if isinstance(key, File):
        return "file", name, 0, 0, [], "none", key.help
    if isinstance(key, Word):
        return "word", name, 0, 0, [], "", key.help
    raise InvalidInput(f"[keys] found {key!r} for {name!r}, expected Integer, Real, Choice, File or Word")


def _code_hash(method: type[CacheMethod]) -> str:
    """Of the class as it is written, so that a folder of results is not continued with other code."""
    try:
        source = inspect.getsource(method)
    except (OSError, TypeError):  # Typed into an interpreter.
        source = repr(sorted((name, getattr(value, "__code__", None) and value.__code__.co_code)
                             for name, value in vars(method).items()))  # fmt: skip
    return hashlib.sha256(source.encode()).hexdigest()[:16]


class _Adapter:
    """What the native side calls: checks what a method returns, and raises MethodError for what goes
    wrong in it."""

    def __init__(self, method: type[CacheMethod], given: dict[str, str], words: list[str], text: str, context: Context):
        self._name = method.name
        self.keys_before_rope = bool(method.keys_before_rope)
        self.attention = bool(method.attention)
        self.block_input = bool(method.block_input)
        values = {key: _value_of(declared, given.get(key), key in words) for key, declared in method.keys.items()}
        try:
            self._method = method(context, **values)
        except InvalidInput as error:
            raise InvalidInput(f"[--kv] '{text}': {_text_of(error)}") from error
        except Exception as error:
            raise self._error("__init__", error) from error
        for layer in range(context.num_layers):
            self._check_growth(layer)

    def growth(self, layer: int) -> tuple[int, int]:
        with self._calls(f"growth, block {layer}"):
            growth = self._method.growth(layer)
            start, period = operator.index(growth.start), operator.index(growth.period)
            if start < 1 or period < 1:
                raise InvalidInput(f"found {growth}, expected a start and a period of 1 or more")
            return start, period

    def new_state(self, layer: int) -> object:
        with self._calls(f"new_state, block {layer}"):
            state = self._method.new_state(layer)
            if state is not None and not callable(getattr(state, "truncate", None)):
                raise InvalidInput(f"found a {type(state).__name__}, expected None or an object with truncate(num_tokens)")
            return None if state is None else _State(self, layer, state)

    def on_append(
        self,
        layer: int,
        first: int,
        count: int,
        block: _pmkvq.MethodBlock,
        q: Floats,
        attention_sums: npt.NDArray[np.float64] | None,
        block_input: Floats | None,
        state: _State | None,
    ) -> None:
        with self._calls(f"on_append, block {layer}, tokens {first} to {first + count - 1}"):
            tokens = AppendedTokens(first, first + count, q, attention_sums, block_input)
            self._method.on_append(layer, tokens, Block(block), None if state is None else state.state)

    def block_bytes(self, layer: int, num_tokens: int) -> int:
        with self._calls(f"block_bytes, block {layer}, {num_tokens} tokens"):
            found = self._method.block_bytes(layer, num_tokens)
            try:
                size = operator.index(found)
            except TypeError:
                raise InvalidInput(f"found {found!r}, expected a whole number of bytes") from None
            if not 0 < size < 2**50:
                raise InvalidInput(f"found {size}, expected a positive number of bytes")
            return size

    def _check_growth(self, layer: int) -> None:
        start, period = self.growth(layer)
        for length in range(start, start + 2 * period):
            fewer, more = self.block_bytes(layer, length), self.block_bytes(layer, length + period)
            if more < fewer:
                raise MethodError(
                    f"[method {self._name}] block_bytes({layer}, {length + period}) is {more}, less than the {fewer} of "
                    f"{length} tokens; expected what growth({layer}) says: start {start}, period {period}"
                )

    @contextmanager
    def _calls(self, place: str) -> Iterator[None]:
        try:
            yield
        except (UnfitValues, MethodError):
            raise
        except Exception as error:
            raise self._error(place, error) from error

    def _error(self, place: str, error: Exception) -> MethodError:
        what = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
        return MethodError(f"[method {self._name}] {place}: {what}")


class _State:
    def __init__(self, adapter: _Adapter, layer: int, state: Any):
        self._adapter = adapter
        self._layer = layer
        self.state = state

    def truncate(self, num_tokens: int) -> None:
        with self._adapter._calls(f"truncate, block {self._layer}, to {num_tokens} tokens"):
            self.state.truncate(num_tokens)


def _value_of(key: Key, given: str | None, is_word: bool) -> object:
    if isinstance(key, Word):
        return is_word
    if isinstance(key, Integer):
        return key.default if given is None else int(given)
    if isinstance(key, Real):
        return key.default if given is None else float(given)
    if isinstance(key, Choice):
        return str(key.default) if given is None else given
    return "" if given in (None, "none") else given


def _text_of(error: Exception) -> str:
    return str(error).removeprefix("[--kv] ")
