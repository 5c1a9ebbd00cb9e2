"""Heads by their name or file."""

import os

from unils_jax.face.flame import FlameAsset
from unils_jax.face.flame_file import load_flame
from unils_jax.face.standin import standin_asset


def load_head(name_or_path: str | os.PathLike | None) -> FlameAsset:
    """Returns the stand-in head for None and "standin", the FLAME head of the file for a path."""
    return standin_asset() if name_or_path in (None, "standin") else load_flame(name_or_path)
