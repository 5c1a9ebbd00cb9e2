"""Files behind a URL (gs://, s3://, all that fsspec knows), and where copies of them are kept.

Google's and Amazon's stores need the packages `gcsfs` and `s3fs`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec

from unils_jax.errors import UserError, one_line
from unils_jax.runtime import user_cache

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
