"""Reads pickles from strangers without running them: an exact allow-list, inert stand-ins for every class, size caps.

What a pickle can reach while it loads is: Python's plain containers and numbers, the callables of the allow-list
behind a wrapper that nothing can be written to, and instances of `Inert` classes. NumPy arrays are not rebuilt by
NumPy's own functions (they accept object arrays and shapes without data) but by `PickledArray`, which checks the
bytes against dtype and shape first. Neither torch, chumpy nor SciPy is imported.
"""

import contextvars
import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unils_jax.errors import UserError

MAX_BYTES = 1 << 30
MAX_OPCODES = 2_000_000
MAX_ARRAY_NDIM = 8
_DTYPE_CODES = {f"{kind}{size}" for kind, sizes in (("i", "1248"), ("u", "1248"), ("f", "248")) for size in sizes}
_DTYPE_CODES |= {"b1"}
_copies_left: contextvars.ContextVar[int] = contextvars.ContextVar("bytes that the load in progress may still copy")


def _copy(num_bytes: int) -> None:
    """Counts a copy: a small pickle can ask for the same long string to be encoded a million times."""
    left = _copies_left.get() - num_bytes
    if left < 0:
        raise pickle.UnpicklingError("it asks for far more memory than it holds")
    _copies_left.set(left)


class _Frozen(type):
    """A metaclass whose classes cannot be written to: a pickle's BUILD may name a class, not only an instance."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"a pickle tried to change {cls.__name__}.{name}")

    def __delattr__(cls, name: str) -> None:
        raise pickle.UnpicklingError(f"a pickle tried to change {cls.__name__}.{name}")


class Inert(metaclass=_Frozen):
    """An object of a foreign class, reduced to what was stored: constructor arguments in `args`, state in `state`.

    Subclass it to stand for a class of the pickle; subclasses may override `__setstate__` to check the state.
    """

    __slots__ = ("args", "state")

    def __new__(cls, *args: Any) -> "Inert":
        self = object.__new__(cls)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "state", None)
        return self

    def __init__(self, *args: Any) -> None:
        pass

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"a pickle tried to change {type(self).__name__}.{name}")

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "state", state)


class PickledDtype(Inert):
    """`numpy.dtype` as pickled: a code such as 'f8', then the byte order. Numbers and booleans only."""

    __slots__ = ()

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype. Raises pickle.UnpicklingError for objects, strings, records and subclasses of numbers."""
        code = self.args[0] if self.args else None
        if not isinstance(code, str) or code.lstrip("<>|=") not in _DTYPE_CODES:
            raise pickle.UnpicklingError(f"an array has dtype {code!r}; only plain numbers are read")
        order = code[0] if code[0] in "<>" else "="
        if isinstance(self.state, tuple) and len(self.state) > 1 and self.state[1] in ("<", ">", "|", "="):
            order = self.state[1]
        return np.dtype(code.lstrip("<>|=")).newbyteorder(order)


class PickledArray(Inert):
    """`numpy.ndarray` as pickled; `array` is the checked array (a read-only view of the pickle's bytes)."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("an array has a state of an unknown layout")
        _, shape, dtype, fortran, data = state
        _fill(self, data, dtype, shape, "F" if fortran else "C")


def _fill(target: PickledArray, data: Any, dtype: Any, shape: Any, order: str) -> None:
    """Sets `target.array` after checking that `data` holds exactly the elements that `shape` asks for."""
    if isinstance(data, str):  # Python 2 wrote the bytes as a string
        data = _encode(data)
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(f"an array's data is {type(data).__name__}, not bytes")
    if not isinstance(dtype, PickledDtype):
        raise pickle.UnpicklingError(f"an array's dtype is {type(dtype).__name__}, not numpy.dtype")
    plain = isinstance(shape, tuple) and all(isinstance(n, int) and 0 <= n <= MAX_BYTES for n in shape)
    if not plain or len(shape) > MAX_ARRAY_NDIM:
        raise pickle.UnpicklingError(f"an array has the shape {str(shape)[:80]}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {list(shape)} {dtype.dtype} holds {len(data)} bytes")
    if isinstance(data, bytearray):
        _copy(len(data))
    array = np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order)
    object.__setattr__(target, "array", array)


def _reconstruct(*_: Any) -> PickledArray:
    """`numpy.core.multiarray._reconstruct`: an empty array; shape and data come with the state."""
    return PickledArray()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str) -> PickledArray:
    """`numpy.core.numeric._frombuffer`, which pickles of protocol 5 use."""
    array = PickledArray()
    _fill(array, data, dtype, shape, "F" if order == "F" else "C")
    return array


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    """`numpy.core.multiarray.scalar`, as a plain Python number."""
    array = PickledArray()
    _fill(array, data, dtype, (), "C")
    return array.array.item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, for the one encoding in which Python 3 writes bytes into old pickles."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode with the encoding {str(encoding)[:40]!r} is not read")
    _copy(len(text))
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()`, as old protocols write an empty array's data."""
    return b""


def _reconstructor(cls: Any, *_: Any) -> Inert:
    """`copyreg._reconstructor`: an instance without state of one of our inert classes."""
    if not (isinstance(cls, type) and issubclass(cls, Inert)):
        raise pickle.UnpicklingError("copyreg._reconstructor is read for known classes only")
    return cls()


class _Object(Inert):
    """`builtins.object`, which Python 2 names as the base in `copy_reg._reconstructor`."""

    __slots__ = ()


# What arrays and plain objects need; spread it into an allow-list.
NUMPY_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("__builtin__", "object"): _Object,
    ("builtins", "object"): _Object,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Call:
    """A callable of the allow-list that a pickle can call and nothing else: no attribute can be set on it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a pickle tried to change a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a pickle tried to change a function")


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows the globals of `allowed` and no other.

    Inert classes are handed out as they are (a pickle may instantiate them), any other callable behind a wrapper,
    any other value as it is. Use `restricted_load`, which also bounds sizes and words the errors.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        allowed: Mapping[tuple[str, str], Any],
        persistent_load: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(file, fix_imports=False, encoding="latin1")
        self._allowed = allowed
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global. Raises UserError naming a global that is not in the allow-list."""
        if (module, name) not in self._allowed:
            shown = f"{module}.{name}"[:120]
            raise UserError(f"holds the forbidden global {shown!r} (never executed); use the file as published")
        value = self._allowed[module, name]
        return _Call(value) if callable(value) and not isinstance(value, _Frozen) else value

    def persistent_load(self, pid: Any) -> Any:
        """Passes persistent references on. Raises UserError where the caller expects none."""
        if self._persistent_load is None:
            raise UserError("refers to objects outside the file, which its kind does not do; use the file as published")
        return self._persistent_load(pid)


def restricted_load(
    file: io.BufferedIOBase,
    allowed: Mapping[tuple[str, str], Any],
    persistent_load: Callable[[Any], Any] | None = None,
    *,
    name: str = "pickle",
    max_bytes: int = MAX_BYTES,
) -> Any:
    """The object that the pickle in `file` (open for reading, binary) describes, built from allow-listed parts only.

    Keys of `allowed` are (module, name) exactly as they stand in the file: Python 2's names are not translated.
    Values that are callable must be safe with any arguments. Arrays come as `PickledArray`: see `unwrap`.
    Raises UserError, beginning with `name`, for a forbidden global, a truncated or damaged pickle, and one of more
    than `max_bytes` bytes or `MAX_OPCODES` opcodes.
    """
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(
            f"{name} holds over {max_bytes} bytes of pickle, the limit for its kind; use a file as published"
        )
    token = _copies_left.set(2 * len(data) + (1 << 20))
    try:
        _scan(data)
        return RestrictedUnpickler(io.BytesIO(data), allowed, persistent_load).load()
    except UserError as error:
        raise UserError(f"{name} {error}") from None
    except Exception as error:  # a hostile pickle can make the unpickler raise nearly anything
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name} is not a pickle that can be read ({detail}); get a fresh copy") from None
    finally:
        _copies_left.reset(token)


def _scan(data: bytes) -> None:
    """Walks the opcodes without acting on them: complete to STOP, of bounded number, memo indices without gaps.

    The unpickler would allocate for a memo index or a string length before it notices that the file is too short.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if count > MAX_OPCODES:
            raise UserError(f"has over {MAX_OPCODES} opcodes, far more than its kind needs; use the file as published")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= count:
            raise pickle.UnpicklingError(f"memo index {argument}")


def unwrap(value: Any) -> Any:
    """The array of a `PickledArray`; anything else unchanged."""
    return getattr(value, "array", None) if isinstance(value, PickledArray) else value
