"""Outputs that appear whole or not at all, and tables in Markdown."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from unils_jax.errors import UserError


def check_output(path: str | os.PathLike, *suffixes: str) -> Path:
    """Returns `path` as a Path after checking that a file can be written there.

    Called before the work starts, so that an hour of decoding is not lost to a typing mistake. Missing parent
    folders are made. Raises UserError when the suffix is not one of `suffixes` or the folder is not writable.
    """
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
    """Yields a temporary path beside `path` (same suffix); renamed to `path` on success, removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def durable_output(path: str | os.PathLike) -> Iterator[Path]:
    """`atomic_output`, and on disk before it appears: a file that is there after a power cut is whole."""
    path = Path(path)
    with atomic_output(path) as partial:
        yield partial
        _sync(partial)
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        _sync(path.parent)


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
