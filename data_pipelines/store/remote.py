"""Stores behind a URL (gs://, s3://, whatever fsspec knows): files are fetched once into a cache folder and checked.

Tested with fsspec's in-memory and local file systems; Google's and Amazon's need `gcsfs` and `s3fs` and were not
tested against the real services.
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
    """Whether a store's path is a URL."""
    return "://" in str(path)


def read_text(url: str, name: str) -> str:
    """A small file of a remote store. Raises UserError where it is not there."""
    try:
        with _file_system(url).open(f"{url.rstrip('/')}/{name}", "rb") as file:
            return file.read().decode()
    except FileNotFoundError:
        raise UserError(f"{url} is no store: it has no {name}; copy the whole store there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {url}/{name} ({error}); check address and access") from None


def fetch(url: str, name: str, sha256: str, num_bytes: int) -> Path:
    """The local copy of a file of a remote store, fetched where it is not there yet.

    Copies are kept by checksum under `cache_folder()`, appear whole, and may be fetched by several processes at once.
    Raises UserError where the file cannot be read or is not what its store's manifest says.
    """
    local = cache_folder() / sha256[:2] / sha256
    with _FETCHING:
        if not (local.is_file() and local.stat().st_size == num_bytes):
            _copy(url, name, sha256, local)
    return local


def _copy(url: str, name: str, sha256: str, local: Path) -> None:
    digest = hashlib.sha256()
    try:
        with atomic_output(local) as partial:
            with _file_system(url).open(f"{url.rstrip('/')}/{name}", "rb") as source, open(partial, "wb") as copy:
                while block := source.read(1 << 22):
                    digest.update(block)
                    copy.write(block)
            if digest.hexdigest() != sha256:
                raise UserError(f"{url}/{name} is damaged: its checksum is not its manifest's; copy the store again")
    except OSError as error:
        free = shutil.disk_usage(cache_folder()).free >> 20
        raise UserError(
            f"cannot fetch {url}/{name} ({error}) to {cache_folder()} ({free} MiB free); check address, access and "
            "disk, or set UNILS_CACHE to another folder"
        ) from None


def cache_folder() -> Path:
    """Where fetched files are kept: `UNILS_CACHE`, else in the user's cache folder."""
    chosen = os.environ.get("UNILS_CACHE")
    cache = user_cache()
    if not chosen and cache is None:
        raise UserError("no home folder is known to keep fetched stores in; set UNILS_CACHE to a folder")
    folder = (Path(chosen) if chosen else cache / "unils_jax") / "stores"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file_system(url: str) -> fsspec.AbstractFileSystem:
    scheme = str(url).partition("://")[0]
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme)
        remedy = f"`pip install {package}`" if package else "use gs://, s3:// or a local folder"
        raise UserError(f"cannot open {url} ({' '.join(str(error).split())[:120]}); {remedy}") from None
