"""Stores behind a URL (gs://, s3://, all that fsspec knows): files are fetched once and checked.

Tested with fsspec's in-memory and local file systems. Google's and Amazon's need `gcsfs` and
`s3fs` and were not tested against the real services.
"""

import hashlib
import os
import shutil
import threading
from pathlib import Path

import fsspec

from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.runtime import user_cache

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}
# Threads of one process ask for the same shard at the same time.
_FETCHING = threading.Lock()


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a store's path is a URL."""
    return "://" in str(path)


def read_text(url: str, name: str) -> str:
    """Reads a small file of a remote store. Raises UserError where it is not there."""
    file_system, path = _locate(url, name)
    try:
        return file_system.cat_file(path).decode()
    except FileNotFoundError:
        raise UserError(f"{url} is no store: it has no {name}; copy the whole store there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {url}/{name} ({error}); check address and access") from None


def fetch(url: str, name: str, sha256: str, num_bytes: int) -> Path:
    """Returns the local copy of a file of a remote store, fetched where it is not there yet.

    Copies are kept by checksum under `cache_folder()`, appear whole, and may be fetched by several
    processes at once. Raises UserError where the file cannot be read or is not what its store's
    manifest says.
    """
    local = cache_folder() / sha256[:2] / sha256
    with _FETCHING:
        if not (local.is_file() and local.stat().st_size == num_bytes):
            _copy(url, name, sha256, local)
    return local


def _copy(url: str, name: str, sha256: str, local: Path) -> None:
    file_system, path = _locate(url, name)
    try:
        # fsspec's caches show a file while it is being fetched, which other processes would read.
        with atomic_output(local) as partial:
            file_system.get_file(path, str(partial))
            with open(partial, "rb") as copy:
                digest = hashlib.file_digest(copy, "sha256").hexdigest()
            if digest != sha256:
                raise UserError(f"{url}/{name} is damaged: its checksum is not its manifest's; copy the store again")
    except OSError as error:
        free = shutil.disk_usage(cache_folder()).free >> 20
        raise UserError(
            f"cannot fetch {url}/{name} ({error}) to {cache_folder()} ({free} MiB free); check address, access and "
            "disk, or set UNILS_CACHE to another folder"
        ) from None


def cache_folder() -> Path:
    """Returns the folder of fetched files: in `UNILS_CACHE`, else in the user's cache folder."""
    chosen = os.environ.get("UNILS_CACHE")
    cache = user_cache()
    if not chosen and cache is None:
        raise UserError("no home folder is known to keep fetched stores in; set UNILS_CACHE to a folder")
    folder = (Path(chosen) if chosen else cache / "unils_jax") / "stores"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _locate(url: str, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a store and the path of one of its files there."""
    try:
        return fsspec.core.url_to_fs(f"{url.rstrip('/')}/{name}")
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(url.partition("://")[0])
        remedy = f"`pip install {package}`" if package else "use gs://, s3:// or a local folder"
        raise UserError(f"cannot open {url} ({' '.join(str(error).split())[:120]}); {remedy}") from None
