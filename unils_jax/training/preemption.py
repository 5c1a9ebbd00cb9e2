"""Being told to stop by a cluster: finish the running step, save it, and ask by the exit status to be run again."""

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: what launch/ tells SLURM and Kubernetes to run again


class Preempted(Exception):
    """Training was told to stop, and has saved `step`."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"stopped by {reason} after step {step}, which is saved")
        self.step = step


class PreemptionGuard:
    """A context manager under which the first SIGTERM or SIGUSR1 is noted, to be looked at between steps.

    The second one ends the process at once, as does any signal outside of the context.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._received_s = 0.0

    def __enter__(self) -> "PreemptionGuard":
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Nothing is logged here: the main thread may be in the middle of writing a log line.
        self.reason, self._received_s = signal.Signals(number).name, time.monotonic()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return bool(self.reason)

    def waited_s(self) -> float:
        """Seconds since it came; 0 where none came to this process."""
        return time.monotonic() - self._received_s if self.requested else 0.0
