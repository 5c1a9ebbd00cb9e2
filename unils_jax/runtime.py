"""The settings of a process, and its disk: log lines, caches, memory; places, room, one writer."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from unils_jax.errors import UserError, shown

log = logging.getLogger(__name__)

# What writing fails with where a disk, a quota or a limit of the process leaves no room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Of addresses, also where Path has made one slash of two.
_SCHEMES = ("gs", "gcs", "s3", "http", "https", "hdfs", "abfs", "az", "ftp")

# File systems that know no locks: some mounts of Lustre and of NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_MAX_STEM_BYTES = 160  # a name has 255 bytes, of which the rest goes to what is added to it


def prepare() -> None:
    """Sets up logging on stderr, the cache of compiled programs, and memory.

    Libraries log warnings and errors only. Compiled programs are kept between runs.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("unils_jax", "data_pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)
    absl = logging.getLogger("absl")
    absl.setLevel(logging.ERROR)
    absl.addFilter(_is_news)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_in_one_line)
    # Names may hold bytes that are no text: shown escaped, they end no command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable
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


def _in_one_line(record: logging.LogRecord) -> bool:
    # A name is data: it ends no line and holds no code for the terminal.
    if isinstance(record.args, tuple):
        record.args = tuple(map(_printable, record.args))
    record.msg = "\n".join(map(shown, str(record.msg).split("\n")))
    return True


def _printable(value: object) -> object:
    if isinstance(value, BaseException):
        return shown(" ".join(str(value).splitlines()))
    return shown(value) if isinstance(value, str | os.PathLike) else value


def _is_news(record: logging.LogRecord) -> bool:
    # Orbax logs a full disk from each of its threads; the main thread says it in one line.
    return not (record.exc_info and disk_is_full(record.exc_info[1]))


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if not disk_is_full(failure.exc_value):
        threading.__excepthook__(failure)


def _unraisable(failure: "sys.UnraisableHookArgs") -> None:
    # TensorStore's threads end in this after the first write of a save has failed.
    if str(failure.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(failure)


def local_path(path: str | os.PathLike, what: str) -> Path:
    """Returns `path` without `..` and with the home folder for `~`; any other as it is.

    Shells leave a `~` behind `=` alone, and Orbax refuses `..`. Links in front of a `..` are
    followed, as the kernel does. Raises UserError, naming `what` it is, for a URL, which would
    become a folder of that name, where no home is known, and for bytes that are not UTF-8, which
    Orbax cannot open.
    """
    text = os.fspath(path)
    refuse_url(text, what)
    if not text.isprintable() and any("\udc80" <= c <= "\udcff" for c in text):
        raise UserError(f"{what} {ascii(text)} has bytes that are not UTF-8 in its name; rename it")
    if text.startswith("~"):
        text = expand_home(text)
        if text.startswith("~/") or text == "~":
            raise UserError(f"{what} {text}: no home folder is known; set HOME, or write the path out")
    path = Path(text)
    return path.resolve() if ".." in path.parts else path


def expand_home(text: str) -> str:
    """Returns text with a leading `~` or `~user` replaced; as it is where no such home is known."""
    if os.environ.get("HOME") == "" and (text == "~" or text.startswith("~/")):
        return text  # Python would take the root for it
    return os.path.expanduser(text)


def refuse_url(path: str | os.PathLike, what: str) -> None:
    """Raises UserError where `path` is a URL: as a path of this machine it names a folder `gs:`."""
    scheme, colon, rest = os.fspath(path).partition(":/")
    if colon and scheme.isalnum() and (rest.startswith("/") or scheme.lower() in _SCHEMES):
        raise UserError(
            f"{what} {path} is a URL; it must be a folder or file of this machine: mount the bucket, or write here and "
            "copy"
        )


@contextlib.contextmanager
def room_on_disk(folder: str | os.PathLike) -> Iterator[None]:
    """Raises a UserError, naming `folder` and its free space, where its disk is full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise UserError(f"cannot write to {folder}: {no_room(folder)}") from error


def no_room(folder: str | os.PathLike) -> str:
    """Says that a folder has no room, how much is free, and what to do."""
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB"
    except OSError:
        free = "nothing that can be told"
    return f"no room is left on its disk or in the quota ({free} free); make room, then run the same command again"


def disk_is_full(error: BaseException | None) -> bool:
    """Decides whether an error, or one that led to it, says that there was no room to write.

    Libraries in C++ raise errors of their own, which keep the kernel's words.
    """
    words = [os.strerror(code) for code in _NO_ROOM]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in _NO_ROOM or any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def only_writer(lock: str | os.PathLike, what: str | os.PathLike) -> Iterator[None]:
    """Holds the lock file `lock` while this process writes `what`.

    Raises UserError where another process holds it, naming that one (host, number, since when).
    The kernel lets go of the lock however a process ends. Over NFS it excludes other machines too,
    where the mount has a lock service; where a file system knows no locks, a warning says so.
    """
    lock = Path(lock)
    try:
        with room_on_disk(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = _locked(lock, what)
    except OSError as error:
        raise UserError(f"cannot write to {lock.parent}: {error.strerror}; choose another output folder") from None
    try:
        with room_on_disk(lock.parent):
            file.truncate(0)
            file.write(json.dumps(about_this_process()).encode())
            file.flush()
        yield
    finally:
        # Removed while it is held: a process that opened it before finds that it is gone.
        lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what a full disk did not take is written once more
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
            raise UserError(f"{what} is in use by {held}; wait for it, stop it, or name another output") from None
        file.close()


def is_locked(lock: str | os.PathLike) -> bool:
    """Returns whether a process holds the lock file `lock`."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


class _Held(NamedTuple):
    locks: contextlib.ExitStack
    files: set[Path]  # lock files


_HELD: ContextVar[_Held | None] = ContextVar("held outputs", default=None)


@contextlib.contextmanager
def outputs_held() -> Iterator[None]:
    """Holds each file that `hold_output` names from there to the end: for the span of one command.

    Another process that would make the same file meanwhile is refused. The lock is `.NAME.lock`
    next to the file, and goes with the process, however that ends.
    """
    with contextlib.ExitStack() as locks:
        token = _HELD.set(_Held(locks, set()))
        try:
            yield
        finally:
            _HELD.reset(token)


def hold_output(path: Path) -> None:
    """Takes the lock of a file that this command makes; outside of `outputs_held` does nothing."""
    held, lock = _HELD.get(), path.parent.resolve() / f".{short_stem(path)}{path.suffix}.lock"
    if held is not None and lock not in held.files:
        held.locks.enter_context(only_writer(lock, path))
        held.files.add(lock)


def short_stem(path: Path) -> str:
    """Returns the stem of a file's name, or a digest where what is added would make it too long."""
    stem = os.fsencode(path.stem)
    return path.stem if len(stem) <= _MAX_STEM_BYTES else hashlib.sha256(stem).hexdigest()[:16]


def about_this_process() -> dict[str, str | int]:
    """Returns what names this process to others: host, pid and the time now."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def process_is_gone(number: int) -> bool:
    """Returns whether no process of this machine has the number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # there, of another user
        return False
    return False


def describe_process(told: dict[str, str | int]) -> str:
    """Returns `about_this_process` in words."""
    return f"process {told['pid']} on {told['host']}, since {told['since']}"


def _holder(file: io.BufferedRandom) -> str:
    file.seek(0)
    try:
        return describe_process(json.loads(file.read()))
    except (ValueError, KeyError, TypeError):
        return "another process"  # between its lock and its line


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
