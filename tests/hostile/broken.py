"""Readers that fail, each in one of the ways that the harness has to notice."""

import os
from pathlib import Path

from hostile.reader import Reader

from unils_jax.errors import UserError


def _make(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(1000))


def _whole(folder: Path) -> bool:
    file = folder / "a"
    return file.is_file() and file.read_bytes() == bytes(1000)


def _raise(folder: Path) -> None:
    if not _whole(folder):
        raise KeyError("a")


def _two_lines(folder: Path) -> None:
    if not _whole(folder):
        raise UserError("a\nb")


def _end(folder: Path) -> None:
    if not _whole(folder):
        os.abort()


def _grow(folder: Path) -> None:
    if not _whole(folder):
        try:
            bytearray(3 << 30)
        except MemoryError as error:
            raise UserError(f"damaged ({type(error).__name__})") from None


def _run(folder: Path) -> None:
    if not _whole(folder):
        os.system("true")


READERS = {
    "broken: raises": Reader(_make, _raise),
    "broken: two lines": Reader(_make, _two_lines),
    "broken: ends": Reader(_make, _end),
    "broken: takes memory": Reader(_make, _grow),
    "broken: runs": Reader(_make, _run),
    "broken: not at all": Reader(_make, _whole),
}
