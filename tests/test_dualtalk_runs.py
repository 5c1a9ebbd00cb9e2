"""DualTalk through the command line: trained, resumed, evaluated, decoded, exported; one tiny run serves all."""

import re
import shutil
from pathlib import Path
from textwrap import dedent

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_files import assert_same, assert_same_run, item, metrics
from tiny_models import tiny_model
from tiny_runs import made_once, quick_compiles, run_unils

from unils_jax.nn.params import split
from unils_jax.stages import DUALTALK, Objective
from unils_jax.train.step import gradients

CONFIG = """
    from unils_jax.config import load_config

    def get_config():
        config = load_config("smoke_dualtalk")
        config.num_steps = 4
        config.data.update({{"store": {store!r}, "batch_size": 2}})
        config.model.dualtalk.update({{"width": 8, "num_heads": 2, "hidden_dim": 16, "depth": 1}})
        config.model.dualtalk.wav2vec2.update({{
            "width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 16, "conv_dims": (4,) * 7, "pos_conv_kernel": 4,
            "pos_conv_groups": 2,
        }})
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


def test_a_resumed_run_ends_bit_identical_to_the_uninterrupted_one(run, tmp_path):
    resumed = shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "4")
    assert train(run, resumed) == 0
    assert_same_run(run, resumed, 4)


def test_all_but_the_convolutions_train_and_the_average_is_the_weights(run):
    early, late, average, frozen = (
        item(run, step, name) for step, name in ((2, "params"), (4, "params"), (4, "ema"), (4, "frozen"))
    )
    assert not [path for path in early if np.array_equal(early[path], late[path])]
    assert_same(late, average)
    assert frozen and all(re.fullmatch(r"(own|partner)_encoder/convs/.*", path) for path in frozen)
    assert {"loss", "expression", "jaw", "head", "velocity", "position"} <= metrics(run)[-1].keys()


def test_both_biases_of_the_lstm_learn_alike(run):
    early, late = (item(run, step, "params") for step in (2, 4))
    moved = [late[path] - early[path] for path in early if re.fullmatch(r"partner_lstm/forward/0/\w+/bias", path)]
    assert len(moved) == 2 and np.abs(moved[0]).max() > 1e-4
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-6)


def test_a_batch_in_parts_learns_what_it_does_in_one_piece():
    graphdef, params = split(tiny_model("dualtalk"))
    trainable, frozen = DUALTALK.split(params)
    rng = np.random.default_rng(0)
    shapes = {"audio": (4, 12_800), "partner_audio": (4, 12_800), "motion": (4, 20, 56), "partner_motion": (4, 20, 56)}
    batch = {name: jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for name, shape in shapes.items()}
    batch["observed"] = jnp.ones((4, 56)).at[1].set(0).at[2, 50:].set(0)

    def run(parts: int):
        arguments = (trainable, frozen, batch, jax.random.key(1))
        with quick_compiles():
            return jax.jit(lambda *x: gradients(DUALTALK, graphdef, Objective(), *x, parts))(*arguments)

    (grads, metrics), (cut, again) = run(1), run(2)
    assert float(again["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for path, value in grads.items():
        np.testing.assert_allclose(cut[path], value, atol=1e-5 * max(1, float(jnp.abs(value).max())))
