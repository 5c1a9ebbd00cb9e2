"""Units of work on a Ray cluster: actors, one unit each in flight, and what a lost node had again.

`ray` is an extra. An actor holds what a worker is made of (a compiled program, an open source) and
takes one unit after the other, so that no more units are in memory than there are actors. A unit
whose node or process is lost goes to another actor; one that fails ends the run with its own error.
"""

import contextlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from unils_jax.errors import UserError, counted, install_hint, one_line
from unils_jax.runtime import prepare

log = logging.getLogger(__name__)

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Work = Callable[[Unit], Iterable[Result]]

ENGINES = ("local", "ray")
# A unit, or an actor's start, that is lost so often is at fault itself.
TRIES = 3
# Seconds without any actor after which a line says what the cluster lacks.
_PATIENCE_S = 30.0
_LOGGERS = ("unils_jax", "data_pipelines")


@dataclass(frozen=True)
class Actors:
    """How many actors take units, and what each of them needs."""

    number: int | None = None  # None: one a device; without devices one a node, or one a CPU, see `compute`
    compute: bool = False  # True: each computes with a device of its own, or all CPUs of its node; False: on one CPU
    # Paths that every node must see: an actor checks them at its start; None and URLs are left out.
    shared: tuple[str | Path | None, ...] = ()

    def __post_init__(self):
        if self.number is not None and self.number < 1:
            raise UserError(f"--actors must be at least 1, got {self.number}")


def check_engine(engine: str, actors: int | None) -> None:
    """Raises UserError for a number of actors without Ray, and where Ray is not installed."""
    if engine != "ray":
        if actors is not None:
            raise UserError("--actors is of --engine ray; leave it away")
        return
    Actors(actors)
    _import_ray()


def on_ray(
    make: Callable[[], Work], units: Sequence[Unit], actors: Actors = Actors()
) -> Iterator[tuple[int, list[Result]]]:
    """Yields the number of each unit and all its results, in the order in which units are done.

    The cluster is the one that this process is connected to, else that of RAY_ADDRESS or of this
    machine's `ray start`, else one that is started on this machine for the time.

    Args:
        make: Returns, in the actor, what turns a unit into its results; picklable.
        units: Picklable; so are the results.
        actors: Their number and needs.

    Raises:
        UserError: Where no cluster is reached, where a node does not see a shared path, where a
            unit raises one, and where a unit is lost `TRIES` times.
        RuntimeError: Where a unit fails in another way, with the traceback from its node.
    """
    if not units:
        return
    ray = _import_ray()
    with _connected(ray):
        yield from _Pool(ray, make, units, actors).results()


def each(
    make: Callable[[], Work], units: Sequence[Unit], actors: Actors | None = None
) -> Iterator[tuple[int, Iterable[Result]]]:
    """Yields each unit's number and results: as `on_ray`, or with `actors=None` here, in order."""
    if actors is not None:
        yield from on_ray(make, units, actors)
    elif units:
        work = make()
        yield from ((number, work(unit)) for number, unit in enumerate(units))


def _import_ray() -> ModuleType:
    # Before the import: neither a report on the use nor a line about it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise UserError(f"--engine ray needs Ray: {install_hint('ray')}") from None
    return ray


@contextlib.contextmanager
def _connected(ray: ModuleType) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "of this machine")
        raise UserError(
            f"the Ray cluster {address} is not reached ({one_line(error, 120)}); start it with `ray start --head`, or "
            "unset RAY_ADDRESS"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


class _Actor:
    """Holds a worker on one node."""

    def start(self, make: Callable[[], Work], folder: str, shared: tuple[str | Path | None, ...]) -> None:
        """Makes the worker, in the folder where the command runs, where this node has it."""
        prepare()
        with contextlib.suppress(OSError):
            os.chdir(folder)
        missing = [path for path in shared if path and "://" not in str(path) and not Path(path).exists()]
        if missing:
            raise UserError(
                f"node {socket.gethostname()} does not see {missing[0]}; give paths on storage that all nodes share"
            )
        self.work = make()

    def run(self, unit: Unit) -> tuple[list[Result], list[tuple[str, int, str]]]:
        """Returns the results of a unit, and what was logged: its logger, level and line."""
        kept = _Lines()
        try:
            for name in _LOGGERS:
                logging.getLogger(name).addHandler(kept)
            return list(self.work(unit)), kept.lines
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(kept)


class _Lines(logging.Handler):
    """Keeps what is logged, for the process that gave the unit."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, record.levelno, record.getMessage()))


class _Pool:
    """The actors of one run, and the units that wait, are under way, or were lost."""

    def __init__(self, ray: ModuleType, make: Callable[[], Work], units: Sequence[Unit], actors: Actors):
        self.ray, self.make, self.units, self.shared = ray, make, units, actors.shared
        number, needs = _resources(ray, actors)
        self.number, self.needs = min(number, len(units)), needs
        self.actor = ray.remote(**needs)(_Actor)
        self.waiting = deque(range(len(units)))
        self.idle: deque[Any] = deque()
        # By the reference that is waited for: the actor, and the unit that it has; None: it starts.
        self.under_way: dict[Any, tuple[Any, int | None]] = {}
        self.lost: Counter[int | None] = Counter()  # how often, of a unit; of starts in a row

    def results(self) -> Iterator[tuple[int, list[Result]]]:
        """Yields each unit's number and results as it is done."""
        try:
            for _ in range(self.number):
                self._start()
            while self.waiting or any(index is not None for _, index in self.under_way.values()):
                while self.waiting and self.idle:
                    actor, index = self.idle.popleft(), self.waiting.popleft()
                    self.under_way[actor.run.remote(self.units[index])] = actor, index
                done, _ = self.ray.wait(list(self.under_way), num_returns=1, timeout=_PATIENCE_S)
                for reference in done:
                    yield from self._take(reference)
                if not done and all(index is None for _, index in self.under_way.values()):
                    log.warning("no actor for %g s: nodes are slow, or have no room for %s", _PATIENCE_S, self.needs)
        finally:
            for actor in [*self.idle, *(actor for actor, _ in self.under_way.values())]:
                self.ray.kill(actor)

    def _start(self) -> None:
        actor = self.actor.remote()
        self.under_way[actor.start.remote(self.make, os.getcwd(), self.shared)] = actor, None

    def _take(self, reference: Any) -> Iterator[tuple[int, list[Result]]]:  # noqa: ANN401 - a type of an extra
        actor, index = self.under_way.pop(reference)
        errors = self.ray.exceptions
        try:
            value = self.ray.get(reference)
        except errors.RayTaskError as error:
            self.ray.kill(actor)
            raise _failure(error) from None
        except errors.RayError as error:
            self.ray.kill(actor)
            self._again(index, one_line(error, 160))
            return
        self.idle.append(actor)
        self.lost[None] = 0
        if index is not None:
            results, lines = value
            for name, level, line in lines:
                logging.getLogger(name).log(level, "%s", line)
            yield index, results

    def _again(self, index: int | None, reason: str) -> None:
        """Puts a lost unit first in the queue, and asks for an actor in the lost one's place."""
        self.lost[index] += 1
        what = "an actor at its start" if index is None else f"unit {index + 1} of {len(self.units)}"
        if self.lost[index] == TRIES:
            remedy = "see whether its node has enough memory, or use fewer --actors"
            raise UserError(f"{what} was lost {counted(TRIES, 'time')} ({reason}); {remedy}")
        log.warning("lost %s, which begins again: %s", what, reason)
        if index is not None:
            self.waiting.appendleft(index)
        self._start()


def _failure(error: Exception) -> Exception:
    """Returns the error of a unit as it would be raised here; another one has its traceback."""
    cause = error.cause
    if isinstance(cause, UserError):
        return UserError(str(cause))
    if isinstance(cause, OSError):
        return UserError(f"a worker cannot go on: {one_line(cause)}; free space or mend the disk, then run it again")
    # One that names its place already has the traceback with it.
    return RuntimeError(str(cause) if type(cause) is RuntimeError else f"a worker failed:\n{error}")


def _resources(ray: ModuleType, actors: Actors) -> tuple[int, dict[str, Any]]:
    """Returns the number of actors and the options of each, as Ray has them."""
    has = ray.cluster_resources()
    spread = {"scheduling_strategy": "SPREAD", "num_cpus": 1}
    if actors.compute and has.get("GPU"):
        usual, needs = int(has["GPU"]), spread | {"num_gpus": 1}
    elif actors.compute and has.get("TPU"):
        usual, needs = int(has["TPU"]), spread | {"resources": {"TPU": 1}}
    elif actors.compute:
        usual, needs = sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes()), spread
    else:
        usual, needs = int(has.get("CPU", 1)), spread
    return actors.number or max(1, usual), needs
