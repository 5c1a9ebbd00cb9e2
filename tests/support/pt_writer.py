"""Writes files in the layout of torch.save without torch, honest ones and, for the reader's tests, dishonest ones."""

import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

STORAGE_CLASSES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "bool": "BoolStorage",
}


@dataclass(frozen=True)
class Raw:
    """Pickle opcodes that leave one object on the stack, put where a value would stand."""

    opcodes: bytes


@dataclass(frozen=True)
class Window:
    """A tensor given by its storage; `numel`, `offset`, `size` and `stride` may lie."""

    storage: np.ndarray
    offset: Any
    size: Any
    stride: Any
    numel: Any = None
    storage_class: str | None = None
    parameter: bool = False


@dataclass
class _Pickle:
    storages: list[np.ndarray] = field(default_factory=list)

    def value(self, value: Any) -> bytes:
        """The opcodes (protocol 2) that push `value`."""
        if isinstance(value, Raw):
            return value.opcodes
        if value is None or value is True or value is False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            length = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.value, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.value, value)) + b"e"
        if isinstance(value, dict):
            new = global_("collections", "OrderedDict") + b")R" if isinstance(value, OrderedDict) else b"}"
            return new + b"(" + b"".join(self.value(k) + self.value(v) for k, v in value.items()) + b"u"
        return self.tensor(value)

    def tensor(self, value: Window | np.ndarray) -> bytes:
        if isinstance(value, np.ndarray):
            stride = tuple(s // value.itemsize for s in np.empty(value.shape, value.dtype).strides)
            value = Window(np.asarray(value, order="C").reshape(-1), 0, value.shape, stride)
        number = next((i for i, held in enumerate(self.storages) if held is value.storage), len(self.storages))
        if number == len(self.storages):
            self.storages.append(value.storage)
        numel = value.storage.size if value.numel is None else value.numel
        storage_class = value.storage_class or STORAGE_CLASSES[value.storage.dtype.name]
        pid = (Raw(global_("torch", storage_class)), str(number), "cpu", numel)
        storage = Raw(self.value(("storage", *pid)) + b"Q")
        arguments = (storage, value.offset, value.size, value.stride, False, OrderedDict())
        tensor = global_("torch._utils", "_rebuild_tensor_v2") + self.value(arguments) + b"R"
        if value.parameter:
            arguments = (Raw(tensor), True, OrderedDict())
            tensor = global_("torch._utils", "_rebuild_parameter") + self.value(arguments) + b"R"
        return tensor


def global_(module: str, name: str) -> bytes:
    """The opcode that pushes a global."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def call(module: str, name: str, *arguments: Any) -> Raw:
    """Opcodes that call a global: what a malicious pickle does."""
    return Raw(global_(module, name) + _Pickle().value(arguments) + b"R")


def write_pt(
    path: Path,
    checkpoint: dict[str, Any],
    extra_pickle: Raw | None = None,
    *,
    byte_order: str = "little",
    members: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Writes `checkpoint` (usually {"model": {key: array}, "meta_cfg": dict}) as torch.save would; returns `path`.

    Arrays may be NumPy arrays or `Window`s. extra_pickle: opcodes added as one more entry, "extra". members: further
    members, or other contents of the usual ones. Bytes repeat: the same checkpoint gives the same file.
    """
    pickled = _Pickle()
    if extra_pickle is not None:
        checkpoint = {**checkpoint, "extra": extra_pickle}
    opcodes = b"\x80\x02" + pickled.value(checkpoint) + b"."
    contents = {"data.pkl": opcodes, ".format_version": b"1", ".storage_alignment": b"64"}
    contents["byteorder"] = byte_order.encode()
    swap = byte_order == "big"
    for number, storage in enumerate(pickled.storages):
        contents[f"data/{number}"] = (storage.byteswap() if swap else storage).tobytes()
    contents |= {"version": b"3\n", ".data/serialization_id": b"0" * 40, **(members or {})}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(f"{Path(path).stem}/{name}")
            info.compress_type = compression
            archive.writestr(info, content)
    return path
