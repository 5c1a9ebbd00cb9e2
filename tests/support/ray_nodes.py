"""A real Ray cluster of two nodes on this machine, one of which can be killed."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_SMALL = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}


class TwoNodes:
    """The head and a second node, a CPU each; this process is connected to the head."""

    def __init__(self):
        import ray
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **_SMALL})
        self.second = self.cluster.add_node(**_SMALL)
        self.cluster.wait_for_nodes()
        ray.init(self.cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        self.ray = ray

    def kill_second(self) -> None:
        """Kills the second node with all its processes."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        self.ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    """A cluster for the tests of a module; the last one may kill its second node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # usually 15: beside other tests they would starve
        # Workers import this package, and what tests give them.
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{here.parents[1]}{os.pathsep}{here}")
        pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
        nodes = TwoNodes()
        try:
            yield nodes
        finally:
            nodes.stop()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
