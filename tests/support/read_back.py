"""What is on disk read back whole: the bytes of a folder's files, and all that a source makes of its entries."""

from pathlib import Path

from data_pipelines.sources.base import Reading, SkippedEntry, Source


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_all(source: Source) -> dict[tuple[str, str], Reading | SkippedEntry]:
    """Readings, and reasons of what is left out, by split and name."""
    got = {}
    with source.open() as read:
        for entry in source.entries():
            try:
                got[entry.split, entry.name] = read(entry)
            except SkippedEntry as dropped:
                got[entry.split, entry.name] = dropped
    return got
