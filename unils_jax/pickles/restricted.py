"""Reads pickles of untrusted files, FLAME's `.pkl` and PyTorch's `.pt`, without running them.

A pickle reaches plain containers, numbers and text, the callables of an allow-list, and instances
of `Inert`, which hold what was stored. File size, number of opcodes and depth are bounded.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping

from unils_jax.errors import UserError, one_line

MAX_BYTES = 1 << 30
MAX_OPCODES = 2_000_000
MAX_DEPTH = 100  # of containers inside containers; the releases' configs have fewer than 10
_KEY_TYPES = frozenset({str, bytes, int, float, bool, type(None)})
# Opcodes that plain data never needs: classes by other ways than GLOBAL, sets, buffers outside the
# file.
_FORBIDDEN = frozenset(
    "PERSID INST OBJ EXT1 EXT2 EXT4 NEWOBJ_EX EMPTY_SET ADDITEMS FROZENSET NEXT_BUFFER READONLY_BUFFER".split()
)
# Opcodes that put objects into a container, and how many they take off the stack; 0: all above the
# mark.
_FILLING = {
    **dict.fromkeys((pickle.APPEND, pickle.TUPLE1, pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD, pickle.BINPERSID), 1),
    **dict.fromkeys((pickle.TUPLE2, pickle.SETITEM), 2),
    pickle.TUPLE3: 3,
    **dict.fromkeys((pickle.APPENDS, pickle.SETITEMS, pickle.TUPLE, pickle.LIST, pickle.DICT), 0),
}
_KEYED = (pickle.SETITEM, pickle.SETITEMS, pickle.DICT)


class Inert:
    """An object of a foreign class, reduced to what was stored.

    `args` are the constructor's arguments, `state` is what BUILD gives. A subclass stands for one
    class of the pickle; it may override `set_state` to check the state.
    """

    __slots__ = ("args", "state")

    def __init__(self, *args: object) -> None:
        self.args, self.state = args, None

    def set_state(self, state: object) -> None:
        """Keeps the state that the pickle gives to the object."""
        self.state = state


class Global:
    """A callable of the allow-list, which REDUCE and NEWOBJ call and no opcode changes."""

    __slots__ = ("function",)

    def __init__(self, function: Callable) -> None:
        self.function = function


class _Unpickler(pickle._Unpickler):
    """Python's unpickler in Python: unlike the one in C it lets each opcode be overridden."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(
        self, data: bytes, allowed: Mapping[tuple[str, str], object], refer: Callable[[object], object] | None
    ) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="latin1")
        self.allowed, self.refer = allowed, refer
        self.bytes_to_copy = 2 * len(data) + (1 << 20)
        self.depths: dict[int, int] = {}  # by the id of a container
        self.kept: list[object] = []  # the containers, so that no id is used twice

    def find_class(self, module: str, name: str) -> object:
        """Returns the stand-in for a global. Raises UserError for one outside the allow-list."""
        if (module, name) not in self.allowed:
            shown = f"{module}.{name}"[:120]
            raise UserError(f"holds the forbidden global {shown!r} (never executed); use the file as published")
        value = self.allowed[module, name]
        return Global(value) if callable(value) else value

    def persistent_load(self, pid: object) -> object:
        """Passes persistent references on. Raises UserError where the caller expects none."""
        if self.refer is None:
            raise UserError("refers to objects outside the file, which its kind does not do; use the file as published")
        return self.refer(pid)

    def charge(self, items: object) -> None:
        """Counts text that a call may copy: a pickle can have one long text copied many times."""
        self.bytes_to_copy -= sum(len(item) for item in items if type(item) is str) if type(items) is tuple else 0
        if self.bytes_to_copy < 0:
            raise pickle.UnpicklingError("it asks for far more memory than it holds")

    def load_call(self) -> None:
        """Calls a callable of the allow-list: all that REDUCE and NEWOBJ can do."""
        args, target = self.stack.pop(), self.stack[-1]
        if not (isinstance(target, Global) and isinstance(args, tuple)):
            raise pickle.UnpicklingError(f"it calls a {type(target).__name__}")
        self.charge(args)
        self.stack[-1] = target.function(*args)

    def load_state(self) -> None:
        """Gives an `Inert` object its state, and drops the attributes that torch hangs on dicts."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            self.charge(state)
            target.set_state(state)
        elif not isinstance(target, dict):
            raise pickle.UnpicklingError(f"it changes a {type(target).__name__}")


def _checked(load: Callable[[_Unpickler], None], opcode: bytes) -> Callable[[_Unpickler], None]:
    """Wraps an opcode that fills a container, so that depth and kinds of keys are bounded."""
    count = _FILLING[opcode]

    def checked_load(self: _Unpickler) -> None:
        items = self.stack[-count:]
        # Tuples as keys could make one hash take exponential time or overflow C's stack.
        if opcode in _KEYED and not all(type(key) in _KEY_TYPES for key in items[::2]):
            raise pickle.UnpicklingError("a key is neither text nor a number")
        depth = 1 + max((self.depths.get(id(item), 0) for item in items), default=0)
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"it nests over {MAX_DEPTH} containers")
        load(self)
        target = self.stack[-1]
        if isinstance(target, list | tuple | dict | Inert):
            self.kept.append(target)
            self.depths[id(target)] = max(depth, self.depths.get(id(target), 0))

    return checked_load


_handlers = _Unpickler.dispatch
_handlers[pickle.REDUCE[0]] = _handlers[pickle.NEWOBJ[0]] = _Unpickler.load_call
_handlers[pickle.BUILD[0]] = _Unpickler.load_state
_handlers[pickle.BYTEARRAY8[0]] = pickle._Unpickler.load_binbytes8  # which takes no memory ahead of the bytes
for _opcode in _FILLING:
    _handlers[_opcode[0]] = _checked(_handlers[_opcode[0]], _opcode)


def restricted_load(
    file: io.BufferedIOBase,
    allowed: Mapping[tuple[str, str], object],
    persistent_load: Callable[[object], object] | None = None,
    *,
    name: str = "pickle",
    max_bytes: int = MAX_BYTES,
) -> object:
    """Returns the object that the pickle in `file` describes, built from allow-listed parts only.

    Raises UserError, beginning with `name`, for a forbidden global, a truncated or damaged pickle,
    and one of more than `max_bytes` bytes, `MAX_OPCODES` opcodes or `MAX_DEPTH` nested containers.

    Args:
        file: Open for reading, binary.
        allowed: By (module, name) as the file has them; Python 2's names are not translated.
            Callables must be safe with any arguments.
        persistent_load: Resolves references to objects outside the pickle; None refuses them.
        name: Names the file in errors.
        max_bytes: The largest pickle that is read.
    """
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(
            f"{name} holds over {max_bytes} bytes of pickle, the limit for its kind; use a file as published"
        )
    try:
        _scan(data)
        return _Unpickler(data, allowed, persistent_load).load()
    except UserError as error:
        raise UserError(f"{name} {error}") from None
    except Exception as error:  # a hostile pickle can make the unpickler raise nearly anything
        raise UserError(f"{name} is not a pickle that can be read ({one_line(error)}); get a fresh copy") from None


def _scan(data: bytes) -> None:
    """Walks the opcodes without acting on them. Raises for too many and for forbidden ones."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if count > MAX_OPCODES:
            raise UserError(f"has over {MAX_OPCODES} opcodes, far more than its kind needs; use the file as published")
        if opcode.name in _FORBIDDEN:
            raise pickle.UnpicklingError(f"it uses the opcode {opcode.name}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= count:
            raise pickle.UnpicklingError(f"memo index {argument}")
