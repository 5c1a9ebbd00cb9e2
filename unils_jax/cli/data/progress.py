"""The progress of long work: a bar on a terminal, lines in a log."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress:
    """The progress of long work: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, verb: str):
        self.verb, self.started, self.last = verb, time.monotonic(), 0.0
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            layout = "{l_bar}{bar}| {postfix} [{elapsed} gone, {remaining} left]"
            self.bar = tqdm(total=1.0, file=sys.stderr, bar_format=layout, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, hours: float, share: float) -> None:
        """Shows the hours of conversation that are done, and the share of the work, 0 to 1."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.verb} {hours:.2f} h", refresh=False)
            self.bar.update(share - self.bar.n)
            return
        gone = time.monotonic() - self.started
        # Between the first line and the last, one every ten seconds is enough for a log file.
        if share < 1 and gone - self.last < 10:
            return
        self.last = gone
        left = gone / share - gone if share else 0.0
        log.info("%s %.2f h, %.0f %%, about %.0f s left", self.verb, hours, 100 * share, left)
