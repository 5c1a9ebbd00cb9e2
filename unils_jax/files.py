"""Files: outputs that appear whole or not at all, tables in Markdown, and untrusted .npz and .npy.

Arrays are read by `zipfile` and `np.lib.format`. All sizes are compared before memory is taken: a
file costs at most its own bytes and `MAX_BYTES` of arrays. Nothing is unpickled. Files behind URLs
(gs://, s3://, all that fsspec knows) are found here, too; Google's and Amazon's stores need the
packages `gcsfs` and `s3fs`.
"""

import codecs
import contextlib
import io
import math
import os
import re
import secrets
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np

from unils_jax.errors import UserError, one_line, shown
from unils_jax.runtime import hold_output, is_locked, refuse_url, room_on_disk, short_stem, user_cache

# Process numbers repeat on the machines that share a folder.
_PROCESS = secrets.token_hex(3)

# Two and a half hours of a person: 16 kHz float32 audio and 112 float32 channels of motion.
MAX_BYTES = 640 << 20
MAX_MEMBERS = 64
MAX_NDIM = 4
MAX_HEADER_BYTES = 4096
DEFLATE_MAX_RATIO = 1032  # what zlib's format can unfold at most
GET_ANOTHER = "get a fresh copy"
MAX_INDEX_BYTES = 1 << 20
MAX_TEXT_BYTES = 16 << 20
_END = b"PK\5\6" + bytes(18)  # of a zip archive without members and comment
# What zipfile, zlib and NumPy raise on damage; RuntimeError includes NotImplementedError and
# RecursionError.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, KeyError,
    RuntimeError, OverflowError, MemoryError,
)  # fmt: skip


def check_output(path: str | os.PathLike, *suffixes: str, hold: bool = True) -> Path:
    """Returns `path` as a Path after checking that a file can be written there.

    Called before the work starts, so that an hour of decoding is not lost to a typing mistake.
    Missing parent folders are made. Within `outputs_held` it holds the file's lock from here on,
    unless `hold` is false: for files that several processes of one run share. Raises UserError when
    the suffix is not one of `suffixes`, the folder is not writable, or another process makes the
    file.
    """
    refuse_url(path, "output")
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"output {path} must end in {' or '.join(suffixes)}, got {path.suffix or 'no suffix'!r}")
    try:
        if path.is_dir():
            raise UserError(f"output {path} is a folder; name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another output folder") from None
    if hold:
        hold_output(path)
    return path


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path, renamed to `path` on success and removed on failure.

    It is on disk before it appears: what is there after a power cut is whole. Partial files of
    other processes, also on other machines, have other names. Raises UserError where there is
    no room.
    """
    path = Path(path)
    partial = path.with_name(f".{short_stem(path)}.{os.getpid()}-{_PROCESS}.partial{path.suffix}")
    try:
        with room_on_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text as UTF-8, whole or not at all, as `atomic_output` does."""
    with atomic_output(path) as partial:
        partial.write_text(text, encoding="utf-8")


def clear_partials(folder: Path) -> None:
    """Removes what killed processes left of files in a folder.

    The caller holds the folder's lock: others write there only single files whose locks they hold.
    """
    for path in folder.glob(".*.partial*"):
        lock = path.with_name(re.sub(r"\.\d+-[0-9a-f]+\.partial", "", path.name) + ".lock")
        if not is_locked(lock):
            with contextlib.suppress(OSError):  # a folder, which its own writer removes
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, after which a renamed file survives a power cut."""
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        _sync(folder)


def read_lines(path: str | os.PathLike, *, names: bool = False) -> list[str]:
    """Reads the lines of a text file as any editor or shell may have written it.

    That is UTF-8 or UTF-16, with a byte-order mark or without, lines ending as on any system, or in
    a NUL as `find -print0` writes them. With `names`, bytes that are no text become what Python
    keeps them as in a path. Raises OSError, UnicodeDecodeError, and UserError for a file of more
    than `MAX_TEXT_BYTES`.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{shown(path)} has over {MAX_TEXT_BYTES} bytes, the limit of a list or table; cut it up")
    encoding = "utf-8-sig"
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    elif not len(data) % 2:
        # Latin text in UTF-16 has a zero in nearly every pair of bytes, a list with NULs few.
        for first, guess in ((1, "utf-16-le"), (0, "utf-16-be")):
            encoding = guess if data[first::2].count(0) > len(data) // 4 else encoding
    text = data.decode(encoding, "surrogateescape" if names and encoding == "utf-8-sig" else "strict")
    return re.split("\r\n|\n|\r|\0", text.rstrip("\r\n\0"))


def markdown_table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Returns rows, their head first, as the lines of a Markdown table.

    Cells may hold text of strangers: what cannot be printed (new lines, lone surrogates, which
    no file takes) becomes `?`, and a `|` does not end its cell.
    """
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _cell(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value)).replace("|", "\\|")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_npz(source: bytes | memoryview, names: Sequence[str], *, origin: str) -> dict[str, np.ndarray]:
    """Reads the arrays `names`, as far as the archive `source` holds them.

    They are fresh, native-endian and C-contiguous: booleans, integers, floats and text of at most
    `MAX_NDIM` dimensions. Other members are not read. Raises UserError, naming `origin` and the
    array, for anything that is not a whole, honest archive within the bounds.
    """
    with _damage_named(origin):
        return _read_archive(io.BytesIO(source), len(source), names)


def read_npz_file(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays as `read_npz` does. Raises UserError also where `path` is no plain file."""
    with _opened(Path(path)) as file, _damage_named(str(path)):
        return _read_archive(file, os.fstat(file.fileno()).st_size, names)


def npz_names(path: str | os.PathLike) -> list[str]:
    """Returns the names of the arrays of a .npz file. Raises UserError as `read_npz_file` does."""
    read_npz_file(path, ())  # the index is checked before zipfile reads it here
    with _opened(Path(path)) as file, _damage_named(str(path)), zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npy_file(path: str | os.PathLike) -> np.ndarray:
    """Reads the array of a .npy file as `read_npz` does. Raises UserError, naming the file."""
    with _opened(Path(path)) as file, _damage_named(str(path)):
        return _read_array(file, "array", os.fstat(file.fileno()).st_size)


def npy_shape(path: str | os.PathLike) -> tuple[int, ...]:
    """Returns the shape of a .npy file's array. Raises UserError for a broken file and a scalar."""
    with _opened(Path(path)) as file, _damage_named(str(path)):
        shape = _read_header(file, "array", os.fstat(file.fileno()).st_size)[1]
    if not shape:
        raise UserError(f"{path} holds a single number, must be an array; {GET_ANOTHER}")
    return shape


@contextlib.contextmanager
def _damage_named(origin: str) -> Iterator[None]:
    """Turns what broken files make the libraries raise into a UserError that names `origin`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's about headers that Python 2 wrote, Python's about odd literals
            yield
    except UserError as error:
        raise UserError(f"{origin} {error}") from None
    except _BROKEN as error:
        raise UserError(f"{origin} is truncated or damaged ({one_line(error, 120)}); {GET_ANOTHER}") from None


def _opened(path: Path) -> io.BufferedIOBase:
    if not path.is_file():
        raise UserError(f"{path} {'is no plain file' if path.exists() else 'does not exist'}; check the path")
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None


def _read_archive(file: io.BufferedIOBase, size: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the arrays `names` after comparing the sizes of all members with the archive's."""
    if size > MAX_BYTES:
        raise UserError(f"has {size} bytes, at most {MAX_BYTES} are read; cut the record into shorter ones")
    # Looked at before zipfile reads the index. NumPy writes no comment behind the end, and an
    # archive of this size needs no zip64 locator before it.
    file.seek(max(0, size - len(_END) - 20))
    locator, found, end = file.read().rpartition(_END[:4])
    if not found or len(end) != len(_END) - 4 or locator.startswith(b"PK\6\7"):
        raise UserError(f"is no .npz archive, or has a damaged zip index; {GET_ANOTHER}")
    count, index_bytes = struct.unpack_from("<HL", end, 6)
    if count > MAX_MEMBERS or index_bytes > MAX_INDEX_BYTES:
        raise UserError(f"holds {count} members, at most {MAX_MEMBERS} are read; keep only the arrays of the record")
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(archive.infolist()) != count:
            raise UserError(f"has a damaged zip index; {GET_ANOTHER}")
        if len(members) != count:
            raise UserError(f"holds two members of one name; {GET_ANOTHER}")
        wanted = {name: members[f"{name}.npy"] for name in dict.fromkeys(names) if f"{name}.npy" in members}
        for name, member in wanted.items():
            _check_member(name, member)
        total = sum(member.file_size for member in wanted.values())
        if total > MAX_BYTES:
            raise UserError(f"unfolds to {total} bytes, at most {MAX_BYTES} are read; cut the record into shorter ones")
        arrays = {}
        for name, member in wanted.items():
            with archive.open(member) as opened:
                arrays[name] = _read_array(opened, name, member.file_size)
        return arrays


def _check_member(name: str, member: zipfile.ZipInfo) -> None:
    packed, size, stored = member.compress_size, member.file_size, member.compress_type == zipfile.ZIP_STORED
    if member.flag_bits & 1 or not (stored or member.compress_type == zipfile.ZIP_DEFLATED):
        raise UserError(f"holds {name!r} encrypted or in an unknown compression; write it with numpy.savez")
    if size != packed if stored else size > DEFLATE_MAX_RATIO * packed + 64:
        raise UserError(f"claims {size} bytes for {name!r}, which {packed} bytes cannot hold; {GET_ANOTHER}")


def _read_array(file: io.BufferedIOBase, name: str, size: int) -> np.ndarray:
    """Reads an array of `size` bytes with its header; memory is taken once both agree."""
    dtype, shape, fortran, start = _read_header(file, name, size)
    out = np.empty(size - start, np.uint8)
    filled = 0
    while filled < len(out):
        # In pieces, because zipfile copies what it reads.
        num_bytes = file.readinto(memoryview(out)[filled : filled + (1 << 20)])
        if not num_bytes:
            raise UserError(f"holds {name!r}, whose bytes end early; {GET_ANOTHER}")
        filled += num_bytes
    file.read(1)  # zipfile compares the checksum at the end, which an empty array would not reach
    array = np.ndarray(shape, dtype, buffer=out, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)


def _read_header(file: io.BufferedIOBase, name: str, size: int) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Returns data type, shape, whether in Fortran order, and the header's length.

    Raises UserError where they do not fit in `size` bytes.
    """
    head = file.read(12)
    if head[:8] not in (b"\x93NUMPY\1\0", b"\x93NUMPY\2\0") or len(head) < 12:
        raise UserError(f"holds {name!r}, which is no array of NumPy; {GET_ANOTHER}")
    version_1 = head[6] == 1
    start = 10 + int.from_bytes(head[8:10], "little") if version_1 else 12 + int.from_bytes(head[8:12], "little")
    if start - 12 > MAX_HEADER_BYTES:
        length = start - (10 if version_1 else 12)
        raise UserError(
            f"holds {name!r} with a header of {length} bytes, at most {MAX_HEADER_BYTES} are read; {GET_ANOTHER}"
        )
    whole = io.BytesIO(head[8:] + file.read(max(start - 12, 0)))
    read_header = np.lib.format.read_array_header_1_0 if version_1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read_header(whole, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # a hostile header can make NumPy and Python's parser raise nearly anything
        raise UserError(
            f"holds {name!r} with a header that is not an array's: {one_line(error, 80)}; {GET_ANOTHER}"
        ) from None
    if dtype.hasobject:
        raise UserError(f"holds {name!r} as pickled objects, which are never read; save plain arrays")
    if dtype.kind not in "biufU" or (dtype.kind != "U" and dtype.itemsize > 8):
        raise UserError(
            f"holds {name!r} of type {dtype.str[1:]!r}, must be bool, integer, float or text; save plain arrays"
        )
    # A zero in the shape must not hide an absurd number in it, nor text of no letters an absurd
    # number of texts.
    counts = math.prod(max(n, 1) for n in shape)
    if len(shape) > MAX_NDIM or min(shape, default=0) < 0 or counts * max(dtype.itemsize, 1) > MAX_BYTES:
        raise UserError(
            f"holds {name!r} of shape {str(shape)[:80]}, more than {MAX_BYTES} bytes; cut it into shorter ones"
        )
    needed = math.prod(shape) * dtype.itemsize
    if start + needed != size:
        raise UserError(f"holds {name!r} of {needed} bytes by its header and {size - start} in truth; {GET_ANOTHER}")
    return dtype, shape, fortran, start


# The packages that fsspec needs for a scheme.
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL."""
    return "://" in str(path)


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a URL and the path there."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(url.partition("://")[0])
        remedy = f"`pip install {package}`" if package else "use gs://, s3:// or a local folder"
        raise UserError(f"cannot open {url} ({one_line(error, 120)}); {remedy}") from None


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Raises a UserError for the errors of their own that libraries have for keys and networks.

    An OSError stays as it is: it may be of the local disk.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise unreadable(url, error) from None


def unreadable(url: str, error: Exception) -> UserError:
    """Returns the error of a URL that cannot be read."""
    return UserError(f"cannot read {url} ({one_line(error, 160)}); check address and access")


def cache_folder(kind: str) -> Path:
    """Returns the folder of fetched files: in `UNILS_CACHE`, else in the user's cache folder."""
    chosen = os.environ.get("UNILS_CACHE")
    cache = user_cache()
    if not chosen and cache is None:
        raise UserError(f"no home folder is known to keep fetched {kind} in; set UNILS_CACHE to a folder")
    folder = (Path(chosen) if chosen else cache / "unils_jax") / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
