"""Checkpoints behind a URL: what a model takes of one is fetched once and kept."""

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unils_jax.errors import UserError, one_line
from unils_jax.files import cache_folder, locate, reading, unreadable
from unils_jax.runtime import room_on_disk

log = logging.getLogger(__name__)

# By which file systems tell that a file is another one now.
_MARKS = ("size", "ETag", "etag", "md5Hash", "crc32c", "generation", "LastModified", "updated", "mtime", "created")


def fetch(url: str, weights: str) -> Path:
    """Returns a local copy of the checkpoint at a URL: a file, a step's folder, or a workdir.

    Only what `load` reads is copied: a workdir's newest step without its optimiser, and its
    adapters; with a file the JSON of its name. Copies are kept in `UNILS_CACHE` or the user's cache
    folder as long as nothing at the URL changes, and appear whole. Raises UserError where there is
    no checkpoint, and where it cannot be read.

    Args:
        url: The address.
        weights: The item of a workdir that holds the wanted weights.
    """
    file_system, root = locate(url.rstrip("/"))
    try:
        with reading(url):
            if is_file := file_system.isfile(root):
                both = [root, str(PurePosixPath(root).with_suffix(".json"))]
                listed = {name: file_system.info(name) for name in both if file_system.isfile(name)}
                root = str(PurePosixPath(root).parent)
            else:
                listed = file_system.find(root, detail=True)
    except OSError as error:
        raise unreadable(url, error) from None
    files = {name[len(root) :].lstrip("/"): about for name, about in listed.items()}
    chosen = files if is_file else {name: files[name] for name in _chosen(files, weights)}
    if not chosen:
        raise UserError(f"{url} holds no checkpoint; give a workdir after its first save, a step's folder or a file")
    digest = hashlib.blake2b(repr([url, sorted(map(_marks, chosen.items()))]).encode(), digest_size=16).hexdigest()
    last = url.rstrip("/").rpartition("/")[2]
    folder = cache_folder("checkpoints") / digest
    if not folder.is_dir():
        log.info("fetching %s: %.1f MB", url, sum(about.get("size") or 0 for about in chosen.values()) / 1e6)
        with _appearing(folder) as partial:
            for name in chosen:
                copy = partial / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                with reading(url):
                    file_system.get_file(f"{root}/{name}", str(copy))
    return folder / last if last in chosen else folder


def _chosen(files: Mapping[str, Any], weights: str) -> Iterator[str]:
    """Yields the names of the files of a folder that `load` reads."""
    if any(".." in PurePosixPath(name).parts for name in files):
        raise UserError("the checkpoint has files with `..` in their names; copy it under other names")
    steps = [PurePosixPath(name).parts for name in files if name.endswith("meta/metadata")]
    numbers = [int(parts[1]) for parts in steps if len(parts) == 4 and parts[0] == "checkpoints" and parts[1].isdigit()]
    step = f"checkpoints/{max(numbers)}/" if numbers else ""
    if not step and "meta/metadata" not in files:
        return
    for name in files:
        inside = name.removeprefix(step)
        if inside.partition("/")[0] in ("meta", "frozen", weights) and name.startswith(step):
            yield name
        elif name.startswith("adapters/"):
            yield name


def _marks(file: tuple[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    name, about = file
    return name, [str(about.get(mark)) for mark in _MARKS]


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yields a folder that gets its name once it is filled; other processes may fill theirs."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(3)}.partial")
    try:
        with room_on_disk(folder.parent):
            partial.mkdir()
            yield partial
            if not folder.is_dir():
                with contextlib.suppress(OSError):  # another process was quicker
                    os.rename(partial, folder)
    except OSError as error:
        raise UserError(f"cannot fetch a checkpoint to {folder.parent} ({one_line(error, 160)}); try again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
