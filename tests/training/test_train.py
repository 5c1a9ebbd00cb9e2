"""Training through `unils train`: what changes, what does not, and that an interrupted run loses nothing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_files import assert_same, assert_same_run, item, metrics, without_speed
from tiny_runs import CHECKPOINT_EVERY, NUM_STEPS, STAGES, run_unils

from data_pipelines.store.reader import Store
from unils_jax.checkpoints.loading import load
from unils_jax.motion import load_motion
from unils_jax.systems.registry import STAGES as STAGE_DATA
from unils_jax.training.loop import mean_metrics

EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


def cut_back(workdir: Path) -> Path:
    """Turns a workdir into that of a run killed after its last step was logged, not yet saved."""
    shutil.rmtree(workdir / "checkpoints" / str(NUM_STEPS))
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "split": "tr')
    return workdir


@EACH_STAGE
def test_resumed_run_ends_bit_identical_to_the_uninterrupted_one(tiny_runs, tmp_path, stage):
    whole = tiny_runs.workdirs[stage]
    resumed = cut_back(tiny_runs.copy(stage, tmp_path / stage))
    assert tiny_runs.train(stage, resumed) == 0
    assert_same_run(whole, resumed, NUM_STEPS)


@pytest.mark.slow
def test_resume_is_exact_with_data_workers_too(tiny_runs, tmp_path):
    flags = ["--config.data.num_workers=2"]
    assert tiny_runs.train("dialogue", tmp_path / "whole", *flags) == 0
    resumed = cut_back(shutil.copytree(tmp_path / "whole", tmp_path / "resumed"))
    assert tiny_runs.train("dialogue", resumed, *flags) == 0
    assert_same_run(tmp_path / "whole", resumed, NUM_STEPS)


@EACH_STAGE
def test_every_step_is_logged_and_every_third_saved(tiny_runs, stage):
    rows = metrics(tiny_runs.workdirs[stage])
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, NUM_STEPS + 1))
    assert [row["step"] for row in rows if row["split"] == "val"] == [CHECKPOINT_EVERY, NUM_STEPS]
    for row in without_speed(rows):
        assert np.isfinite(list(value for name, value in row.items() if name != "split")).all()
        wanted = {"loss", "grad_norm", "learning_rate", "finite"} if row["split"] == "train" else {"loss"}
        assert wanted <= row.keys()
    saved = sorted(entry.name for entry in (tiny_runs.workdirs[stage] / "checkpoints").iterdir())
    assert saved == [str(CHECKPOINT_EVERY), str(NUM_STEPS)]


@EACH_STAGE
def test_only_the_stages_parameters_train_and_all_of_them_do(tiny_runs, stage):
    workdir, pattern = tiny_runs.workdirs[stage], STAGE_DATA[stage].trainable
    early, late = (item(workdir, step, "params") for step in (CHECKPOINT_EVERY, NUM_STEPS))
    assert all(re.fullmatch(pattern, path) for path in early)
    unchanged = [path for path in early if np.array_equal(early[path], late[path])]
    assert not unchanged
    frozen = item(workdir, NUM_STEPS, "frozen")
    assert not [path for path in frozen if re.fullmatch(pattern, path)]


@EACH_STAGE
def test_frozen_parameters_stay_bit_identical(tiny_runs, stage):
    workdir = tiny_runs.workdirs[stage]
    early, late = (item(workdir, step, "frozen") for step in (CHECKPOINT_EVERY, NUM_STEPS))
    assert_same(early, late)


@pytest.mark.parametrize(("stage", "parent"), [("prior", "codec"), ("dialogue", "prior")])
def test_a_stage_freezes_its_parents_averaged_weights(tiny_runs, stage, parent):
    frozen = item(tiny_runs.workdirs[stage], NUM_STEPS, "frozen")
    inherited = load(tiny_runs.workdirs[parent]).params
    assert_same({path: frozen[path] for path in inherited}, inherited)


@pytest.mark.slow
def test_a_dialogue_on_mixed_audio_moves_adapters_and_its_one_attention_alone_and_resumes(tiny_runs, tmp_path):
    whole, mixed = tmp_path / "whole", "--config.model.prior.audio_condition=mixed"
    assert tiny_runs.train("dialogue", whole, mixed) == 0
    resumed = cut_back(shutil.copytree(whole, tmp_path / "resumed"))
    assert tiny_runs.train("dialogue", resumed, mixed) == 0
    assert_same_run(whole, resumed, NUM_STEPS)
    early, late = (item(whole, step, "params") for step in (CHECKPOINT_EVERY, NUM_STEPS))
    assert all(re.search(r"/lora_[ab]$|/audio_attn/", path) for path in early)
    assert not [path for path in early if np.array_equal(early[path], late[path])]
    frozen, inherited = item(whole, NUM_STEPS, "frozen"), load(tiny_runs.workdirs["prior"]).params
    assert_same({path: frozen[path] for path in inherited}, inherited)
    assert frozen.keys() - inherited.keys() == {"prior/audio_embed"}


@pytest.mark.slow
@pytest.mark.parametrize("audio_condition", ["own", "pair", "mixed"])
def test_artalk_trains_decodes_and_is_scored_whatever_it_listens_to(tiny_runs, release, tmp_path, audio_condition):
    lines = [
        "from unils_jax.config import load_config",
        "def get_config():",
        f"    config = load_config({str(tiny_runs.configs['dialogue'])!r})",
        "    config.system, config.stage, config.model.lora = 'artalk', 'artalk', None",
        f"    config.model.prior.audio_condition = {audio_condition!r}",
        "    return config",
    ]
    (tmp_path / "artalk.py").write_text("\n".join(lines) + "\n")
    flags = ["--config", tmp_path / "artalk.py", "--parent", tiny_runs.workdirs["codec"], "--workdir", tmp_path / "w"]
    assert run_unils("train", *flags) == 0
    assert set(item(tmp_path / "w", NUM_STEPS, "params")) == {p for p in load(tmp_path / "w").params if "prior/" in p}
    flags = ["--checkpoint", tmp_path / "w", "--audio", release.audio, "--audio2", release.audio2]
    assert run_unils("decode", *flags, "--out", tmp_path / "m.npz") == 0
    assert load_motion(tmp_path / "m.npz").motion.shape == (2, 237, 108)
    flags = ["--checkpoint", tmp_path / "w", "--data", tiny_runs.store, "--out", tmp_path / "report.json"]
    assert run_unils("evaluate", *flags) == 0
    assert json.loads((tmp_path / "report.json").read_text())["data"]["conversations"] == 1


@EACH_STAGE
def test_average_covers_the_trainable_parameters_and_lags_behind_them(tiny_runs, stage):
    workdir = tiny_runs.workdirs[stage]
    params, ema = (item(workdir, NUM_STEPS, name) for name in ("params", "ema"))
    assert params.keys() == ema.keys()
    assert not [path for path in params if np.array_equal(params[path], ema[path])]


def test_optimizer_holds_moments_of_the_trainable_parameters_only(tiny_runs):
    workdir = tiny_runs.workdirs["dialogue"]
    trainable = item(workdir, NUM_STEPS, "params")
    moments = [path for path, leaf in item(workdir, NUM_STEPS, "optimizer").items() if np.ndim(leaf)]
    assert len(moments) == 2 * len(trainable)


def test_channel_statistics_come_from_the_store_and_travel_on(tiny_runs):
    mean, std = Store(tiny_runs.store).statistics()
    for stage in STAGES:
        params = load(tiny_runs.workdirs[stage]).params
        for name, expected in (("mean", mean), ("std", std)):
            assert np.array_equal(params[f"codec/motion_{name}"], expected)


def test_a_finished_run_has_nothing_left_to_do(tiny_runs, tmp_path, capsys):
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert tiny_runs.train("codec", workdir) == 0
    assert "trained 6 steps, nothing was left to do" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())


@EACH_STAGE
def test_dry_run_checks_everything_and_writes_no_checkpoint(tiny_runs, tmp_path, capsys, stage):
    assert tiny_runs.train(stage, tmp_path / "new", "--dry_run") == 0
    assert "config, data, parent and shapes fit; nothing was trained" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_a_dry_run_for_a_cluster_says_how_the_run_lies_there(tiny_runs, tmp_path, capsys, caplog):
    flags = ["--config.data.batch_size=32", "--config.mesh.fsdp=4", "--dry_run"]
    together = ["--coordinator", "head:1", "--num_processes", "4", "--process_id", "2"]
    with caplog.at_level("INFO"):
        assert tiny_runs.train("prior", tmp_path / "new", *flags, *together, "--topology", "v5e:4x4") == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert "mesh: data 4 x fsdp 4, 16 devices" in caplog.messages
    assert "batch: 32, 2 a device in 1 parts, 8 a process of 4" in caplog.messages
    (memory,) = [line for line in caplog.messages if line.startswith("memory of a device")]
    assert "of its 16 GB" in memory
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--devices", "8"], "--devices and --topology are for --dry_run"),
        (["--dry_run", "--devices", "8", "--topology", "h100:8"], "give one of them"),
        (["--dry_run", "--devices", "0"], "--devices must be a multiple of the 1 processes and at least 1, got 0"),
        (["--dry_run", "--devices", "6", "--config.mesh.fsdp=4"], "must be the number of devices, 6, got all x 4"),
        (["--dry_run", "--devices", "64"], "data.batch_size must be a multiple of devices"),
        (["--dry_run", "--topology", "v5e"], "--topology must be a TPU"),
    ],
)
def test_a_dry_run_for_what_does_not_fit_is_refused(tiny_runs, tmp_path, capsys, flags, problem):
    assert tiny_runs.train("codec", tmp_path / "new", *flags) == 2
    assert problem in capsys.readouterr().err


def test_a_save_that_was_cut_short_is_not_taken_for_a_checkpoint(tiny_runs, tmp_path):
    workdir = tiny_runs.copy("prior", tmp_path / "prior")
    shutil.rmtree(workdir / "checkpoints" / str(NUM_STEPS))
    step = workdir / "checkpoints" / str(CHECKPOINT_EVERY)
    step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp-0"))
    assert tiny_runs.train("prior", workdir) == 0
    assert_same(item(workdir, NUM_STEPS, "frozen"), item(tiny_runs.workdirs["prior"], NUM_STEPS, "frozen"))
    # Fresh weights are drawn by small programs that another test of this process may have compiled with other
    # optimisations than the process that made the tiny runs: they may differ in the last bit.
    fresh, first = item(workdir, NUM_STEPS, "params"), item(tiny_runs.workdirs["prior"], NUM_STEPS, "params")
    for path, value in fresh.items():
        np.testing.assert_allclose(value, first[path], atol=1e-5, err_msg=path)


def test_old_checkpoints_are_removed_as_the_config_says(tiny_runs, tmp_path):
    workdir = tmp_path / "codec"
    assert tiny_runs.train("codec", workdir, "--config.keep_checkpoints=1", "--config.eval_every=6") == 0
    assert [entry.name for entry in (workdir / "checkpoints").iterdir()] == [str(NUM_STEPS)]


def test_validation_metrics_are_means_over_the_batches():
    assert mean_metrics(
        iter([{"loss": np.float32(1), "l1": np.float32(4)}, {"loss": np.float32(2), "l1": np.float32(0)}])
    ) == {
        "loss": 1.5,
        "l1": 2.0,
    }
    assert mean_metrics(iter([])) == {}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prior", "dialogue"])
def test_the_averaged_model_is_scored_and_filmed_while_it_trains(tiny_runs, tmp_path, stage):
    workdir = tmp_path / stage
    flags = ["--config.probe_every=3", "--config.probe_conversations=1", "--config.probe_clips=True"]
    assert tiny_runs.train(stage, workdir, *flags) == 0
    free = [row for row in metrics(workdir) if row["split"] == "free"]
    assert [row["step"] for row in free] == [3, 6]
    wanted = {"unils/both/FDD", "unils/both/PDD", "unils/both/JDD"}
    wanted |= {"unils/both/LVE"} if stage == "dialogue" else set()
    for row in free:
        assert wanted <= row.keys() and all(np.isfinite(row[name]) for name in wanted)
        assert ("unils/both/LVE" in row) == (stage == "dialogue")  # a prior answers no audio
    assert free[0] != {**free[1], "step": 3}
    clips = sorted((workdir / "clips").iterdir())
    assert [clip.name for clip in clips] == ["step_3.mp4", "step_6.mp4"] and clips[0].stat().st_size > 10_000
    learnt = [row for row in without_speed(metrics(workdir)) if row["split"] != "free"]
    assert learnt == without_speed(metrics(tiny_runs.workdirs[stage]))
