"""A source that reads slowly, so that a conversion lasts long enough to be disturbed in the middle."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_pipelines.sources.base import Entry, Reading
from data_pipelines.sources.unils_lmdb import ReleaseSource


@dataclass(frozen=True)
class SlowSource(ReleaseSource):
    """The release's files; each entry takes `delay_s` more."""

    delay_s: float = 0.0

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Entry], Reading]]:
        with super().open() as read:

            def slowly(entry: Entry) -> Reading:
                time.sleep(self.delay_s)
                return read(entry)

            yield slowly
