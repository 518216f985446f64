"""Reads pickles of plain data and numpy arrays without executing anything; any other pickle is refused by name."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.backends.simple.pickle_scan import scan
from amprenta_vectors.errors import SourceError

ADMITTED = "lists, dicts, tuples, strings, bytes, numbers, True, False, None, UUIDs and numpy arrays of numbers"

_NUMBER_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class PickleRefused(SourceError):
    """A pickle that holds, or tries, what no file of a store needs; nothing of it was executed."""


class PickledArray:
    """A numpy array of a pickle. ``values`` is filled once its state was read and found whole."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[Any] | None = None) -> None:
        self.values: NDArray[Any] = np.empty(0, np.float32) if values is None else values

    def __setstate__(self, state: object) -> None:
        # numpy's own __setstate__ believes what it is told.
        match state:
            case (int(), tuple() as shape, _Number() as kind, order, bytes() | bytearray() as raw):
                self.values = _to_array(raw, kind, shape, "F" if order else "C")
            case _:
                raise PickleRefused("a numpy array whose state is not shape, type and bytes")


class _Number:
    """A stand-in for ``numpy.dtype`` that is a type of numbers and of nothing else."""

    __slots__ = ("dtype",)

    def __init__(self, spec: object) -> None:
        if not isinstance(spec, str):
            raise PickleRefused(f"a numpy dtype of {type(spec).__name__}")
        if not _NUMBER_TYPE.fullmatch(spec):
            raise PickleRefused(f"numpy dtype {spec[:40]!r}, which is no type of numbers")
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), str() as order, None, None, None, *_) if order in ("<", ">", "|", "="):
                self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]
            case _:
                raise PickleRefused("a numpy dtype with fields or a shape of its own")


class _StandIn:
    """A stand-in for a global: callable with the arguments that numpy's pickles have, and with no others."""

    __slots__ = ("_build", "name")

    def __init__(self, name: str, build: Callable[..., object] | None) -> None:
        self.name = name
        self._build = build

    def __call__(self, *arguments: object) -> object:
        """Return what the global would have made of the arguments. Raises `PickleRefused`."""
        try:
            if self._build is not None:
                return self._build(*arguments)
        except TypeError:
            pass
        raise PickleRefused(f"a call of {self.name} with {', '.join(type(item).__name__ for item in arguments[:4])}")

    def __setstate__(self, state: object) -> None:
        raise PickleRefused(f"a state set upon {self.name}")


def _to_array(raw: bytes | bytearray, kind: _Number, shape: Sequence[object], order: object) -> NDArray[Any]:
    sizes = [size for size in shape if isinstance(size, int) and not isinstance(size, bool) and size >= 0]
    if len(sizes) != len(shape) or len(shape) > 2 or math.prod(sizes) * kind.dtype.itemsize != len(raw):
        raise PickleRefused(f"a numpy array of shape {_shown(shape)} with {len(raw):,} bytes")
    if sizes and sizes[0] and not raw:
        raise PickleRefused(f"a numpy array of {sizes[0]:,} rows without a value")
    return np.frombuffer(raw, kind.dtype).reshape(sizes, order="F" if order == "F" else "C")


def _shown(shape: Sequence[object]) -> str:
    """Return a shape for a message; what is no number may be larger as text than any file."""
    sizes = [str(size) if isinstance(size, int) else type(size).__name__ for size in shape[:4]]
    return f"({', '.join(sizes)}{',' * (len(shape) == 1)})"


def _reconstruct(subtype: object, shape: object, _: object) -> PickledArray:
    if not (isinstance(subtype, _StandIn) and subtype.name == "numpy.ndarray") or shape != (0,):
        raise TypeError
    return PickledArray()


def _frombuffer(raw: object, kind: object, shape: object, order: object) -> PickledArray:
    if not (isinstance(raw, bytes | bytearray) and isinstance(kind, _Number) and isinstance(shape, tuple)):
        raise TypeError
    return PickledArray(_to_array(raw, kind, shape, order))


def _scalar(kind: object, raw: object) -> object:
    if not (isinstance(kind, _Number) and isinstance(raw, bytes)):
        raise TypeError
    return _to_array(raw, kind, (), "C").item()


def _dtype(spec: object, *_: object) -> _Number:
    return _Number(spec)


def _ordered() -> dict[object, object]:
    # What it holds is set afterwards.
    return {}


class PickledUuid:
    """A ``uuid.UUID`` of a pickle; its text is the UUID's."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = ""

    def __setstate__(self, state: object) -> None:
        match state:
            case {"int": int() as number} if 0 <= number < 1 << 128:
                self._text = str(UUID(int=number))
            case _:
                raise PickleRefused("a UUID whose state is not its number")

    def __str__(self) -> str:
        return getattr(self, "_text", "")


def _reconstructor(kind: object, base: object, state: object) -> PickledUuid:
    """Return the UUID, yet without its number, that protocols 0 and 1 make in this way."""
    if kind is not PickledUuid or not (isinstance(base, _StandIn) and base.name.endswith(".object")) or state:
        raise TypeError
    return PickledUuid()


def _no_bytes() -> bytes:
    return b""


_NUMPY: dict[str, dict[str, Callable[..., object]]] = {
    "multiarray": {"_reconstruct": _reconstruct, "scalar": _scalar},
    "numeric": {"_frombuffer": _frombuffer},
}
_GLOBALS: dict[tuple[str, str], Callable[..., object] | None] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): None,
    ("collections", "OrderedDict"): _ordered,
    ("uuid", "UUID"): None,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("builtins", "object"): None,
    ("__builtin__", "object"): None,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    **{
        (f"numpy.{core}.{module}", name): build
        for core in ("core", "_core")
        for module, builds in _NUMPY.items()
        for name, build in builds.items()
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False)
        self._encoded: dict[str, bytes] = {}

    def _encode(self, text: object, encoding: object) -> bytes:
        """Return the bytes of a text as protocols 0 to 2 write them, once for all places that refer to the text."""
        if not isinstance(text, str) or encoding != "latin1":
            raise TypeError
        if text not in self._encoded:
            self._encoded[text] = text.encode("latin1")
        return self._encoded[text]

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global that is admitted; no module is ever imported."""
        if (module, name) not in _GLOBALS:
            raise PickleRefused(f"the global {module[:100]}.{name[:100]}")
        if module == "uuid":
            # NEWOBJ makes an object of a class.
            return PickledUuid
        if module == "_codecs":
            return _StandIn(f"{module}.{name}", self._encode)
        return _StandIn(f"{module}.{name}", _GLOBALS[module, name])


def read_pickle(data: bytes, name: str) -> Any:
    """Return what a pickle holds, with `PickledArray` for every numpy array; ``name`` is its file, for messages.

    Raises `PickleRefused` saying what the pickle tried, before anything of it is executed. Of what is admitted, nothing
    is executed either.
    """
    found = scan(data)
    if found.refusal is not None:
        # What comes before a refused opcode may name what it was to act upon.
        data = data[: found.end] + pickle.STOP + data[found.end + 1 :]
    try:
        value = _Unpickler(data).load()
    except PickleRefused as error:
        raise _refused(name, f"it tries {error.message}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, BufferError) as error:
        raise _refused(name, found.refusal or _unsound(error)) from None
    except (MemoryError, RecursionError, OverflowError) as error:
        raise _refused(name, found.refusal or f"it asks for too much: {type(error).__name__}") from None
    if found.refusal is not None:
        raise _refused(name, found.refusal)
    return value


def _unsound(error: Exception) -> str:
    if str(error).startswith("NEWOBJ"):
        # Of all globals only UUID is a class.
        return "it tries opcode NEWOBJ of what is no UUID"
    return f"it is no sound pickle: {error}"


def _refused(name: str, what: str) -> PickleRefused:
    # A global may be called anything, half a surrogate pair too.
    what = what.encode("utf-8", "backslashreplace").decode()
    return PickleRefused(
        f"{name} is refused: {what}; nothing of it was executed",
        hint=f"a store's file holds {ADMITTED}; take it from a backup, and find out who wrote this one",
    )
