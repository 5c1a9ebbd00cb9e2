"""Work shared out over processes that end when their parent does, however it ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from unils_jax.errors import UserError

_PR_SET_PDEATHSIG = 1


# What a worker does with one item, picklable: it is called with the item, a function to tell what it is at, and a
# function to tell what it has done of it.
Task = Callable[[Any, Callable[[str], None], Callable[[Any], None]], None]


def run_in_processes(task: Task, items: Sequence[Any], num_workers: int, done: Callable[[Any], None]) -> None:
    """Calls `task` for every item in up to `num_workers` spawned processes; `done` is called here.

    The first failure ends all workers: a UserError is raised as it was, another exception as RuntimeError with its
    traceback, and a worker that dies without a word as a UserError that names what it was at. The caller guards
    `__main__`.
    """
    context = multiprocessing.get_context("spawn")
    waiting, at = list(reversed(items)), {}
    workers: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(min(num_workers, len(items))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(task, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
        while workers:
            for connection in wait(list(workers)):
                try:
                    kind, value = connection.recv()
                    if kind == "next":
                        connection.send(waiting.pop() if waiting else None)
                except (EOFError, BrokenPipeError, ConnectionResetError):
                    raise _died(workers[connection], at.get(connection, "its start")) from None
                if kind == "at":
                    at[connection] = value
                elif kind == "done":
                    done(value)
                elif kind == "refused":
                    raise UserError(value)
                elif kind == "failed":
                    raise RuntimeError(f"a worker failed:\n{value}")
                elif kind == "end":
                    workers.pop(connection).join()
    finally:
        for process in workers.values():
            process.kill()
        for process in workers.values():
            process.join()


def _died(process: BaseProcess, at: str) -> UserError:
    process.join()
    code = process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"status {code}"
    return UserError(f"a worker ended with {how} at {at}; look at that piece of the source, or use fewer workers")


def _work(task: Task, connection: Connection, parent: int) -> None:
    end_with_parent(parent)
    try:
        connection.send(("next", None))
        while (item := connection.recv()) is not None:
            task(item, lambda text: connection.send(("at", text)), lambda value: connection.send(("done", value)))
            connection.send(("next", None))
        connection.send(("end", None))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        # The parent is gone, or the user stopped both: where no kernel says so, the pipe does.
        os._exit(1)
    except UserError as error:
        connection.send(("refused", str(error)))
    except OSError as error:
        connection.send(("refused", f"a worker cannot go on: {error}; free space or mend the disk, then run it again"))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process with the process `parent`, its parent; at once where that is gone already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
