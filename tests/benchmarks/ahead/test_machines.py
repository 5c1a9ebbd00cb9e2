"""Machines by name, and real compilations for them where their compilers are installed."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from bench_models import MODELS, tiny_run

from unils_jax.benchmarks.ahead import machines
from unils_jax.benchmarks.ahead.hlo import Program
from unils_jax.benchmarks.ahead.machines import machine
from unils_jax.benchmarks.ahead.report import table
from unils_jax.benchmarks.decode import Case, plan_decode
from unils_jax.benchmarks.train import bench_aot, trace_step
from unils_jax.errors import UserError
from unils_jax.inference.program import planned_program
from unils_jax.models.unils import UniLS
from unils_jax.systems.base import Objective
from unils_jax.training.sharding import MeshConfig, make_mesh, process_rows

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install '.[tpu]'"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None, reason="needs the GPU compiler: pip install '.[cuda]'"
)


def test_a_name_says_family_devices_and_data_sheet():
    assert machine("v5e:4x4").num_devices == 16 and machine("v5p:2x2x1", 2).num_devices == 8
    assert machine("v6e:4x4").chip.kind == "TPU v6 lite" and machine("v5p:2x2x1").chip.kind == "TPU v5"
    assert machine("h100:8", 4).name == "4 x h100:8" and machine("A100:8").chip.memory == 80e9


@pytest.mark.parametrize("text", ["v5e", "v9:2x2", "h100:2x2", "v5e:16", "v5e:0x4", "h100:0", "v5e:2x2x2x2"])
def test_another_name_is_refused(text):
    with pytest.raises(UserError, match="--topology must be a TPU .* v5e:4x4, or a GPU .* h100:8, got"):
        machine(text)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "cuda")])
def test_a_missing_compiler_is_named(monkeypatch, name, extra):
    monkeypatch.setattr(machines.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"pip install '\.\[{extra}\]'"):
        machine(name).devices()


@pytest.mark.parametrize("stage", ["codec", "dialogue"])
def test_a_step_lowers_and_exports_for_gpu_and_tpu(stage):
    traced, _, work = trace_step(tiny_run(stage), Objective())
    lowered = {platform: traced.lower(lowering_platforms=(platform,)) for platform in ("cuda", "tpu")}
    assert all("stablehlo" in one.as_text() for one in lowered.values()) and work.total > 0


def test_the_decode_program_lowers_for_gpu_and_tpu():
    config = MODELS["dialogue"]
    options = {"slots": 1, "people": 2, "dtype": "bfloat16", "devices": jax.devices()[:1]}
    program, inputs = planned_program(lambda rngs: UniLS(config, rngs=rngs), **options)
    text = program.trace(inputs, jax.devices()[:1]).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert "bf16" in text and "f64" not in text


REACH = {"v6e:4x4": 1, "v5p:4x4x4": 3, "v5e:4x4": 3}


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("name", "slices", "config"),
    [
        ("v6e:4x4", 1, MeshConfig(fsdp=2)),
        ("v5p:4x4x4", 1, MeshConfig(fsdp=8)),
        ("v5e:4x4", 2, MeshConfig(fsdp=4)),
    ],
)
def test_meshes_of_real_machines_keep_fsdp_inside_a_slice(name, slices, config):
    mesh = make_mesh(config, machine(name, slices).devices())
    assert mesh.size == machine(name, slices).num_devices
    for row in mesh.devices:
        assert len({getattr(device, "slice_index", 0) for device in row}) == 1
    corner = mesh.devices[0, 0].coords
    # Devices that share parameters lie in one small block of the torus.
    reach = [max(abs(a - b) for a, b in zip(device.coords, corner, strict=True)) for device in mesh.devices[0]]
    assert max(reach) == REACH[name]
    hosts = {device.process_index for device in mesh.devices.flat}
    rows = [process_rows(mesh, mesh.size, host) for host in hosts]
    assert sorted(row for of_host in rows for row in of_host) == list(range(mesh.size))


@pytest.mark.slow
@needs_libtpu
def test_a_small_step_is_really_compiled_for_a_tpu():
    row = bench_aot(tiny_run("prior"), Objective(), machine("v5e:1x1"))
    assert row["estimate_s"] > 0 and 0 < row["program_bytes"] < 1e9 and 0 < row["roofline_utilisation"] < 1
    assert "Compilations, not runs" in table([row])


@pytest.mark.slow
@needs_libtpu
def test_the_layers_of_a_scan_are_all_counted_for_a_tpu():
    """TPU's compiler does not say how often a loop runs."""
    cycles = []
    sharding = jax.sharding.SingleDeviceSharding(machine("v5e:1x1").devices()[0])
    for layers in (4, 24):
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in ((8, 512), (layers, 512, 512))
        ]
        scanned = jax.jit(lambda x, weights: jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, weights)[0])
        cycles.append(Program(scanned.trace(*shapes).lower(lowering_platforms=("tpu",)).compile().as_text()).cycles())
    assert 4 < cycles[1] / cycles[0] <= 6


@pytest.mark.slow
@needs_cuda
def test_the_guided_decode_is_really_compiled_for_a_gpu():
    row = plan_decode(MODELS["dialogue"], Case(2, 1, encodes=True), "bfloat16", machine("h100:1"))
    assert 0 < row["program_bytes"] < 1e9 and row["chip"] == "NVIDIA H100" and row["frames"] == 200
