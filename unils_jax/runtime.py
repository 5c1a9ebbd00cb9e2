"""The settings of a process: log lines, the cache of compiled programs, memory."""

import ctypes
import logging
import os
import sys
from pathlib import Path


def prepare() -> None:
    """Sets up logging on stderr, the cache of compiled programs, and memory.

    Libraries log warnings and errors only. Compiled programs are kept between runs.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("unils_jax", "data_pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unils_jax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory where there is no accelerator.

    A step on CPU allocates and frees hundreds of megabytes; fetched anew from the kernel each time,
    page faults took a third of the CPU time of the smoke configs' training.
    """
    if has_accelerator() or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
        for option, value in ((m_trim_threshold, 2**31 - 1), (m_mmap_max, 0), (m_arena_max, 1)):
            libc.mallopt(option, value)


def has_accelerator() -> bool:
    """Returns whether device files name an accelerator; asking JAX would take its memory."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0"))
