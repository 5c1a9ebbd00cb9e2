"""Archives that mean harm, or are broken, and what is said of each."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from foreign_data import npz


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<L", len(text)) + text + data


def archive(member: bytes, name: str = "audio.npy", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr(name, member)
    return buffer.getvalue()


def header(shape: str = "(3,)", descr: str = "<f4") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"


def with_index(content: bytes, field: int, value: int, size: str = "<L") -> bytes:
    """The archive with a field of its first entry in the zip index changed; `field` is its offset there."""
    at = content.index(b"PK\1\2") + field
    return content[:at] + struct.pack(size, value) + content[at + struct.calcsize(size) :]


def bomb(gigabytes: int) -> bytes:
    """An honest-looking .npy of zeros: a thousandth of its size in the file."""
    size = gigabytes << 30
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = npy(header(f"({size},)", "|u1"))
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush a block knows nothing of what was before it, and can stand any number of times.
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = start + block * (size >> 24) + packer.flush()
    name, total = b"audio.npy", size + len(head)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), min(total, 2**32 - 1), len(name), 0)
    entry = (b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(packed), min(total, 2**32 - 1), len(name), 0, 0, 0, 0, 0, 0)
    index = struct.pack("<4s6H3L5H2L", *entry) + name
    start = len(local) + len(name) + len(packed)
    return local + name + packed + index + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(index), start, 0)


class Runs:
    """Unpickles as a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


GOOD = archive(npy(header(), bytes(12)))
HOSTILE = {
    "a header of 10^12 elements": (archive(npy(header("(1000000000000,)"), bytes(12))), "more than"),
    "a header of 10^12 elements, compressed": (
        archive(npy(header("(1000000000000,)"), bytes(12)), method=zipfile.ZIP_DEFLATED),
        "more than",
    ),
    "a shape beside zero": (archive(npy(header("(0, 1000000000000)"))), "more than"),
    "a header that claims a little more": (archive(npy(header("(4,)"), bytes(12))), "16 bytes by its header and 12"),
    "a header that claims a little less": (archive(npy(header("(2,)"), bytes(12))), "8 bytes by its header and 12"),
    "a number of a million digits": (archive(npy(header(f"({'9' * 4000},)"), bytes(12))), "holds 'audio'"),
    "five dimensions": (archive(npy(header("(1, 1, 1, 1, 3)"), bytes(12))), "more than"),
    "a long header": (archive(npy(header() + " " * 60_000, bytes(12))), "a header of 6"),
    "a header that claims four gigabytes": (
        archive(b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(40)),
        "a header of 4294967295 bytes",
    ),
    "code for a header": (
        archive(npy("__import__('os').system('true')", bytes(12))),
        "a header that is not an array's",
    ),
    "parentheses for a header": (archive(npy("(" * 4000, bytes(12))), "a header that is not an array's"),
    "text of a terabyte": (archive(npy(header("()", "<U999999999"))), "not a valid dtype descriptor: '<U999999999'"),
    "no letters, many texts": (archive(npy(header("(1000000000000,)", "<U0"))), "more than"),
    "complex numbers": (archive(npy(header("(1,)", "<c8"), bytes(8))), "of type 'c8'"),
    "records": (archive(npy(header("(1,)", "<V8"), bytes(8))), "of type 'V8'"),
    "no array": (archive(b"nothing at all"), "no array of NumPy"),
    "an empty member": (archive(b""), "no array of NumPy"),
    "a future version": (archive(npy(header(), bytes(12), b"\x09\0")), "no array of NumPy"),
    "no archive": (b"PK nothing", "no .npz archive"),
    "nothing": (b"", "no .npz archive"),
    "an end alone": (b"PK\5\6" + bytes(18), ""),
    "an index that lies about the size": (with_index(GOOD, 24, 1 << 30), "cannot hold"),
    "an index that lies about both sizes": (with_index(with_index(GOOD, 24, 1 << 20), 20, 1 << 20), "in truth"),
    "an index that claims four gigabytes": (with_index(GOOD, 24, 2**32 - 1), "cannot hold"),
    "an index that points elsewhere": (with_index(GOOD, 42, 7), "Bad magic number"),
    "an index that points behind the end": (with_index(GOOD, 42, 2**32 - 1), "damaged"),
    "another checksum": (with_index(GOOD, 16, 1), "Bad CRC-32"),
    "encrypted": (with_index(GOOD, 8, 1, "<H"), "encrypted"),
    "another compression": (archive(npy(header(), bytes(12)), method=zipfile.ZIP_LZMA), "unknown compression"),
    "sixty-five members": (npz(**{f"a{i}": np.zeros(1) for i in range(65)}), "65 members, at most 64"),
    "another name inside": (GOOD.replace(b"audio.npy", b"other.npy", 1), "differ"),
    "cut in half": (GOOD[: len(GOOD) // 2], "no .npz archive"),
    "without its last byte": (GOOD[:-1], "damaged"),
    "a byte more": (GOOD + b"x", "damaged zip index"),
}
