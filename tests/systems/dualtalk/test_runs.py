"""DualTalk through the command line: trained, resumed, evaluated, decoded, exported; one tiny run serves all."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from run_files import assert_same, assert_same_run, item, metrics
from tiny_models import tiny_model
from tiny_runs import made_once, quick_compiles, run_unils

from data_pipelines.store.reader import Store
from data_pipelines.windows import RecordSource
from unils_jax.checkpoints.loading import load
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.motion import MOTION_56_GROUPS, load_motion, save_motion, to_56_channels
from unils_jax.nn.params import split
from unils_jax.systems.base import Objective
from unils_jax.systems.dualtalk.model import DualTalk, DualTalkConfig
from unils_jax.systems.dualtalk.system import DUALTALK_STAGE, respond
from unils_jax.training.step import TrainTask, gradients

CONFIG = """
    from unils_jax.config import load_config

    def get_config():
        config = load_config("smoke/dualtalk")
        config.num_steps = 4
        config.data.update({{"store": {store!r}, "batch_size": 2}})
        config.model.update({{"width": 8, "num_heads": 2, "hidden_dim": 16, "depth": 1, "dropout_rate": 0.1}})
        config.model.logmel, config.model.alignment = None, False
        config.model.wav2vec2.update({{
            "width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 16, "conv_dims": (4,) * 7, "pos_conv_kernel": 4,
            "pos_conv_groups": 2,
        }})
        config.optimizer.update({{"learning_rate": 1e-3, "warmup_steps": 0, "final_factor": 1.0, "max_grad_norm": 0.0}})
        # Draws take long to compile: some of each kind are enough.
        rates = {{"layer_drop": 0.0, "attention": 0.0, "activation": 0.0, "projection": 0.0}}
        config.model.rates.update(rates)
        config.update({{"log_every": 1, "eval_every": 2, "eval_batches": 1, "checkpoint_every": 2}})
        return config
"""


def train(run: Path, workdir: Path, *flags: str) -> int:
    with quick_compiles():
        return run_unils("train", "--config", run.parent / "dualtalk.py", "--workdir", workdir, *flags)


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_store, compile_cache) -> Path:
    """A workdir of four steps with checkpoints after two and four; its config stands beside it."""

    def make(folder: Path) -> None:
        (folder / "dualtalk.py").write_text(dedent(CONFIG.format(store=str(tiny_store))))
        assert train(folder / "run", folder / "run") == 0

    return made_once(tmp_path_factory, "dualtalk", make) / "run"


@pytest.mark.slow
def test_the_small_form_on_log_mel_features_trains_whole_and_travels(run, tmp_path):
    text = (run.parent / "dualtalk.py").read_text()
    text = text.replace("= None, False", '= {"num_mels": 4, "context_frames": 0}, True')
    (tmp_path / "dualtalk.py").write_text(text.replace("num_steps = 4", "num_steps = 2"))
    assert train(tmp_path / "run", tmp_path / "run") == 0
    checkpoint = load(tmp_path / "run")
    assert checkpoint.config.alignment and not [path for path in checkpoint.params if "encoder/convs" in path]
    assert checkpoint.params.keys() == item(tmp_path / "run", 2, "params").keys()
    assert run_unils("export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "model.safetensors") == 0
    back = load(tmp_path / "model.safetensors")
    assert back.config == checkpoint.config
    assert_same(back.params, checkpoint.params)
    # Nothing is left to do, and what was saved is whole.
    assert train(tmp_path / "run", tmp_path / "run") == 0


@pytest.mark.parametrize("alignment", [False, True])
def test_with_alignment_a_frame_of_the_fusion_is_its_own_and_without_it_the_mean_of_all(alignment):
    config = DualTalkConfig(Wav2Vec2Config(8, 1, 2, 8, pos_conv_groups=2), 8, 2, 16, 1, alignment=alignment)
    model = DualTalk(replace(config, logmel=LogMelConfig(4, 0)), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 20, 16))
    moved = x.at[:, 7].add(1.0)
    changed = jnp.abs(model.interact(moved) - model.interact(x)).max((0, 2)) > 0
    # The layers before it look at all frames; so only those without them can tell.
    model.interaction = nnx.List([])
    alone = jnp.abs(model.interact(moved) - model.interact(x)).max((0, 2)) > 1e-7
    assert changed.all()
    assert alone.tolist() == [not alignment or frame == 7 for frame in range(20)]


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical_to_the_uninterrupted_one(run, tmp_path):
    resumed = shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "4")
    assert train(run, resumed) == 0
    assert_same_run(run, resumed, 4)


def test_all_but_the_convolutions_train_and_the_average_is_the_weights(run):
    early, late, average, frozen = (
        item(run, step, name) for step, name in ((2, "params"), (4, "params"), (4, "ema"), (4, "frozen"))
    )
    # A key's bias moves all of a query's scores alike, which softmax takes out: its gradient is rounding, or nothing.
    still = [path for path in early if np.array_equal(early[path], late[path])]
    assert all(path.endswith("attn/k/bias") for path in still)
    assert_same(late, average)
    assert frozen and all(re.fullmatch(r"(own|partner)_encoder/convs/.*", path) for path in frozen)
    assert {"loss", "expression", "jaw", "head", "velocity", "position"} <= metrics(run)[-1].keys()


def test_both_biases_of_the_lstm_learn_alike(run):
    early, late = (item(run, step, "params") for step in (2, 4))
    moved = [late[path] - early[path] for path in early if re.fullmatch(r"partner_lstm/forward/0/\w+/bias", path)]
    assert len(moved) == 2 and np.abs(moved[0]).max() > 1e-4
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-6)


@pytest.mark.slow
def test_a_batch_in_parts_learns_what_it_does_in_one_piece():
    graphdef, params = split(tiny_model("dualtalk"))
    trainable, frozen = DUALTALK_STAGE.split(params)
    rng = np.random.default_rng(0)
    shapes = {"audio": (4, 12_800), "partner_audio": (4, 12_800), "motion": (4, 20, 56), "partner_motion": (4, 20, 56)}
    batch = {name: jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for name, shape in shapes.items()}
    batch["observed"] = jnp.ones((4, 56)).at[1].set(0).at[2, 50:].set(0)

    def run(parts: int):
        arguments = (trainable, frozen, batch, jax.random.key(1))
        with quick_compiles():
            return jax.jit(lambda *x: gradients(TrainTask(DUALTALK_STAGE, graphdef, Objective()), *x, parts))(
                *arguments
            )

    (grads, metrics), (cut, again) = run(1), run(2)
    assert float(again["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for path, value in grads.items():
        np.testing.assert_allclose(cut[path], value, atol=1e-5 * max(1, float(jnp.abs(value).max())))


@pytest.fixture(scope="module")
def record(tiny_store):
    """The test split's conversation, as the store holds it."""
    return Store(str(tiny_store)).read("test", 0)


@pytest.fixture(scope="module")
def answers(run, record) -> list[np.ndarray]:
    """What the tiny run makes of either person of the record, the other's truth before it."""
    model, motion = load(run).model, record.motion.astype(np.float32)
    audio = RecordSource(record).audio(0, record.num_frames * 640)
    with quick_compiles():
        return [respond(model, audio[p], audio[1 - p], motion[1 - p]) for p in (0, 1)]


def test_evaluation_scores_both_people_as_tracked_with_the_partners_truth(run, tiny_store, record, answers, tmp_path):
    out, flags = tmp_path / "report.json", ("--protocol", "dualtalk", "--limit", "1")
    with quick_compiles():
        assert run_unils("evaluate", "--checkpoint", run, "--data", tiny_store, "--out", out, *flags) == 0
    report = json.loads(out.read_text())
    settings = report["settings"]["protocol"]
    assert settings["people_scored"] == 2 and settings["head_rotation"] == "as it is"
    assert "true motion" in settings["partner"] and report["settings"]["seeds"] == []
    truth = to_56_channels(record.motion.astype(np.float32))
    frames = truth.shape[1]
    for group, channels in MOTION_56_GROUPS.items():
        errors = [np.square(to_56_channels(answers[p])[:frames] - truth[p])[:, channels].mean() for p in (0, 1)]
        assert report["metrics"][f"dualtalk/mse/{group}"]["mean"] == pytest.approx(np.mean(errors), rel=1e-3)


def test_a_seed_too_many_is_refused(run, tiny_store, capsys):
    assert run_unils("evaluate", "--checkpoint", run, "--data", tiny_store, "--seeds", "2") == 2
    assert "DualTalk draws nothing" in capsys.readouterr().err


def decode(run: Path, folder: Path, *flags: str | Path) -> int:
    with quick_compiles():
        return run_unils("decode", "--checkpoint", run, "--out", folder / "m.npz", "--raw", *flags)


@pytest.fixture(scope="module")
def files(record, tmp_path_factory) -> SimpleNamespace:
    """The record as two tracks, a motion file of both people and one of the second alone."""
    folder = tmp_path_factory.mktemp("talk")
    audio = RecordSource(record).audio(0, record.num_frames * 640)
    paths = SimpleNamespace(a=folder / "a.wav", b=folder / "b.wav", both=folder / "both.npz", second=folder / "b.npz")
    for path, track in ((paths.a, audio[0]), (paths.b, audio[1])):
        soundfile.write(path, track, 16_000, subtype="FLOAT")
    motion = record.motion.astype(np.float32)
    for path, people in ((paths.both, motion), (paths.second, motion[1:])):
        save_motion(path, people, expression_basis="standin", source={})
    return paths


def test_decode_answers_the_partners_motion(run, files, answers, tmp_path, capsys):
    tracks = ("--audio", files.a, "--audio2", files.b)
    for flags in (("--motion2", files.second), ("--motion2", files.both, "--people", "2")):
        assert decode(run, tmp_path, *tracks, *flags) == 0
        found = load_motion(tmp_path / "m.npz")
        for person, motion in enumerate(found.motion):
            np.testing.assert_allclose(motion, answers[person], atol=1e-5)
        assert found.source["partner_motion"] == str(flags[1]) and found.expression_basis == "standin"
    assert len(found.motion) == 2
    assert decode(run, tmp_path, *tracks, "--motion2", files.second, "--people", "2") == 2
    assert "holds one person" in capsys.readouterr().err


def test_a_partner_without_motion_stands_still_and_it_is_said(run, files, answers, tmp_path, caplog):
    assert decode(run, tmp_path, "--audio", files.a) == 0
    assert "the partner does not move" in caplog.text
    found = load_motion(tmp_path / "m.npz")
    assert found.source["partner_motion"] == "zero" and found.motion.shape == (1, *answers[0].shape)
    assert not np.allclose(found.motion[0], answers[0], atol=1e-3)


@pytest.mark.slow
def test_a_unils_dialogue_can_predict_what_the_partner_does(run, tiny_runs, files, tmp_path):
    dialogue, tracks = tiny_runs.workdirs["dialogue"], ("--audio", files.a, "--audio2", files.b)
    assert decode(run, tmp_path, *tracks, "--motion2_by", dialogue, "--seed", "3") == 0
    predicted = load_motion(tmp_path / "m.npz")
    assert predicted.source["partner_motion"] == f"predicted by {dialogue}"
    flags = ("--checkpoint", dialogue, *tracks, "--seed", "3", "--raw", "--out", tmp_path / "u.npz")
    with quick_compiles():
        assert run_unils("decode", *flags) == 0
    assert decode(run, tmp_path, *tracks, "--motion2", tmp_path / "u.npz") == 0
    np.testing.assert_allclose(load_motion(tmp_path / "m.npz").motion, predicted.motion, atol=1e-5)


def test_flags_of_the_other_model_are_refused(run, files, tmp_path, capsys):
    assert decode(run, tmp_path, "--audio", files.a, "--style", files.both, "--prev", files.both) == 2
    assert "--style, --prev is of UniLS" in capsys.readouterr().err
