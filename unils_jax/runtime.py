"""How a process of ours runs: its log lines, the cache of compiled programs, its memory."""

import contextlib
import ctypes
import errno
import fcntl
import io
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from unils_jax.errors import UserError
from unils_jax.files import disk_is_full, expand_home, room_on_disk

log = logging.getLogger(__name__)

# File systems that know no locks: some mounts of Lustre and of NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def prepare() -> None:
    """Our log lines on stderr, the libraries' only from warnings up; compiled programs kept between runs."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("unils_jax", "data_pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Names may hold bytes that are no text: shown escaped, they end no command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    threading.excepthook = _thread_failed
    _use_caches()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_freed_memory()


def _use_caches() -> None:
    cache = user_cache()
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "unils_jax" / "xla"))
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        log.info("no home folder is known: compiled programs are not kept; set XDG_CACHE_HOME or HOME")
    # The hub's library would make a folder called "~" here.
    os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), f"huggingface-{os.getuid()}"))


def user_cache() -> Path | None:
    """Returns the user's cache folder: XDG_CACHE_HOME, else .cache at home.

    None where there is neither, as in a container whose user has no entry in /etc/passwd.
    """
    chosen = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache")
    return None if chosen.startswith("~") else Path(chosen)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    # The main thread meets the full disk itself, and says so in one line.
    if not disk_is_full(failure.exc_value):
        threading.__excepthook__(failure)


@contextlib.contextmanager
def only_writer(lock: str | os.PathLike, what: str | os.PathLike) -> Iterator[None]:
    """Holds the lock file `lock` while this process writes `what`.

    Raises UserError, naming the process that holds it (host, number, since when), where there is one.
    The kernel lets go of the lock however a process ends. Over NFS it excludes other machines too,
    where the mount has a lock service; where a file system knows no locks, a warning says so.
    """
    lock = Path(lock)
    with room_on_disk(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, what)
        try:
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S %z")
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode())
            file.flush()
        except OSError:
            lock.unlink(missing_ok=True)
            file.close()
            raise
    try:
        yield
    finally:
        # Removed while it is held: who opened it before finds out that it is no longer there.
        lock.unlink(missing_ok=True)
        file.close()


def _locked(lock: Path, what: str | os.PathLike) -> io.BufferedRandom:
    while True:
        file = open(lock, "a+b")  # noqa: SIM115 (it is held as long as it is open)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                    return file
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("WARNING: %s: this file system knows no locks (%s); write from one process", what, error)
                return file
            held = _holder(file)
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UserError(
                f"{what} is in use: {held} writes there; wait for it, stop it, or choose another folder"
            ) from None
        file.close()


def _holder(file: io.BufferedRandom) -> str:
    return describe_writer(file.read) if file.seek(0) == 0 else ""


def keep_freed_memory() -> None:
    """Where there is no accelerator, has glibc keep freed memory instead of returning it to the kernel.

    A step on CPU allocates and frees hundreds of megabytes; fetched anew from the kernel each time, page faults took
    a third of the CPU time of the smoke configs' training.
    """
    if has_accelerator() or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
        for option, value in ((m_trim_threshold, 2**31 - 1), (m_mmap_max, 0), (m_arena_max, 1)):
            libc.mallopt(option, value)


def has_accelerator() -> bool:
    """Whether this machine has one, told by its device files: asking JAX would take its memory."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0"))
