"""Work shared out over processes that end when their parent does, however it ends, or over Ray."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Protocol, TypeVar, runtime_checkable

from data_pipelines.cluster import Actors, Work, on_ray
from unils_jax.errors import UserError

Item = TypeVar("Item")
Done = TypeVar("Done")
# Handles one item, picklable: takes the item, a function that reports what is in work, and a
# function that reports what was done of it.
Task = Callable[[Item, Callable[[str], None], Callable[[Done], None]], None]

# How often progress is passed on while no item ends.
_PROGRESS_S = 0.2
# Messages below PIPE_BUF are written whole, so that a worker's death leaves none in half.
_MAX_TEXT = 1000


@runtime_checkable
class Engine(Protocol):
    """A place where a task runs once for each item; `done` is called in the caller's process."""

    def __call__(self, task: Task, items: Sequence[Item], *, done: Callable[[Done], None]) -> None:
        """Returns when all items are done. Raises the first failure."""


def run_here(task: Task, items: Sequence[Item], *, done: Callable[[Done], None]) -> None:
    """Calls `task` for every item in this process, one after the other."""
    for item in items:
        task(item, lambda _: None, done)


def run_in_processes(task: Task, items: Sequence[Item], num_workers: int, done: Callable[[Done], None]) -> None:
    """Calls `task` for every item in up to `num_workers` spawned processes; `done` is called here.

    The first failure ends all workers: a UserError is raised as it was, another exception as
    RuntimeError with its traceback, and the death of a worker as UserError that names what it had
    in work. The caller guards `__main__`.
    """
    if not items:
        return
    context = multiprocessing.get_context("spawn")
    messages: SimpleQueue = context.SimpleQueue()
    at: dict[int, str] = {}
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(num_workers, len(items)), context, _begin, (messages,))
    workers: set[BaseProcess] = set()
    try:
        with pool:
            try:
                pending = {pool.submit(_run, task, item) for item in items}
                workers = set(multiprocessing.active_children()) - others
                while pending:
                    pending = _wait(pending, messages, at, done)
            except BaseException:
                # The pool would let workers finish their items, which may take an hour.
                for worker in workers:
                    worker.kill()
                raise
    except BrokenProcessPool:
        _deliver(messages, at, done)
        raise _death(workers, at) from None


def processes(number: int) -> Engine:
    """Returns the engine of so many processes; 0: this one does the work."""
    if number < 0:
        raise UserError(f"workers must be at least 0 (no process of their own), got {number}")
    return partial(run_in_processes, num_workers=number) if number else run_here


def ray_actors(actors: Actors) -> Engine:
    """Returns the engine of the actors of a Ray cluster."""
    return partial(run_on_ray, actors=actors)


def run_on_ray(task: Task, items: Sequence[Item], actors: Actors, done: Callable[[Done], None]) -> None:
    """Calls `task` for every item in actors of a Ray cluster; `done` is called here, item by item.

    An item whose node is lost begins again on another one. Failures are as of
    `run_in_processes`.
    """
    for _, messages in on_ray(partial(_collecting, task), items, actors):
        for message in messages:
            done(message)


def _collecting(task: Task) -> Work:
    def work(item: Item) -> list[Done]:
        place, messages = ["its start"], []
        _guarded(task, item, partial(place.__setitem__, 0), messages.append, lambda: place[0])
        return messages

    return work


def _wait(pending: set[Future], messages: SimpleQueue, at: dict[int, str], done: Callable[[Done], None]) -> set[Future]:
    """Waits a moment and passes on what was done; returns the futures that are still pending."""
    finished, pending = wait(pending, _PROGRESS_S, FIRST_EXCEPTION)
    _deliver(messages, at, done)
    for future in finished:
        future.result()
    return pending


def _deliver(messages: SimpleQueue, at: dict[int, str], done: Callable[[Done], None]) -> None:
    while not messages.empty():
        process, is_done, value = messages.get()
        if is_done:
            done(value)
        else:
            at[process] = value


def _death(workers: set[BaseProcess], at: dict[int, str]) -> UserError:
    # The pool ends the other workers with SIGTERM once one is dead.
    codes = {worker.pid: worker.exitcode or 0 for worker in workers}
    process = next((pid for pid, code in codes.items() if code not in (0, -signal.SIGTERM)), None)
    code = codes.get(process, -signal.SIGTERM)
    how = signal.Signals(-code).name if code < 0 else f"status {code}"
    where = at.get(process, " and ".join(at.values()) if process is None and at else "its start")
    return UserError(f"a worker ended with {how} at {where}; look at that piece of the source, or use fewer workers")


# Of a worker: where its messages go, and what it has in work.
_messages: SimpleQueue | None = None
_in_work = "its start"


def _begin(messages: SimpleQueue) -> None:
    """Prepares a worker: its messages go to the parent, and it ends with the parent."""
    global _messages
    _messages = messages
    # A Ctrl-C reaches parent and workers alike; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(task: Task, item: Item) -> None:
    _guarded(task, item, _report_work, lambda value: _messages.put((os.getpid(), True, value)), lambda: _in_work)


def _guarded(
    task: Task, item: Item, at: Callable[[str], None], done: Callable[[Done], None], place: Callable[[], str]
) -> None:
    """Runs a task; its failures travel between processes and name their place."""
    try:
        task(item, at, done)
    except UserError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"a worker cannot go on: {error}; free space or mend the disk, then run it again") from None
    except Exception:
        raise RuntimeError(f"a worker failed at {place()}:\n{traceback.format_exc()}") from None


def _report_work(text: str) -> None:
    global _in_work
    _in_work = text[:_MAX_TEXT]
    _messages.put((os.getpid(), False, _in_work))
