"""Meshes: every parameter has its place, and where things lie changes nothing that is learnt."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from mesh_runs import assert_alike, bytes_per_device, run
from tiny_models import CONFIGS, random_motion, tiny_model

from unils_jax.errors import UserError
from unils_jax.models.codec import CodecConfig
from unils_jax.models.ear import EarConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import LoRAConfig, UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.models.wavlm import WavLMConfig
from unils_jax.nn.params import abstract, split
from unils_jax.systems.dualtalk.model import DualTalkConfig
from unils_jax.systems.registry import STAGES, system_of_config
from unils_jax.systems.unitalker.model import UniTalkerConfig
from unils_jax.training.optimizer import OptimizerConfig
from unils_jax.training.sharding import (
    MIN_CUT_SIZE,
    MeshConfig,
    global_batch,
    make_mesh,
    param_shardings,
    process_batch_size,
    shardings,
)
from unils_jax.training.step import init_state

FULL = {
    "codec": UniLSConfig(CodecConfig()),
    "prior": UniLSConfig(CodecConfig(), PriorConfig()),
    "dialogue": UniLSConfig(CodecConfig(), PriorConfig(audio_dim=1024), Wav2Vec2Config(), lora=LoRAConfig()),
    "ear": UniLSConfig(ear=EarConfig(width=1024)),  # wide enough to be worth cutting
    "artalk": UniLSConfig(CodecConfig(), PriorConfig(audio_dim=200), logmel=LogMelConfig()),
    "dualtalk": DualTalkConfig(Wav2Vec2Config(depth=2)),  # its layers are alike
    "unitalker": UniTalkerConfig(("vertices", "weights"), (70_110, 52), (512, 0), wavlm=WavLMConfig(depth=2)),
}


def tiny_case(stage: str, batch_size: int) -> tuple[dict, dict]:
    """Returns (params, batch): a tiny model and a batch in which much is missing.

    Each stage has the weights under which rounding stays small: a fresh codec's gradients agree to
    4e-7, but its weights part by 2e-4 in five updates; the dialogue with weights drawn wide agrees
    to 4e-5 in its gradients only.
    """
    lead = (batch_size, 2) if stage == "dialogue" else (batch_size,)
    rng = np.random.default_rng(0)
    names = ("motion",) if stage == "codec" else ("motion", "prev", "style")
    batch = {name: np.asarray(random_motion(*lead, 100, seed=i)) for i, name in enumerate(names)}
    if stage == "dialogue":
        batch["audio"] = rng.normal(0, 0.1, (*lead, 64_000)).astype(np.float32)
    batch["observed"] = (rng.uniform(size=(*lead, 108)) < 0.7).astype(np.float32)
    batch["observed"][1] = 0
    batch["record"] = np.arange(batch_size, dtype=np.int32)
    model = tiny_model("codec") if stage == "codec" else UniLS(CONFIGS[stage], rngs=nnx.Rngs(0))
    params = split(model)[1]
    return {path: _not_zero(path, np.asarray(value), rng) for path, value in params.items()}, batch


def _not_zero(path: str, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.3, value.shape).astype(np.float32) if path.endswith("/lora_b") else value


@pytest.mark.parametrize(
    "stage", ["codec", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("prior", "dialogue"))]
)
def test_two_slices_of_four_devices_in_parts_learn_what_one_learns(tmp_path, stage):
    params, batch = tiny_case(stage, 16)
    found = run(tmp_path, CONFIGS[stage], params, batch, [(2, 4, 2)], slices=2, min_cut_size=64, quick=True)
    assert_alike(found["2,4,2"])
    assert found["2,4,2"]["bytes"] < 0.45 * found["2,4,2"]["one_device_bytes"]


def full_size_mesh(data: int, fsdp: int) -> jax.sharding.AbstractMesh:
    """Returns the layout of a mesh without its devices."""
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=types)


# Describing a model at full size takes seconds; the family is like the dialogue.
FAMILY = ("artalk", "dualtalk", "unitalker")
EACH_STAGE = pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=pytest.mark.slow) if stage in FAMILY else stage for stage in STAGES]
)


@EACH_STAGE
def test_rules_cover_every_parameter_of_the_full_models(stage):
    _, shapes = abstract(system_of_config(FULL[stage]).builder(FULL[stage]))
    laid = param_shardings(full_size_mesh(2, 4), shapes)
    assert laid.keys() == shapes.keys()
    large = [path for path, shape in shapes.items() if shape.size >= 1 << 18]
    assert large and not [path for path in large if laid[path].is_fully_replicated]
    small = [path for path, shape in shapes.items() if shape.size < MIN_CUT_SIZE]
    assert small and all(laid[path].is_fully_replicated for path in small)


@EACH_STAGE
def test_bytes_on_a_device_fall_with_fsdp(stage):
    """Shows that n devices hold little more than an n-th each: at least 98 % of a state is cut."""
    _, shapes = abstract(system_of_config(FULL[stage]).builder(FULL[stage]))
    trainable, _ = STAGES[stage].split(shapes)
    state = jax.eval_shape(lambda params: init_state(params, OptimizerConfig()), trainable)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def on_device(data: int, fsdp: int) -> int:
        laid = shardings(full_size_mesh(data, fsdp), state)
        place = lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)  # noqa: E731
        return bytes_per_device(jax.tree.map(place, state, laid))

    assert on_device(8, 1) == whole
    assert on_device(4, 2) <= (0.5 + 0.02) * whole
    assert on_device(2, 4) <= (0.25 + 0.02) * whole


def test_a_parameter_that_no_rule_covers_is_named():
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    with pytest.raises(UserError, match="no sharding rule covers prior/new/thing, other"):
        param_shardings(make_mesh(), {"prior/head/kernel": shape, "prior/new/thing": shape, "other": shape})


def test_a_mesh_must_use_every_device():
    assert make_mesh().size == jax.device_count()
    with pytest.raises(UserError, match=re.escape("must be the number of devices, 1, got 2 x 3")):
        make_mesh(MeshConfig(2, 3))


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does():
    mesh = full_size_mesh(4, 2)
    assert process_batch_size(32, mesh, 2) == 32
    with pytest.raises(UserError, match=re.escape("8 x 2, got 36; the nearest is 32")):
        process_batch_size(36, mesh, 2)


def test_a_global_batch_of_one_process_is_its_batch():
    batch = {"motion": np.ones((2, 3), np.float32), "record": np.arange(2, dtype=np.int32)}
    placed = global_batch(make_mesh(), batch)
    assert all(
        np.array_equal(placed[name], value) and placed[name].dtype == value.dtype for name, value in batch.items()
    )
