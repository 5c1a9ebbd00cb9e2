"""Reads PyTorch's zip format without torch and without running pickled code.

An archive holds `<top>/data.pkl`, `<top>/data/<number>`, `<top>/byteorder` and bookkeeping. Globals
of the pickle come from an exact allow-list; tensors become checked windows into the members, which
are read when asked for. An untrusted file costs at most a small multiple of its size in memory.
Source: PyTorch's notes on serialization.
"""

import contextlib
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from unils_jax.errors import UserError
from unils_jax.pickles.restricted import restricted_load
from unils_jax.pickles.tree import expanded

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
RESAVE = "save it again with torch.save of PyTorch 1.6 or newer"
MAX_PICKLE_BYTES = 16 << 20
MAX_NDIM = 8
MAX_TENSOR_BYTES_PER_FILE_BYTE = 4  # tied tensors are stored once; anything beyond this is a bomb
BFLOAT16 = "bfloat16"
# torch's storage classes as the names of NumPy dtypes: strings, so that a pickle can do nothing
# with them.
STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
DTYPES = frozenset(STORAGES.values())


class _Storage(NamedTuple):
    """A run of `numel` elements in a member of the archive, not read yet."""

    dtype: str
    member: str
    numel: int


class _Tensor(NamedTuple):
    """A checked window into a storage; offset, size and strides count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> _Tensor:
    """Replaces `torch._utils._rebuild_tensor_v2`.

    Raises UserError where the window leaves its storage or repeats elements. Any argument may be of
    any type, as the pickle has it.
    """
    if not isinstance(storage, _Storage):
        raise UserError(f"holds a tensor without a storage; {RESAVE}")
    plain = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_NDIM
    if not plain or not all(map(_is_count, (offset, *size, *stride))):
        raise UserError(f"holds a tensor whose offset, sizes or strides are not plain counts; {RESAVE}")
    numel = math.prod(size)
    end = offset + (sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if numel else 0)
    if end > storage.numel or numel > storage.numel:
        raise UserError(
            f"holds a tensor of size {list(size)}, strides {list(stride)}, offset {offset}, which does not fit in its "
            f"storage of {storage.numel} elements; save contiguous tensors, or get a fresh copy"
        )
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor: object, *_: object) -> _Tensor:
    """Replaces `torch._utils._rebuild_parameter`: a parameter is read as its tensor."""
    if not isinstance(tensor, _Tensor):
        raise UserError(f"holds a parameter without a tensor; {RESAVE}")
    return tensor


ALLOWED_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): lambda: {},  # no arguments: a pickle could ask for many copies of a large one
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class Archive:
    """An open PyTorch zip file; members are stored, distinct and together no larger than it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.zip, self.file_bytes = path, archive, path.stat().st_size
        members = archive.infolist()
        self.members = {member.filename: member for member in members}
        tops = [name.removesuffix("/data.pkl") for name in self.members if name.endswith("/data.pkl")]
        if any(name.rpartition("/")[2] == "constants.pkl" for name in self.members):
            raise UserError(f"{path} is a TorchScript program, not a checkpoint; use the file that torch.save wrote")
        if len(tops) != 1 or "/" in tops[0]:
            raise UserError(f"{path} is a zip file but not one of torch.save; {RESAVE}")
        if len(self.members) != len(members):
            raise UserError(f"{path} holds two members of one name; get a fresh copy")
        # Sizes are compared before anything is read: no member can unfold, and none is read twice.
        stored = all(m.compress_type == zipfile.ZIP_STORED and m.compress_size == m.file_size for m in members)
        if not stored or sum(m.file_size for m in members) > self.file_bytes:
            raise UserError(f"{path} is compressed or its members overlap, which torch.save never does; {RESAVE}")
        self.top = tops[0]
        self.bytes_read: dict[str, bytes] = {}
        order = archive.read(f"{self.top}/byteorder") if f"{self.top}/byteorder" in self.members else b"little"
        if order not in (b"little", b"big"):
            raise UserError(f"{path} has the byte order {order[:20]!r}, must be little or big; get a fresh copy")
        self.byte_order = "<" if order == b"little" else ">"

    def load(self, further: Mapping[tuple[str, str], object] = MappingProxyType({})) -> object:
        """Returns the pickled object, tensors as `_Tensor`. `further` globals are allowed, too."""
        allowed = {**ALLOWED_GLOBALS, **further}
        with self.zip.open(f"{self.top}/data.pkl") as file:
            return restricted_load(file, allowed, self.storage, name=str(self.path), max_bytes=MAX_PICKLE_BYTES)

    def storage(self, pid: object) -> _Storage:
        """Returns the storage of a persistent id ("storage", class, key, device, elements)."""
        if not (type(pid) is tuple and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[2], str)):
            raise UserError(f"refers to something other than a storage; {RESAVE}")
        _, dtype, key, _, numel = pid
        if not isinstance(dtype, str) or dtype not in DTYPES or not _is_count(numel):
            raise UserError(f"holds a storage of an unknown kind; {RESAVE}")
        member = f"{self.top}/data/{key}"
        if member not in self.members:
            raise UserError(f"lacks the member {shown(member)}; get a fresh copy")
        held, expected = self.members[member].file_size, numel * _item_bytes(dtype)
        if held != expected:
            raise UserError(f"declares {expected} bytes for {shown(member)}, which holds {held}; get a fresh copy")
        return _Storage(dtype, member, numel)

    def array(self, tensor: _Tensor) -> np.ndarray:
        """Returns a read-only view of the bytes read, a copy for bfloat16 and other byte orders."""
        storage = tensor.storage
        if storage.member not in self.bytes_read:
            self.bytes_read[storage.member] = self.zip.read(storage.member)
        name = "uint16" if storage.dtype == BFLOAT16 else storage.dtype
        dtype = np.dtype(name).newbyteorder(self.byte_order)
        flat = np.frombuffer(self.bytes_read[storage.member], dtype)
        if math.prod(tensor.size) == 0:
            view = flat[:0].reshape(tensor.size)
        else:
            # The stride of an axis of length 1 is never taken and may be anything.
            steps = tuple(s * dtype.itemsize if n > 1 else 0 for n, s in zip(tensor.size, tensor.stride, strict=True))
            view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, steps, writeable=False)
        array = view.astype(dtype.newbyteorder("="), copy=False)
        return widen(array) if storage.dtype == BFLOAT16 else array


def shown(value: object) -> str:
    """Returns `value` as a piece of a one-line message."""
    return "".join(c if c.isprintable() else " " for c in str(value)[:160])


def _item_bytes(dtype: str) -> int:
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def widen(bfloat16: np.ndarray) -> np.ndarray:
    """Returns float32 from the 16 bits of bfloat16, exactly."""
    return np.left_shift(bfloat16.view(np.uint16), 16, dtype=np.uint32).view(np.float32)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a torch.save file. Raises UserError for every way in which a file can be broken."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None
    if head.startswith(LEGACY_MAGIC):
        raise UserError(
            f"{path} is in PyTorch's legacy format, which is not read because it cannot be bounded; {RESAVE}"
        )
    if not head.startswith(b"PK"):
        raise UserError(f"{path} is not a file of torch.save (it does not begin as a zip file); check the path")
    broken = (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, RuntimeError, OverflowError, struct.error)
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(path, archive)
    except UserError:
        raise
    except broken as error:  # NotImplementedError (strange zip versions) is a RuntimeError
        raise UserError(f"{path} is truncated or damaged ({shown(error)}); get a fresh copy") from None


def state_dict(archive: Archive, value: object) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dict by key. Raises UserError for anything but tensors."""
    if not isinstance(value, dict) or not value:
        raise UserError(f"{archive.path} holds no state dict (a dict of tensors); use the file as published")
    wrong = [shown(key) for key, item in value.items() if type(key) is not str or not isinstance(item, _Tensor)]
    if wrong:
        raise UserError(
            f"{archive.path}: {', '.join(wrong[:10])} of the state dict must be tensors; remove what is not"
        )
    total = sum(math.prod(t.size) * _item_bytes(t.storage.dtype) for t in value.values())
    if total > MAX_TENSOR_BYTES_PER_FILE_BYTE * archive.file_bytes:
        raise UserError(
            f"{archive.path} unfolds {archive.file_bytes} bytes into {total}, over "
            f"{MAX_TENSOR_BYTES_PER_FILE_BYTE} times as many; save contiguous tensors that do not share memory"
        )
    return {key: archive.array(tensor) for key, tensor in value.items()}


def with_arrays(archive: Archive, value: object) -> object:
    """Returns a loaded object with the array of each tensor, in dicts and lists.

    Raises UserError where it unfolds to far more than the file holds.
    """
    tensors: list[_Tensor] = []

    def note(item: object) -> object:
        tensors.extend([item] if isinstance(item, _Tensor) else [])
        return item

    copied = expanded(value, note)
    arrays = state_dict(archive, {str(i): tensor for i, tensor in enumerate(tensors)}) if tensors else {}
    in_order = iter(arrays.values())
    return expanded(copied, lambda item: next(in_order) if isinstance(item, _Tensor) else item)
