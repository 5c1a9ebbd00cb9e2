"""Room for the batches that a loader's worker processes hand over in shared memory."""

import logging
import shutil

from unils_jax.errors import UserError, one_line

SHARED_MEMORY = "/dev/shm"
BUFFERED_BATCHES = 2  # that each worker holds ready
REMEDY = (
    "start the container with more (--shm-size, or an emptyDir of medium Memory there), or set "
    "--config.data.num_workers=0"
)

log = logging.getLogger(__name__)


def fitting_workers(batch_bytes: int, num_workers: int) -> int:
    """Returns how many of the workers have room for their batches; 0: use threads.

    The kernel kills a worker that finds none. Needed are the batches that each of them holds ready,
    and one more that is being taken. A warning says so where fewer fit than are asked for.
    """
    try:
        room = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return num_workers  # a system that has it elsewhere
    fitting = min(num_workers, max(0, room.free // max(batch_bytes, 1) - 1) // BUFFERED_BATCHES)
    if fitting < num_workers:
        log.warning(
            "WARNING: %d workers need %d MiB in %s, where %d of %d MiB are free: batches are cut by %s; %s",
            num_workers,
            batch_bytes * (BUFFERED_BATCHES * num_workers + 1) >> 20,
            SHARED_MEMORY,
            room.free >> 20,
            room.total >> 20,
            f"{fitting} of them" if fitting else "threads",
            REMEDY,
        )
    return fitting


def worker_died(error: RuntimeError) -> UserError:
    """Returns what to tell where Grain says that a worker has ended."""
    text = one_line(error)
    return UserError(f"a worker of the loader died ({text}): memory or {SHARED_MEMORY} may have run out; {REMEDY}")
