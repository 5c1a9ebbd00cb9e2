"""UniTalker through the command line: two sets and a store in one run, resumed; a new head on what stands still."""

import json
import re
import shutil
from pathlib import Path
from textwrap import dedent

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_files import assert_same, assert_same_run, item, metrics
from talker_data import write_set
from tiny_runs import made_once, quick_compiles, run_unils

from unils_jax.checkpoints.loading import load
from unils_jax.motion import MOTION_KIND

CONFIG = """
    from unils_jax.config import load_config

    def get_config():
        config = load_config("smoke/unitalker")
        config.num_epochs = 2
        config.data.update({{"store": {store!r}, "sets": {sets!r}, "batch_size": 2, "clip_step_s": 1.0}})
        config.model.width = 8
        config.model.pca_dim = 3
        config.model.wav2vec2.update({{
            "width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 16, "conv_dims": (4,) * 7, "pos_conv_kernel": 4,
            "pos_conv_groups": 2,
        }})
        config.update({{"log_every": 1, "eval_every": 4, "eval_batches": 3, "checkpoint_every": 2}})
        {more}
        return config
"""
LIPS = np.array([0, 1])
# What needs a trained run waits for its programs to compile.
slow = pytest.mark.slow


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clip(seconds: float, fps: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = rng(seed)
    return (
        draw.normal(0, 0.3, (int(seconds * fps), dim)).astype(np.float32),
        draw.normal(0, 0.1, int(seconds * 16_000)).astype(np.float32),
    )


def write_sets(folder: Path) -> tuple[str, str]:
    """Two kinds: one of vertices with a PCA at 25 fps, one of weights at 30; two records each."""
    records = [(i, 25, *clip(1.4, 25, 12, i)) for i in range(2)]
    one = write_set(folder / "vertices", "BIWI_23370_vertices", records, rng(9).normal(0, 1, (2, 12)))
    components = np.linalg.qr(rng(8).normal(0, 1, (12, 4)))[0].T
    np.savez(one.folder / "pca.npz", components_to_data=components, original_data_mean=np.zeros(12, np.float32))
    records = [(0, 30, *clip(1.2, 30, 5, 10 + i)) for i in range(2)]
    two = write_set(folder / "weights", "3DETF_blendshape_weight", records, np.zeros((1, 5)))
    resources = folder / "resources"
    resources.mkdir()
    for name in ("04_BIWI_mouth_idx", "03_emo_talk_mouth_idx"):
        np.save(resources / f"{name}.npy", LIPS)
    np.savez(
        resources / "EmoTalk.npz", meanshape=rng(7).normal(0, 1, (4, 3)), blendshape=rng(6).normal(0, 1, (5, 4, 3))
    )
    return f"{one.folder}=0.5*2", f"{two.folder}=1*1"


def write_config(path: Path, store: str, sets: tuple[str, ...], more: str = "") -> Path:
    path.write_text(dedent(CONFIG).format(store=store, sets=sets, more=more))
    return path


def train(config: Path, workdir: Path, *flags: str | Path) -> int:
    with quick_compiles():
        return run_unils("train", "--config", config, "--workdir", workdir, *flags)


@pytest.fixture(scope="session")
def run(tmp_path_factory, compile_cache) -> Path:
    """A workdir of two epochs of both sets, a checkpoint every two steps; its config and data stand beside it."""

    def make(folder: Path) -> None:
        sets = write_sets(folder)
        more = f'config.settings.resources = "{folder / "resources"}"; config.head = ""'
        config = write_config(folder / "unitalker.py", "", sets, more)
        assert train(config, folder / "run") == 0

    return made_once(tmp_path_factory, "unitalker", make) / "run"


def steps_of(run: Path) -> tuple[int, int]:
    config = json.loads((run / "config.json").read_text())
    return config["num_steps"], config["settings"]["frozen_steps"]


@slow
def test_an_epoch_holds_every_set_as_often_as_it_says_and_a_batch_one_kind(run):
    # Two records twice in batches of two, and two records once: the kinds and lengths are apart.
    assert steps_of(run) == (6, 3)
    rows = [row for row in metrics(run) if row["split"] == "train"]
    kinds = [[name.removesuffix("/loss") for name in row if name.endswith("/loss")] for row in rows]
    assert all(len(found) == 1 for found in kinds) and len(kinds) == 6
    assert sorted(found[0] for found in kinds[:3]) == ["3DETF_blendshape_weight", *["BIWI_23370_vertices"] * 2]


@slow
def test_the_model_is_settled_by_the_data(run):
    checkpoint = load(run)
    talker = checkpoint.config
    assert talker.annotations == ("BIWI_23370_vertices", "3DETF_blendshape_weight")
    assert talker.dims == (12, 5) and talker.components == (4, 0) and talker.num_identities == 4
    assert checkpoint.params["heads/BIWI_23370_vertices/kernel"].shape == (8, 3)
    components = np.load(run.parent / "vertices" / "pca.npz")["components_to_data"].astype(np.float32)
    np.testing.assert_array_equal(checkpoint.params["pca/BIWI_23370_vertices/components"], components)


@slow
def test_the_encoder_stands_still_for_an_epoch_and_its_convolutions_for_ever(run):
    early, late = (item(run, step, "params") for step in (2, 6))
    frozen = item(run, 6, "frozen")
    assert {path.split("/")[0] for path in frozen} == {"pca", "speech_encoder"}
    assert all("/convs/" in path for path in frozen if path.startswith("speech"))
    moved = {path for path in late if not np.array_equal(early[path], late[path])}
    assert {path for path in late if path.startswith("speech_encoder/")} - moved <= {"speech_encoder/masked_spec_embed"}
    first = item(run, 2, "optimizer")
    untouched = [name for name in first if "counts" in name and "speech_encoder/blocks" in name]
    assert untouched and all(first[name] == 0 for name in untouched)
    last = item(run, 6, "optimizer")  # made anew after three steps
    assert all(last[name] <= 3 for name in last if "counts" in name)
    heads = {name.split("heads/")[1]: int(last[name]) for name in last if "counts" in name and "heads/" in name}
    assert sum(count for name, count in heads.items() if name.endswith("kernel")) == 3


@slow
def test_a_resumed_run_ends_bit_identical_to_the_uninterrupted_one(run, tmp_path):
    resumed = shutil.copytree(run, tmp_path / "resumed")
    for step in (4, 6):
        shutil.rmtree(resumed / "checkpoints" / str(step), ignore_errors=True)
    assert train(run.parent / "unitalker.py", resumed) == 0
    assert_same_run(run, resumed, 6)


@slow
def test_validation_tells_lip_errors_of_every_kind(run):
    row = [row for row in metrics(run) if row["split"] == "val"][-1]
    for kind in ("BIWI_23370_vertices", "3DETF_blendshape_weight"):
        assert row[f"{kind}/LVE"] > 0 and row[f"{kind}/LVD"] > 0


@slow
def test_a_run_is_evaluated_on_its_own_sets_and_its_export_alike(run, tmp_path):
    reports, file, flags = [], tmp_path / "talker.safetensors", ()
    assert run_unils("export", "--checkpoint", run, "--out", file) == 0
    for i, checkpoint in enumerate((run, file)):
        with quick_compiles():
            assert run_unils("evaluate", "--checkpoint", checkpoint, *flags, "--out", tmp_path / f"{i}.json") == 0
        reports.append(json.loads((tmp_path / f"{i}.json").read_text()))
        flags = ("--sets", *reports[0]["settings"]["sets"], "--resources", run.parent / "resources")
    first, second = reports
    assert first["metrics"] == second["metrics"] and first["settings"]["identities"] == "as annotated"
    for kind in ("BIWI_23370_vertices", "3DETF_blendshape_weight"):
        assert first["metrics"][kind]["LVE"]["mean"] > 0 and first["metrics"][kind]["records"] == 2


def outputs(checkpoint, kind: str, dim: int) -> np.ndarray:
    audio = jnp.asarray(rng(3).normal(0, 1, (1, 12_000)), jnp.float32)
    identity = jnp.array([1], jnp.int32)
    return np.asarray(checkpoint.model(audio, jnp.zeros((1, dim)), identity, kind, 20).motion)


@slow
def test_a_new_annotation_of_a_store_trains_its_head_alone(run, tiny_store, tmp_path):
    """FLAME-like parameters at 25 fps from a store of ours as a new head: all else keeps every bit."""
    more = f'config.num_epochs = 0; config.num_steps = 3; config.trainable = "heads/{MOTION_KIND}/.*"; '
    more += "config.settings.as_pivot = True; config.settings.frozen_epochs = 0; config.data.batch_size = 1"
    config = write_config(tmp_path / "head.py", str(tiny_store), (), more)
    assert train(config, tmp_path / "head", "--parent", run) == 0
    before, after = load(run), load(tmp_path / "head")
    assert after.config.annotations == (*before.config.annotations, MOTION_KIND)
    assert after.config.num_identities == before.config.num_identities
    assert_same({path: after.params[path] for path in before.params}, before.params)
    assert np.abs(after.params[f"heads/{MOTION_KIND}/kernel"]).max() > 0
    for kind, dim in (("BIWI_23370_vertices", 12), ("3DETF_blendshape_weight", 5)):
        np.testing.assert_array_equal(outputs(after, kind, dim), outputs(before, kind, dim))
    assert jax.numpy.isfinite(outputs(after, MOTION_KIND, 108)).all()


@slow
def test_with_other_subjects_every_row_becomes_the_parents_last(run, tiny_store, tmp_path):
    config = write_config(tmp_path / "tuned.py", str(tiny_store), (), "config.num_epochs = 0; config.num_steps = 1")
    assert train(config, tmp_path / "tuned", "--parent", run, "--config.data.batch_size=1", "--dry_run") == 0
    assert train(config, tmp_path / "tuned", "--parent", run, "--config.data.batch_size=1") == 0
    table = load(run).params["decoder/identity_embed"]
    tuned = load(tmp_path / "tuned").params["decoder/identity_embed"]
    assert len(tuned) != len(table)
    assert np.abs(tuned - table[-1:]).max() < 2e-3  # but for one step of 1e-3


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--config.data.sets=('x=0*1',)",), r"must hold PATH=SCALE\*REPEATS with positive numbers, got 'x=0\*1'"),
        (("--config.stage=codec",), "data.sets are UniTalker's"),
        (("--config.settings.pivot_rate=2.0",), "pivot_rate must be in 0..1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, capfd, flags, problem):
    config = write_config(tmp_path / "unitalker.py", "", write_sets(tmp_path))
    assert train(config, tmp_path / "new", *flags) == 2
    assert re.search(problem, capfd.readouterr().err)
