"""Outputs that appear whole or not at all, and tables in Markdown."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from unils_jax.errors import UserError

# What writing fails with where a disk, a quota or a limit of the process leaves no room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Process numbers repeat on the machines that share a folder.
_PROCESS = secrets.token_hex(3)
_MAX_STEM_BYTES = 160  # a name has 255 bytes, of which the rest goes to what a partial file adds


def local_path(path: str | os.PathLike, what: str) -> Path:
    """Returns `path` as an absolute path without `..` and with the home folder for `~`.

    A shell leaves `~` alone behind `=`, and Orbax refuses `..`. Links in front of a `..` are followed, as
    the kernel does. Raises UserError, naming `what` it is, for a URL, which would become a folder of that
    name, where no home is known, and for a name that is not UTF-8, which TensorStore and Orbax cannot open.
    """
    text = os.fspath(path)
    refuse_url(text, what)
    if not text.isprintable() and any("\udc80" <= c <= "\udcff" for c in text):
        raise UserError(f"{what} {ascii(text)} has bytes that are not UTF-8 in its name; rename it")
    # A folder that is really called so wins: with the shell's `--flag ~` it could not be meant.
    if text.startswith("~") and not os.path.lexists(text.partition("/")[0]):
        text = expand_home(text)
        if text.startswith("~/") or text == "~":
            raise UserError(f"{what} {text}: no home folder is known; set HOME, or write the path out")
    path = Path(text)
    return path.resolve() if ".." in path.parts else path.absolute()


def expand_home(text: str) -> str:
    """Returns text with a leading `~` or `~user` replaced; as it is where no such home is known."""
    if os.environ.get("HOME") == "" and (text == "~" or text.startswith("~/")):
        return text  # Python would take the root for it
    return os.path.expanduser(text)


def refuse_url(path: str | os.PathLike, what: str) -> None:
    """Raises UserError where `path` is a URL: as a path of this machine it names a folder `gs:`."""
    scheme, colon, rest = os.fspath(path).partition(":/")
    if colon and scheme.isalnum() and (rest.startswith("/") or scheme.lower() in ("gs", "gcs", "s3")):
        raise UserError(
            f"{what} {path} is a URL; it must be a folder or file of this machine: mount the bucket, or write here and "
            "copy"
        )


def check_output(path: str | os.PathLike, *suffixes: str) -> Path:
    """Returns `path` as a Path after checking that a file can be written there.

    Called before the work starts, so that an hour of decoding is not lost to a typing mistake. Missing parent
    folders are made. Raises UserError when the suffix is not one of `suffixes` or the folder is not writable.
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
    return path


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder (same suffix): renamed to `path` on success, removed on failure.

    It is on disk before it appears: what is there after a power cut is whole. Partial files of other
    processes, also on other machines, have other names. Raises UserError where there is no room.
    """
    path = Path(path)
    stem = path.stem
    if len(os.fsencode(stem)) > _MAX_STEM_BYTES:
        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]
    partial = path.with_name(f".{stem}.{os.getpid()}-{_PROCESS}.partial{path.suffix}")
    try:
        with room_on_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, after which a renamed file survives a power cut."""
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        _sync(folder)


@contextlib.contextmanager
def room_on_disk(folder: str | os.PathLike) -> Iterator[None]:
    """Raises one UserError that names `folder` and its free space for whatever fails as its disk is full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise UserError(f"cannot write to {folder}: {no_room(folder)}") from error


def no_room(folder: str | os.PathLike) -> str:
    """Says that a folder has no room, how much is free, and what to do."""
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB"
    except OSError:
        free = "nothing that can be told"
    return f"no room is left on its disk or in the quota ({free} free); make room, then run the same command again"


def disk_is_full(error: BaseException | None) -> bool:
    """Decides whether an error, or one that led to it, says that there was no room to write.

    Libraries in C++ raise errors of their own, which keep the kernel's words.
    """
    words = [os.strerror(code) for code in _NO_ROOM]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in _NO_ROOM or any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


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
