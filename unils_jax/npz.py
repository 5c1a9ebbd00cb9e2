"""Arrays out of a stranger's .npz archive: nothing is unpickled, nothing allocated that the archive cannot back.

The zip index and the array headers are parsed here, so that every size is known and bounded before memory is taken: an
archive costs at most its own bytes and `MAX_BYTES` of arrays. Source: PKWARE's application note on .zip, NumPy's
description of the .npy format.
"""

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unils_jax.errors import UserError

# Two and a half hours of a person: 16 kHz float32 audio and 112 float32 channels of motion.
MAX_BYTES = 640 << 20
MAX_MEMBERS = 64
MAX_NDIM = 4
MAX_HEADER_BYTES = 4096
PIECE_BYTES = 1 << 20
DEFLATE_MAX_RATIO = 1032  # what zlib's format can unfold at most
GET_ANOTHER = "get a fresh copy"

_END = struct.Struct("<4s4H2LH")  # end of central directory
_ENTRY = struct.Struct("<4s6H3L5H2L")  # central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # before a member's bytes
_STORED, _DEFLATED, _ENCRYPTED = 0, 8, 1
_HEADER = re.compile(
    r"\{'descr': ?'([<>|=]?)([a-zA-Z?])(\d{0,9})', ?'fortran_order': ?(True|False), ?'shape': ?\(([\dL, ]*)\),? ?\}\s*"
)


class _Member(NamedTuple):
    name: str
    method: int
    crc: int
    packed: memoryview
    size: int


def read_npz(source: bytes | memoryview, names: Sequence[str], *, origin: str) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that the archive `source` holds, as fresh native-endian C-contiguous arrays.

    Booleans, integers, floats and text of at most `MAX_NDIM` dimensions; other members are not looked at. Raises
    UserError, naming `origin` and the array, for anything that is not a whole, honest archive within the bounds.
    """
    view = memoryview(source)
    if len(view) > MAX_BYTES:
        raise UserError(
            f"{origin} has {len(view)} bytes, at most {MAX_BYTES} are read; cut the record into shorter ones"
        )
    try:
        members = _index(view)
        wanted = [members[name] for name in dict.fromkeys(names) if name in members]
        total = sum(member.size for member in wanted)
        if total > MAX_BYTES:
            raise UserError(f"unfolds to {total} bytes, at most {MAX_BYTES} are read; cut the record into shorter ones")
        return {member.name: _array(member) for member in wanted}
    except UserError as error:
        raise UserError(f"{origin} {error}") from None
    except (struct.error, ValueError, zlib.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{origin} is truncated or damaged ({what}); {GET_ANOTHER}") from None


def read_npz_file(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """`read_npz` of a file. Raises UserError, naming the file, also where it cannot be read or is no plain file."""
    return read_npz(_content(Path(path)), names, origin=str(path))


def read_npy_file(path: str | os.PathLike) -> np.ndarray:
    """The one array of a .npy file, as `read_npz` gives arrays. Raises UserError, naming the file."""
    view = memoryview(_content(Path(path)))
    return _of_npy(path, lambda: _array(_Member("array", _STORED, zlib.crc32(view), view, len(view))))


def npy_shape(path: str | os.PathLike) -> tuple[int, ...]:
    """The shape of a .npy file's array of at least one axis, from its head. Raises UserError as reading does."""
    view = memoryview(_content(Path(path), 12 + MAX_HEADER_BYTES))
    member = _Member("array", _STORED, 0, view, Path(path).stat().st_size)
    shape = _of_npy(path, lambda: _header(bytes(view), member)[1])
    if not shape:
        raise UserError(f"{path} holds a single number, must be an array; {GET_ANOTHER}")
    return shape


def _of_npy(path: str | os.PathLike, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({' '.join(str(error).split())[:120]}); {GET_ANOTHER}"
        ) from None


def _content(path: Path, most: int = MAX_BYTES + 1) -> bytes:
    """A plain file's bytes, `most` of them."""
    if not path.is_file():
        raise UserError(f"{path} {'is no plain file' if path.exists() else 'does not exist'}; check the path")
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None


def _index(view: memoryview) -> dict[str, _Member]:
    """The members of a zip archive whose name ends in `.npy`, by the name before that."""
    tail_start = max(0, len(view) - _END.size - 0xFFFF)
    end = bytes(view[tail_start:]).rfind(b"PK\5\6")
    if end < 0:
        raise UserError(f"is no .npz archive, or its end is missing; {GET_ANOTHER}")
    end += tail_start
    _, disk, first_disk, here, count, index_size, index_start, comment = _END.unpack_from(view, end)
    if disk or first_disk or here != count or end + _END.size + comment != len(view):
        raise UserError(f"has a damaged zip index; {GET_ANOTHER}")
    if count > MAX_MEMBERS:
        raise UserError(f"holds {count} members, at most {MAX_MEMBERS} are read; keep only the arrays of the record")
    if index_start + index_size != end:
        raise UserError(
            f"has a zip index of {index_size} bytes at {index_start}, which is not before its end; {GET_ANOTHER}"
        )
    members: dict[str, _Member] = {}
    position = index_start
    for _ in range(count):
        name, member, position = _entry(view, position, index_start)
        if name in members:
            raise UserError(f"holds two members of the name {name!r}; {GET_ANOTHER}")
        members[name] = member
    if position != end:
        raise UserError(f"has a zip index that is longer than its {count} members; {GET_ANOTHER}")
    return {name.removesuffix(".npy"): m for name, m in members.items() if name.endswith(".npy")}


def _entry(view: memoryview, position: int, index_start: int) -> tuple[str, _Member, int]:
    fields = _ENTRY.unpack_from(view, position)
    magic, flags, method, crc, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
    name_size, extra_size, comment_size, start = *fields[10:13], fields[16]
    name_start = position + _ENTRY.size
    raw_name = bytes(view[name_start : name_start + name_size])
    if magic != b"PK\1\2" or len(raw_name) != name_size:
        raise UserError(f"has a damaged zip index; {GET_ANOTHER}")
    name = raw_name.decode("utf-8", "replace").encode("ascii", "replace").decode()
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise UserError(f"holds {name!r} encrypted or in an unknown compression; write it with numpy.savez")
    local = _LOCAL.unpack_from(view, start)
    first = start + _LOCAL.size + local[9] + local[10]
    local_name = view[start + _LOCAL.size : start + _LOCAL.size + local[9]]
    if local[0] != b"PK\3\4" or local[3] != method or local_name != raw_name or first + packed > index_start:
        raise UserError(f"has a zip index that does not agree with its member {name!r}; {GET_ANOTHER}")
    if size > (packed if method == _STORED else DEFLATE_MAX_RATIO * packed + 64) or (
        method == _STORED and size < packed
    ):
        raise UserError(f"claims {size} bytes for {name!r}, which {packed} bytes cannot hold; {GET_ANOTHER}")
    member = _Member(name.removesuffix(".npy"), method, crc, view[first : first + packed], size)
    return name, member, name_start + name_size + extra_size + comment_size


def _pieces(member: _Member) -> Iterator[bytes | memoryview]:
    """The member's bytes in pieces of at most `PIECE_BYTES`, however much they would unfold to."""
    packed = member.packed
    if member.method == _STORED:
        for start in range(0, len(packed), PIECE_BYTES):
            yield packed[start : start + PIECE_BYTES]
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    # Small slices of input: what is not consumed yet is copied at every turn.
    for start in range(0, len(packed), 1 << 16):
        pending = packed[start : start + (1 << 16)]
        while True:
            piece = inflate.decompress(pending, PIECE_BYTES)
            if piece:
                yield piece
            pending = inflate.unconsumed_tail
            if not pending and len(piece) < PIECE_BYTES:
                break
    if not inflate.eof or inflate.unused_data:
        raise UserError(f"holds {member.name!r}, whose compressed bytes end early or late; {GET_ANOTHER}")


def _array(member: _Member) -> np.ndarray:
    """The array of a member; memory for it is taken only after its header agrees with the member's size."""
    pieces, head, done = _pieces(member), b"", False
    while not done and len(head) < min(member.size, 12 + MAX_HEADER_BYTES):
        piece = next(pieces, None)
        done = piece is None
        head += b"" if done else bytes(piece)
    dtype, shape, fortran, start = _header(head, member)
    out = np.empty(member.size - start, np.uint8)
    crc, filled = zlib.crc32(head), len(head) - start
    if filled > len(out):
        raise UserError(f"holds {member.name!r}, which unfolds to more than it claims; {GET_ANOTHER}")
    out[:filled] = np.frombuffer(head, np.uint8)[start:]
    for piece in pieces:
        crc, first, filled = zlib.crc32(piece, crc), filled, filled + len(piece)
        if filled > len(out):
            raise UserError(f"holds {member.name!r}, which unfolds to more than it claims; {GET_ANOTHER}")
        out[first:filled] = np.frombuffer(piece, np.uint8)
    if filled != len(out) or crc != member.crc:
        raise UserError(f"holds {member.name!r}, whose bytes are damaged (checksum or length); {GET_ANOTHER}")
    array = np.ndarray(shape, dtype, buffer=out, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)


def _header(head: bytes, member: _Member) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Data type, shape, whether in Fortran order, and where the elements begin: checked against the member's size."""
    name = member.name
    sizes = {(1, 0): "<H", (2, 0): "<L", (3, 0): "<L"}.get(tuple(head[6:8]))
    if head[:6] != b"\x93NUMPY" or sizes is None:
        raise UserError(f"holds {name!r}, which is no array of NumPy; {GET_ANOTHER}")
    (length,) = struct.unpack_from(sizes, head, 8)
    start = 8 + struct.calcsize(sizes) + length
    text = head[start - length : start].decode("latin1")
    if length > MAX_HEADER_BYTES or len(text) != length:
        raise UserError(
            f"holds {name!r} with a header of {length} bytes, at most {MAX_HEADER_BYTES} are read; {GET_ANOTHER}"
        )
    match = _HEADER.fullmatch(text)
    if match is None:
        raise UserError(f"holds {name!r} with a header that is not an array's: {text[:80]!r}; {GET_ANOTHER}")
    order, kind, item, fortran, dims = match.groups()
    if kind == "O":
        raise UserError(f"holds {name!r} as pickled objects, which are never read; save plain arrays")
    if kind not in "biufU" or (kind != "U" and item not in ("1", "2", "4", "8")) or int(item or 0) > MAX_BYTES:
        raise UserError(
            f"holds {name!r} of type {kind + item!r}, must be bool, integer, float or text; save plain arrays"
        )
    dtype = np.dtype(f"{order}{kind}{item}")
    shape = tuple(int(d.strip().removesuffix("L")) for d in dims.split(",") if d.strip())
    needed = math.prod(shape) * dtype.itemsize
    # A zero in the shape must not hide an absurd number beside it, nor text of no letters an absurd number of texts.
    if len(shape) > MAX_NDIM or math.prod(max(d, 1) for d in shape) * max(dtype.itemsize, 1) > MAX_BYTES:
        raise UserError(f"holds {name!r} of shape {dims[:80]!r}, more than {MAX_BYTES} bytes; cut it into shorter ones")
    if start + needed != member.size:
        raise UserError(
            f"holds {name!r} of {needed} bytes by its header and {member.size - start} in truth; {GET_ANOTHER}"
        )
    return dtype, shape, fortran == "True", start
