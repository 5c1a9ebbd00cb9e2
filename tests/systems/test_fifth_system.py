"""A fifth system from outside the package: a few lines of model, registered, trained, decoded, evaluated, exported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array
from tiny_runs import quick_compiles

import unils_jax as unils
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.motion import MOTION_DIM, SAMPLES_PER_FRAME, load_motion
from unils_jax.nn.layers import Linear
from unils_jax.systems.base import (
    Card,
    Generated,
    GlobalBatch,
    Inputs,
    Objective,
    Options,
    Stage,
    System,
    batch_sample_weights,
)
from unils_jax.systems.torch_layout import LINEAR, TorchLayout


@dataclass(frozen=True)
class LoudnessConfig:
    """Sizes of the toy."""

    stage: ClassVar[str] = "loudness"
    width: int = 4


class Loudness(nnx.Module):
    """A person's loudness, frame by frame, through two linear layers: motion without any memory."""

    def __init__(self, config: LoudnessConfig, *, rngs: nnx.Rngs):
        self.up = Linear(1, config.width, rngs=rngs)
        self.out = Linear(config.width, MOTION_DIM, rngs=rngs)

    def __call__(self, audio: Array) -> Array:
        frames = audio.reshape(*audio.shape[:-1], -1, SAMPLES_PER_FRAME)
        return self.out(jnp.tanh(self.up(jnp.abs(frames).mean(-1, keepdims=True))))


def loss(model: Loudness, batch: dict, noise: None, objective: Objective, whole: GlobalBatch | None = None):
    weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    total = jnp.sum(weights * jnp.square(model(batch["audio"]) - batch["motion"]).mean((-2, -1)))
    return total, {"loss": total}


def generate(model: Loudness, inputs: Inputs, options: Options) -> Generated:
    tracks = [track for track in (inputs.audio, inputs.other_audio) if track is not None][: options.people]
    whole = [np.pad(track, (0, -len(track) % SAMPLES_PER_FRAME)) for track in tracks]
    return Generated(np.stack([np.asarray(model(jnp.asarray(track))) for track in whole]))


def config_of(state: Mapping[str, np.ndarray], tree: Mapping, source: str) -> LoudnessConfig:
    return from_dict(LoudnessConfig, dict(tree["SIZES"]), source)


LOUDNESS = System(
    name="loudness",
    title="Loudness",
    config=LoudnessConfig,
    build=Loudness,
    stages={"loudness": Stage("loudness", None, "pair", ".*", loss)},
    inputs=frozenset({"audio", "other_audio"}),
    draws=False,
    generate=generate,
    layout=TorchLayout(
        rows={"loudness": (("first", "up", LINEAR), ("second", "out", LINEAR))},
        matches=lambda keys: any(key.startswith("second.") for key in keys),
        config_of=config_of,
        json_of=lambda config, basis, run: {"MODEL": {}, "SIZES": asdict(config), "EXPRESSION_BASIS": basis},
    ),
    card=lambda config, basis: Card("Loudness: nothing but a toy", "108 channels.", [f"width {config.width}"]),
    conditions={"audio": "each person's own"},
)


@pytest.fixture(autouse=True)
def fifth_system(monkeypatch) -> None:
    """The system is known while a test runs."""
    monkeypatch.setitem(unils.SYSTEMS, LOUDNESS.name, LOUDNESS)


@pytest.fixture(scope="module")
def workdir(tiny_store, tmp_path_factory) -> Path:
    """Four steps of the toy on two conversations a batch."""
    folder = tmp_path_factory.mktemp("loudness") / "run"
    config = {
        "system": "loudness",
        "stage": "loudness",
        "num_steps": 4,
        "data": {"store": "", "batch_size": 2},
        "model": {"width": 3},
        "optimizer": {"warmup_steps": 0},
        "expression_basis": "standin",
        "eval_every": 2,
        "eval_batches": 1,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    with pytest.MonkeyPatch.context() as patch, quick_compiles():
        patch.setitem(unils.SYSTEMS, LOUDNESS.name, LOUDNESS)
        metrics = unils.train(config, folder, overrides={"data.store": str(tiny_store)})
    assert np.isfinite(metrics["val/loss"])
    return folder


@pytest.fixture
def voices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, 16_000).astype(np.float32), rng.normal(0, 0.1, 16_000).astype(np.float32)


def test_it_trains_and_its_workdir_says_of_which_system_it_is(workdir):
    checkpoint = unils.load(workdir)
    assert checkpoint.system is LOUDNESS and checkpoint.run["system"] == "loudness"
    assert checkpoint.config == LoudnessConfig(width=3) and checkpoint.source["step"] == 4


def test_it_resumes_where_the_workdir_stands(workdir, tiny_store):
    again = unils.train(
        {**dict(unils.load(workdir).run), "num_steps": 4}, workdir, overrides={"data.store": str(tiny_store)}
    )
    assert unils.load(workdir).source["step"] == 4 and again == {}


def test_it_decodes_one_person_or_both(workdir, voices):
    checkpoint = unils.load(workdir)
    both = unils.decode(checkpoint, *voices)
    assert both.shape == (2, 25, MOTION_DIM) and np.isfinite(both).all()
    np.testing.assert_array_equal(unils.decode(checkpoint, voices[0])[0], both[0])


def test_what_it_has_no_use_for_is_refused_by_name(workdir, voices):
    with pytest.raises(UserError, match="Loudness has no use for style, identity"):
        unils.decode(unils.load(workdir), voices[0], style=np.zeros((1, 100, 108), np.float32), identity=0)


def test_it_is_evaluated_like_any_other(workdir, tiny_store, tmp_path):
    report = unils.evaluate(workdir, str(tiny_store), limit=1, out=tmp_path / "report.json")
    assert report["metrics"]["unils/both/LVE"]["mean"] > 0 and (tmp_path / "report.html").exists()
    assert report["settings"]["protocol"]["audio"] == "each person's own" and report["settings"]["seeds"] == []
    with pytest.raises(UserError, match="Loudness draws nothing"):
        unils.evaluate(workdir, str(tiny_store), seeds=2)


def test_its_export_returns_bit_for_bit(workdir, tmp_path):
    checkpoint, path = unils.load(workdir), tmp_path / "loudness.safetensors"
    exported = unils.export(checkpoint, path)
    assert set(exported.state) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    again = unils.load(path)
    assert again.system is LOUDNESS and again.config == checkpoint.config
    assert all(again.params[name].tobytes() == value.tobytes() for name, value in checkpoint.params.items())
    assert "nothing but a toy" in path.with_name(f"{path.name}.md").read_text()


def test_a_workdir_of_a_system_that_is_not_there_is_one_clear_line(workdir, monkeypatch):
    monkeypatch.delitem(unils.SYSTEMS, LOUDNESS.name)
    with pytest.raises(UserError, match="is a model of the system 'loudness'; known are unils, artalk"):
        unils.load(workdir)


def test_motion_of_it_is_saved_and_read_like_any_other(workdir, voices, tmp_path):
    checkpoint = unils.load(workdir)
    motion = unils.decode(checkpoint, *voices)
    unils.save_motion(
        tmp_path / "m.npz", motion, expression_basis=checkpoint.expression_basis, source=checkpoint.source
    )
    np.testing.assert_array_equal(load_motion(tmp_path / "m.npz").motion, motion)
