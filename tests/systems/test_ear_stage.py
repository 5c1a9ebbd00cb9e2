"""The ear as a stage, and as the second parent of a dialogue: trained, frozen, saved, exported, refused."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_models import CONFIGS, jitted, random_motion, tiny_model
from tiny_runs import quick_compiles, run_unils, write_tiny_config

from data_pipelines.store.reader import Store
from unils_jax.checkpoints.adapters import read_adapter, save_adapter
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.torch_keys import to_paths, to_torch
from unils_jax.inference.conversations import decode
from unils_jax.models.ear import Ear, EarConfig
from unils_jax.models.logmel import log_mel, with_vocal_tract
from unils_jax.motion import JAW
from unils_jax.nn.params import merge, split
from unils_jax.systems.base import NoiseRates, Objective
from unils_jax.systems.registry import models_with_audio
from unils_jax.systems.unils.ear import EAR, EarNoise
from unils_jax.systems.unils.system import DIALOGUE

LEVELS = NoiseRates(level_db=(-30.0, 10.0))


def pairs() -> dict[str, jax.Array]:
    motions = {name: random_motion(2, 2, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}
    return {**motions, "audio": 0.1 * jax.random.normal(jax.random.key(0), (2, 2, 64_000))}


def test_the_ear_is_no_model_that_decodes():
    assert "ear" not in models_with_audio()


def test_its_loss_is_the_squared_error_of_its_channels_and_counts_what_was_observed():
    model, batch = tiny_model("ear"), pairs()
    observed = np.ones((2, 2, 108), np.float32)
    observed[1, 1] = 0
    observed[0, 0, 14] = 0
    loss = jitted(
        model, lambda model, batch: EAR.loss(model, batch, None, Objective(), None)[0], {**batch, "observed": observed}
    )
    flat = batch["audio"].reshape(4, -1)
    heard, truth = jitted(
        model, lambda model, audio, motion: (model.ear.articulators(audio, 100), model.ear.standardized(motion)),
        flat, batch["motion"],
    )  # fmt: skip
    error = np.square(heard.reshape(2, 2, 100, 4) - truth).mean(2)
    error[0, 0, 1] = 0
    np.testing.assert_allclose(loss, error.reshape(4, 4)[:3].mean(), rtol=1e-5)


def test_gains_move_the_level_of_every_track_apart():
    model, batch = tiny_model("ear"), pairs()
    noise = EAR.draw(jax.random.key(0), batch, model, Objective(noise=LEVELS))
    decibels = 20 * np.log10(noise.gains)
    assert decibels.shape == (2, 2, 1) and np.unique(decibels).size == 4
    assert (decibels >= -30).all() and (decibels <= 10).all()
    assert isinstance(noise, EarNoise)


def test_vocal_tracts_are_drawn_apart_and_move_formants():
    model, batch = tiny_model("ear"), pairs()
    noise = EAR.draw(jax.random.key(0), batch, model, Objective(noise=NoiseRates(vocal_tract=0.12)))
    plain = EAR.draw(jax.random.key(0), batch, model, Objective())
    assert plain.vocal_tract is None and (plain.gains == 1).all()
    assert noise.vocal_tract.shape == (2, 2) and np.unique(noise.vocal_tract).size == 4
    assert np.abs(np.log(noise.vocal_tract)).max() <= 0.12
    losses = [EAR.loss(model, batch, drawn, Objective(), None)[0] for drawn in (plain, noise)]
    assert abs(losses[0] - losses[1]) > 1e-6
    # A tone of 1,100 Hz, in a tract ten percent longer, is one of 1,000 Hz: a band reads at its frequency times 1.1.
    time = np.arange(64_000) / 16_000
    tones = [jnp.asarray(np.sin(2 * np.pi * hz * time)[None], jnp.float32) for hz in (1000, 1100)]
    low, high = (log_mel(tone, 40, normalize_level=False) for tone in tones)
    moved = with_vocal_tract(high, jnp.asarray([1.1]))
    assert np.argmax(high.mean(1)) > np.argmax(low.mean(1)) == np.argmax(moved.mean(1))
    np.testing.assert_allclose(with_vocal_tract(high, jnp.ones(1)), high, atol=1e-4)


def test_moved_levels_leave_the_other_draws_of_a_dialogue_as_they_were():
    model, batch, key = tiny_model("hearing"), pairs(), jax.random.key(3)
    plain, moved = (DIALOGUE.draw(key, batch, model, Objective(noise=rates)) for rates in (NoiseRates(), LEVELS))
    assert plain.gains is None and moved.gains.shape == (2, 2, 1)
    for first, second in zip(jax.tree.leaves(plain), jax.tree.leaves(replace(moved, gains=None)), strict=True):
        assert (first == second).all()
    # The features do not depend on the level, so neither does the loss.
    graphdef, params = split(model)
    loss = jax.jit(lambda noise: DIALOGUE.loss(merge(graphdef, params), batch, noise, Objective(), None)[0])
    losses = [loss(replace(plain, gains=gains)) for gains in (jnp.ones((2, 2, 1)), moved.gains)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_dialogue_has_no_gradient_for_its_ear():
    graphdef, params = split(tiny_model("hearing"))
    trainable, frozen = DIALOGUE.split(params)
    assert {path for path in frozen if path.startswith("ear/")} == {path for path in params if path.startswith("ear/")}
    ear = {path: value for path, value in params.items() if path.startswith("ear/")}

    def loss(ear):
        model = merge(graphdef, {**params, **ear})
        return DIALOGUE.loss(model, pairs(), None, Objective(), None)[0]

    assert not any(np.any(value) for value in jax.tree.leaves(jax.jit(jax.grad(loss))(ear)))


def test_the_level_of_a_recording_moves_no_jaw():
    """Voices 30 dB quieter to 10 dB louder: the decoded jaw's mean and its likeness to the first stay within 5 %."""
    model = tiny_model("hearing")
    rng, time = np.random.default_rng(0), np.arange(128_000) / 16_000
    voice = (0.2 * np.sin(2 * np.pi * 200 * time) * (np.sin(3 * time) > 0)).astype(np.float32)
    tracks = voice + 1e-3 * rng.normal(size=(2, 128_000)).astype(np.float32)
    jaws = [decode(model, *(tracks * np.float32(10 ** (db / 20))))[0, :, JAW.start] for db in (0, -30, 10)]
    for jaw in jaws[1:]:
        assert np.corrcoef(jaw, jaws[0])[0, 1] > 0.95
        assert abs(jaw.mean() - jaws[0].mean()) < 0.05 * jaws[0].std()


def test_an_adapter_holds_the_ear_that_it_hears_through(tmp_path):
    model = tiny_model("hearing")
    params = {path: np.asarray(value) for path, value in split(model)[1].items()}
    dialogue = Checkpoint(CONFIGS["hearing"], params, "standin", {"checkpoint": "tiny"})
    prior = Checkpoint(
        CONFIGS["prior"],
        {p: v for p, v in params.items() if p in split(tiny_model("prior"))[1]},
        "standin",
        {"checkpoint": "tiny"},
    )
    save_adapter(tmp_path / "a.safetensors", dialogue.config, params, "standin", "hearing")
    assert read_adapter(tmp_path / "a.safetensors").info.ear == CONFIGS["hearing"].ear
    again = prior.with_adapter(tmp_path / "a.safetensors", merge=False)
    assert again.config == dialogue.config
    assert all(again.params[path].tobytes() == value.tobytes() for path, value in params.items())


@pytest.fixture(scope="module")
def runs(tiny_runs, tmp_path_factory) -> SimpleNamespace:
    """A trained ear, and the flags of a dialogue that hears through it."""
    folder = tmp_path_factory.mktemp("ear")
    config = write_tiny_config(folder / "ear.py", "ear", tiny_runs.store)
    with quick_compiles():
        assert run_unils("train", "--config", config, "--workdir", folder / "ear") == 0
    text = tiny_runs.configs["dialogue"].read_text()
    logmel = text[text.index("    config.model.ear = None") : text.index("    config.model.lora")]
    ear = f"    config.model.ear = load_config({str(config)!r}).model.ear\n    config.num_steps = 2\n"
    (folder / "dialogue.py").write_text(text.replace(logmel, ear))
    flags = ("--config", folder / "dialogue.py", "--parent", tiny_runs.workdirs["prior"])
    return SimpleNamespace(folder=folder, ear=folder / "ear", flags=flags)


def test_an_ear_takes_the_statistics_of_its_channels_from_the_store(runs, tiny_runs):
    params, channels = load(runs.ear).params, list(load(runs.ear).config.ear.channels)
    mean, std = Store(str(tiny_runs.store)).statistics()
    np.testing.assert_array_equal(params["ear/channel_mean"], mean[channels])
    np.testing.assert_array_equal(params["ear/channel_std"], std[channels])
    assert set(params) == {path for path in split(tiny_model("ear"))[1]}


def test_an_ear_returns_from_a_file(runs, tmp_path):
    out = tmp_path / "ear.safetensors"
    assert run_unils("export", "--checkpoint", runs.ear, "--out", out) == 0
    ours, again = load(runs.ear, stage="ear"), load(out, stage="ear")
    assert again.config.ear == ours.config.ear
    assert all(again.params[path].tobytes() == value.tobytes() for path, value in ours.params.items())
    assert "our ear" in out.with_name("ear.safetensors.md").read_text()


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_weights_of_an_ear_have_torch_names(blocks):
    params = split(Ear(EarConfig(num_mels=8, width=8, coarse_bands=2, blocks=blocks), rngs=nnx.Rngs(0)))[1]
    params = {f"ear/{path}": np.asarray(value) for path, value in params.items()}
    state = to_torch(params, "ear")
    assert ("ear.blocks.1.weight" in state, "ear.hidden.weight" in state) == (blocks == 2, blocks == 0)
    again = to_paths(state, "ear")
    assert set(again) == set(params) and all(np.array_equal(again[path], params[path]) for path in params)


def test_a_dialogue_freezes_and_saves_and_exports_its_ear(runs, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "model.safetensors"
    with quick_compiles():
        assert run_unils("train", *runs.flags, "--workdir", workdir, f"--config.audio_encoder={runs.ear}") == 0
    assert run_unils("export", "--checkpoint", workdir, "--out", out) == 0
    ear, again = load(runs.ear).params, load(out)
    assert again.config == load(workdir).config and not again.system.lacks(again.config, again.params, "")
    assert all(again.params[path].tobytes() == np.asarray(value).tobytes() for path, value in ear.items())
    assert "ear.context.weight" in load_file(out)
    np.testing.assert_array_equal(again.model.ear.channel_mean[...], ear["ear/channel_mean"])


def test_a_dialogue_names_the_ear_that_is_missing_or_another(runs, tiny_runs, tmp_path, capsys):
    wrong = (
        ("", "needs a trained one: set --config.audio_encoder"),
        ("nowhere", "config.audio_encoder 'nowhere' does not exist"),
        (tiny_runs.workdirs["codec"], "is a checkpoint of the codec stage, a ear is needed"),
    )
    for path, message in wrong:
        flags = (*runs.flags, "--workdir", tmp_path / "run", f"--config.audio_encoder={path}", "--dry_run")
        assert run_unils("train", *flags) == 2
        assert message in capsys.readouterr().err
    flags = (*runs.flags, "--workdir", tmp_path / "run", f"--config.audio_encoder={runs.ear}", "--dry_run")
    assert run_unils("train", *flags, "--config.model.ear.normalize_level=false") == 2
    assert "ear.normalize_level is True in it and False in the config" in capsys.readouterr().err
