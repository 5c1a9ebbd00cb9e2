"""Rebuilds pickled NumPy arrays after checking their bytes against data type and shape.

NumPy's own functions, which a pickle names, accept object arrays and shapes without data.
"""

import math
import pickle

import numpy as np

from unils_jax.pickles.restricted import MAX_BYTES, Inert

MAX_NDIM = 8
_DTYPE_CODES = {"b1", *(f"{kind}{size}" for kind in "iu" for size in "1248"), "f2", "f4", "f8"}


class PickledDtype(Inert):
    """A pickled `numpy.dtype` of numbers or booleans: a code such as 'f8', then the byte order."""

    __slots__ = ()

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype. Raises pickle.UnpicklingError for anything but plain numbers."""
        code = self.args[0] if self.args else None
        if not isinstance(code, str) or code.lstrip("<>|=") not in _DTYPE_CODES:
            shown = repr(code)[:40] if isinstance(code, str | int) else type(code).__name__
            raise pickle.UnpicklingError(f"an array has dtype {shown}; only plain numbers are read")
        order = code[0] if code[0] in "<>" else "="
        if isinstance(self.state, tuple) and len(self.state) > 1 and self.state[1] in ("<", ">", "|", "="):
            order = self.state[1]
        return np.dtype(code.lstrip("<>|=")).newbyteorder(order)


class PickledArray(Inert):
    """A pickled `numpy.ndarray`; `array` is a checked, read-only view of the pickle's bytes."""

    __slots__ = ("array",)

    def set_state(self, state: object) -> None:
        """Sets `array` from NumPy's five parts. Raises pickle.UnpicklingError for other states."""
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("an array has a state of an unknown layout")
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran is True else "C")


def _array(data: object, dtype: object, shape: object, order: str) -> np.ndarray:
    """Returns the array after checking that `data` holds exactly the elements of `shape`.

    Any argument may be of any type, as the pickle has it. `order` is "C" or "F".
    """
    if isinstance(data, str):  # Python 2 wrote the bytes as a string
        data = _encode(data)
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"an array's data is {type(data).__name__}, not bytes")
    if not isinstance(dtype, PickledDtype):
        raise pickle.UnpicklingError(f"an array's dtype is {type(dtype).__name__}, not numpy.dtype")
    plain = isinstance(shape, tuple) and all(isinstance(n, int) and 0 <= n <= MAX_BYTES for n in shape)
    if not plain or len(shape) > MAX_NDIM:
        raise pickle.UnpicklingError("an array's shape is not a few plain counts")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {list(shape)} {dtype.dtype} holds {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(*_: object) -> PickledArray:
    """Replaces `numpy.core.multiarray._reconstruct`; shape and data come with the state."""
    return PickledArray()


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> PickledArray:
    """Replaces `numpy.core.numeric._frombuffer`, which pickles of protocol 5 use."""
    made = PickledArray()
    made.array = _array(data, dtype, shape, "F" if order == "F" else "C")
    return made


def _scalar(dtype: object, data: object) -> int | float | bool:
    """Replaces `numpy.core.multiarray.scalar` and returns a plain Python number."""
    return _array(data, dtype, (), "C").item()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Replaces `_codecs.encode` for latin1, in which Python 3 writes bytes into old pickles."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("_codecs.encode is read for text in latin1 only")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Replaces `bytes()`, as old protocols write an empty array's data."""
    return b""


def _reconstructor(cls: object, *_: object) -> Inert:
    """Replaces `copyreg._reconstructor` and returns a stateless instance of an inert class."""
    function = getattr(cls, "function", None)
    if not (isinstance(function, type) and issubclass(function, Inert)):
        raise pickle.UnpicklingError("copyreg._reconstructor is read for known classes only")
    return function()


# What arrays and plain objects need; spread it into an allow-list. `object` is the base that Python
# 2 names.
NUMPY_GLOBALS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _no_bytes for module in ("__builtin__", "builtins")},
    **{(module, "object"): Inert for module in ("__builtin__", "builtins")},
    **{(module, "_reconstructor"): _reconstructor for module in ("copy_reg", "copyreg")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


def unwrap(value: object) -> object:
    """Returns the array of a `PickledArray` (None where it has none), anything else unchanged."""
    return getattr(value, "array", None) if isinstance(value, PickledArray) else value
