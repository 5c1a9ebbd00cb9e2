"""Stores behind a URL (gs://, s3://, all that fsspec knows): files are fetched once and checked."""

import hashlib
import shutil
import threading
from pathlib import Path

import fsspec

from unils_jax import files
from unils_jax.errors import UserError
from unils_jax.files import atomic_output, cache_folder, is_remote

__all__ = ["fetch", "is_remote", "read_text"]

# Threads of one process ask for the same shard at the same time.
_FETCHING = threading.Lock()


def read_text(url: str, name: str) -> str:
    """Reads a small file of a remote store. Raises UserError where it is not there."""
    file_system, path = _locate(url, name)
    try:
        with files.reading(f"{url}/{name}"):
            return file_system.cat_file(path).decode()
    except FileNotFoundError:
        raise UserError(f"{url} is no store: it has no {name}; copy the whole store there") from None
    except OSError as error:
        raise files.unreadable(f"{url}/{name}", error) from None


def fetch(url: str, name: str, sha256: str, num_bytes: int) -> Path:
    """Returns the local copy of a file of a remote store, fetched where it is not there yet.

    Copies are kept by checksum in the folder `stores` of `UNILS_CACHE`, else of the user's cache,
    appear whole, and may be fetched by several processes at once. Raises UserError where the file
    cannot be read or is not what its store's manifest says.
    """
    local = cache_folder("stores") / sha256[:2] / sha256
    with _FETCHING:
        if not (local.is_file() and local.stat().st_size == num_bytes):
            _copy(url, name, sha256, local)
    return local


def _copy(url: str, name: str, sha256: str, local: Path) -> None:
    file_system, path = _locate(url, name)
    try:
        # fsspec's caches show a file while it is being fetched, which other processes would read.
        with atomic_output(local) as partial:
            with files.reading(f"{url}/{name}"):
                file_system.get_file(path, str(partial))
            with open(partial, "rb") as copy:
                digest = hashlib.file_digest(copy, "sha256").hexdigest()
            if digest != sha256:
                raise UserError(f"{url}/{name} is damaged: its checksum is not its manifest's; copy the store again")
    except OSError as error:
        folder = cache_folder("stores")
        free = shutil.disk_usage(folder).free >> 20
        raise UserError(
            f"cannot fetch {url}/{name} ({error}) to {folder} ({free} MiB free); check address, access and "
            "disk, or set UNILS_CACHE to another folder"
        ) from None


def _locate(url: str, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a store and the path of one of its files there."""
    return files.locate(f"{url.rstrip('/')}/{name}")
