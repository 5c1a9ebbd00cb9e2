"""Several processes that train together: joining, agreeing on what is trained, stopping."""

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unils_jax.errors import UserError, one_line
from unils_jax.nn.params import Params
from unils_jax.training.sharding import global_batch, replicated

log = logging.getLogger(__name__)

_LOWER = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
PROXIES = (*_LOWER, *map(str.upper, _LOWER))

_NAME_BYTES = 64


def join(coordinator: str | None = None, process_id: int | None = None, num_processes: int | None = None) -> None:
    """Makes this process one of several; must come before anything else that JAX does.

    Without arguments everything is read from the environment (SLURM, Open MPI, Cloud TPU). Raises
    UserError where the others do not come or the environment does not say it.
    """
    # JAX's handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    detection = "deactivate" if coordinator else None
    try:
        with _without_proxies():
            jax.distributed.initialize(coordinator, num_processes, process_id, cluster_detection_method=detection)
    except (RuntimeError, ValueError) as error:
        text = one_line(error, 300)
        raise UserError(
            f"cannot join the other processes ({text}); start all of them with the same --coordinator HOST:PORT and "
            "--num_processes, and --process_id 0, 1, ..."
        ) from error
    if jax.process_index() > 0:
        # All processes log the same: the first one's lines are enough.
        logging.getLogger("unils_jax").setLevel(logging.WARNING)


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides the proxies of the environment from gRPC, which would ask them for the coordinator.

    It reads them when it makes its channel, and the processes of a run reach each other directly.
    """
    hidden = {name: os.environ.pop(name) for name in PROXIES if name in os.environ}
    if hidden:
        log.info("joining the other processes without the proxies of %s", ", ".join(hidden))
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_agreement(config: dict[str, Any], params: Params) -> None:
    """Raises UserError where the processes hold different configs or parameters.

    Every process raises it, naming the hosts that differ. `params` are host arrays, or device
    arrays of which the replicated ones are compared.
    """
    if jax.process_count() == 1:
        return
    # Bytes as numbers: an all-gather takes arrays of one shape.
    digests = np.concatenate([_digest_of_config(config), _digest_of_params(params), _host_name()])
    rows = np.asarray(multihost_utils.process_allgather(digests))
    raise_unless_agreed(rows)


def raise_unless_agreed(rows: np.ndarray) -> None:
    """Raises UserError where rows differ.

    There is one row of bytes for each process: digest of config, digest of parameters, host name.
    """
    hosts = [bytes(row[64:]).rstrip(b"\0").decode(errors="replace") for row in rows]
    names = [f"process {i} ({host})" for i, host in enumerate(hosts)]
    problems = []
    for what, part in (("config", slice(0, 32)), ("parameters", slice(32, 64))):
        # Process 0 is the reference: which one is right, the digests cannot say.
        other = [name for name, row in zip(names, rows, strict=True) if not np.array_equal(row[part], rows[0, part])]
        if other:
            problems.append(f"another {what} than {names[0]}: {', '.join(other)}")
    if problems:
        raise UserError(f"these processes hold {'; '.join(problems)}; start all with the same command, code and files")


def _digest_of_config(config: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(json.dumps(config, sort_keys=True).encode()).digest(), np.uint8)


def _digest_of_params(params: Params) -> np.ndarray:
    digest = hashlib.sha256()
    for path, value in sorted(params.items()):
        if isinstance(value, jax.Array):
            if not value.is_fully_replicated:
                continue  # each process holds another part of it
            value = value.addressable_data(0)
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _host_name() -> np.ndarray:
    return np.frombuffer(socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"), np.uint8)


def any_process(mesh: Mesh) -> Callable[[bool], bool]:
    """Returns `any_process(flag)`, True where the flag is set in any process.

    All processes call it at the same steps. With several processes the answer is that of the call
    before: it is computed on the devices together with the step, so that no process waits for it.
    """
    maximum = jax.jit(jnp.max, out_shardings=replicated(mesh))
    pending: Array | None = None

    def ask(flag: bool) -> bool:
        nonlocal pending
        if jax.process_count() == 1:
            return flag
        before = pending
        flags = global_batch(mesh, {"flag": np.full(jax.local_device_count(), flag, np.int32)})
        pending = maximum(flags["flag"])
        return before is not None and bool(jax.device_get(before))

    return ask


# Preemption, a time limit, a lost terminal, Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: what launch/ tells SLURM and Kubernetes to run again


class Preempted(Exception):
    """Raised where training was stopped by a signal, after it saved `step`."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"stopped by {reason} after step {step}, which is saved")
        self.step = step


class PreemptionGuard:
    """A context manager under which the first of `SIGNALS` is noted.

    The loop reads it between steps. The second signal ends the process at once, as does any signal
    outside of the context.
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
            signal.signal(each, signal.SIG_DFL)  # the second one ends the process

    @property
    def requested(self) -> bool:
        """True once one of `SIGNALS` has arrived."""
        return bool(self.reason)

    def waited_s(self) -> float:
        """Returns the seconds since the signal arrived; 0 where this process got none."""
        return time.monotonic() - self._received_s if self.requested else 0.0
