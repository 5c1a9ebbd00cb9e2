"""Hosts that alternate in the mesh, as on most TPU slices: each loads the rows that its devices hold."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from interleaved_hosts import BATCH
from jax.sharding import AxisType, Mesh

from data_pipelines.loader import make_loader
from unils_jax.errors import UserError
from unils_jax.training.sharding import MeshConfig, make_mesh, planned_mesh, process_rows

PROGRAM = Path(__file__).parents[1] / "support" / "interleaved_hosts.py"


@dataclass(frozen=True)
class Elsewhere:
    """A device of another host, as far as a layout needs it."""

    id: int
    process_index: int
    platform: str = "elsewhere"
    device_kind: str = "elsewhere"
    slice_index: int = 0


def mesh_of_processes(*processes: int) -> Mesh:
    devices = [Elsewhere(i, process) for i, process in enumerate(processes)]
    return Mesh(np.array(devices).reshape(-1, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_a_process_loads_the_rows_that_its_devices_hold():
    in_order, interleaved = mesh_of_processes(0, 0, 1, 1), mesh_of_processes(0, 1, 1, 0)
    assert process_rows(in_order, 8, 0) == (0, 1, 2, 3) and process_rows(in_order, 8, 1) == (4, 5, 6, 7)
    assert process_rows(interleaved, 8, 0) == (0, 1, 6, 7) and process_rows(interleaved, 8, 1) == (2, 3, 4, 5)
    assert process_rows(make_mesh(), 8) == tuple(range(8))


def slices_of(*numbers: int) -> list[Elsewhere]:
    return [Elsewhere(i, 0, slice_index=number) for i, number in enumerate(numbers)]


def test_data_goes_over_slices_and_fsdp_stays_inside():
    mixed = slices_of(1, 0, 1, 0, 1, 0, 1, 0)
    mesh = make_mesh(MeshConfig(fsdp=4), mixed)
    assert [[device.slice_index for device in row] for row in mesh.devices] == [[0] * 4, [1] * 4]
    mesh = make_mesh(MeshConfig(fsdp=2, slices=2), slices_of(*[0] * 8))
    assert [[device.id for device in row] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_mesh_that_does_not_fit_the_slices_is_refused():
    with pytest.raises(UserError, match="mesh.slices must be 0 or the number of slices, 2 of 4 devices, got 4"):
        make_mesh(MeshConfig(slices=4), slices_of(0, 0, 1, 1))
    with pytest.raises(UserError, match="multiple of the 2 slices, got 1 .* divisor of the 2 devices of a slice"):
        make_mesh(MeshConfig(fsdp=4, slices=2), slices_of(0, 0, 1, 1))
    # GPUs of two hosts that nobody called slices share parameters as they did.
    assert dict(make_mesh(MeshConfig(fsdp=4), slices_of(0, 0, 1, 1)).shape) == {"data": 1, "fsdp": 4}
    with pytest.raises(UserError, match="multiple of mesh.slices, 4"):
        planned_mesh(MeshConfig(fsdp=4, slices=4), 8)
    assert dict(planned_mesh(MeshConfig(fsdp=4, slices=2), 8).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.slow
def test_where_hosts_alternate_every_row_meets_the_noise_that_it_meets_on_one_host(tiny_store, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, root = tmp_path / "rows.npz", str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    commands = [[sys.executable, PROGRAM, str(port), str(i), str(tiny_store), str(out)] for i in (0, 1)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    try:
        logs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], logs
    found = np.load(out)
    assert found["rows"].tolist() == [0, 1, 4, 5]
    whole = next(iter(make_loader(tiny_store, "train", view="solo", batch_size=BATCH, seed=3)))
    drawn = jax.vmap(jax.random.uniform)(jax.random.split(jax.random.key(0), BATCH))
    assert np.array_equal(found["record"], whole["record"])
    np.testing.assert_allclose(found["motion"], whole["motion"].sum((1, 2)), rtol=1e-4, atol=1e-3)
    assert np.array_equal(found["drawn"], drawn)
