"""What a reader of users' files is to the harness."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostile.mutate import Sample

from data_pipelines.sources.base import SkippedEntry
from unils_jax.errors import UserError


@dataclass(frozen=True)
class Reader:
    """How a kind of file is made in a folder, and read from there as the commands do it."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    only: tuple[str, ...] = ()  # beginnings of the paths that are damaged; (): all
    damage: Callable[[Sample, int], Sample] | None = None  # instead of `mutated`
    apart: bool = False  # True: an input is one file of the sample, damaged, without the others
    mend: Callable[[Sample], Sample] | None = None  # what an attacker would make fit afterwards
    refusals: tuple[type[Exception], ...] = (UserError, SkippedEntry)
