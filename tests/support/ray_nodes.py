"""A real Ray cluster of two nodes on this machine, one of which can be killed."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}  # usually 15: beside other tests they would starve
ray = pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

_SMALL = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}


class TwoNodes:
    """The head and a second node, a CPU each; this process is connected to the head."""

    def __init__(self):
        self.cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **_SMALL})
        self.second = self.cluster.add_node(**_SMALL)
        self.cluster.wait_for_nodes()
        ray.init(self.cluster.address, log_to_driver=False, logging_level=logging.WARNING)

    def kill_second(self) -> None:
        """Kills the second node with all its processes."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    # Workers import this package, and what tests give them.
    here, before = Path(__file__).parent, os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{here.parents[1]}{os.pathsep}{here}"
    try:
        nodes = TwoNodes()
        try:
            yield nodes
        finally:
            nodes.stop()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ |= {} if before is None else {"PYTHONPATH": before}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
