"""Runs that are killed, stopped, damaged or changed go on as if nothing had been, or say why they do not."""

import gc
import json
import os
import random
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_files import (
    assert_same,
    assert_same_run,
    item,
    last_step,
    metrics,
    run_to_end,
    started,
    wait_until,
    without_speed,
)
from tiny_runs import NUM_STEPS, STAGES, run_unils

from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import abstract
from unils_jax.systems.registry import STAGES as STAGE_DATA
from unils_jax.training.checkpoint import Checkpoints, check_workdir
from unils_jax.training.config import run_config
from unils_jax.training.distributed import EXIT_STATUS, SIGNALS, PreemptionGuard
from unils_jax.training.loop import state_shapes
from unils_jax.training.sharding import make_mesh

PARENTS = {"codec": None, "prior": "codec", "dialogue": "prior"}
LONG = 40  # steps of a run that is interrupted; it saves every second one


def command(runs, stage: str, workdir: Path) -> list:
    """Returns the command of a run of LONG steps in a process of its own."""
    parent = [] if PARENTS[stage] is None else ["--parent", runs.workdirs[PARENTS[stage]]]
    often = ["num_steps", "checkpoint_every", "eval_every"]
    steps = [f"--config.{name}={value}" for name, value in zip(often, (LONG, 2, 7), strict=True)]
    program = [sys.executable, "-m", "unils_jax.cli.main", "train", "--config", runs.configs[stage]]
    return [*program, "--workdir", workdir, *parent, *steps, f"--config.optimizer.decay_steps={LONG}"]


def killed(command: list, workdir: Path, step: int, number: int, cache: Path, saved: int = 0) -> int:
    """Sends a signal to a run that has logged `step` and saved `saved`; returns its exit status."""
    log = workdir.with_suffix(".log")
    folder = workdir / "checkpoints" / str(saved or "")
    with started(command, cache, log) as process:
        wait_until(lambda: last_step(workdir) >= step and folder.is_dir(), process, log)
        assert process.poll() is None, log.read_text()
        process.send_signal(number)
        return process.wait(300)


def random_steps(seed: str, number: int) -> list[int]:
    """Draws so many steps of a long run, in their order."""
    return sorted(random.Random(seed).sample(range(1, LONG - 8), number))


def run_killed_at(runs, stage: str, steps: list[int], folder: Path) -> None:
    """Asserts that a run killed after these steps ends as the one that was left alone."""
    whole, broken, cache = folder / "whole", folder / "broken", folder / "xla"
    assert run_to_end(command(runs, stage, whole), cache, folder / "whole.log") == 0, (folder / "whole.log").read_text()
    for step in steps:
        assert killed(command(runs, stage, broken), broken, step, signal.SIGKILL, cache) == -signal.SIGKILL
    assert run_to_end(command(runs, stage, broken), cache, folder / "broken.log") == 0
    assert_same_run(whole, broken, LONG)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_at_ten_random_steps_ends_bit_identical(tiny_runs, tmp_path, stage):
    run_killed_at(tiny_runs, stage, random_steps(stage, 10), tmp_path)


@pytest.mark.slow
def test_a_run_killed_once_ends_bit_identical(tiny_runs, tmp_path):
    workdir = tmp_path / "dialogue"
    longer = [*command(tiny_runs, "dialogue", workdir), f"--config.optimizer.decay_steps={NUM_STEPS}"]
    longer += ["--config.eval_every=3", "--config.keep_checkpoints=100"]
    assert killed(longer, workdir, 3, signal.SIGKILL, tmp_path / "xla", saved=2) == -signal.SIGKILL
    saved = [int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit()]
    for step in saved:
        if step > 4:  # the signal came late: as if it had come in time
            shutil.rmtree(workdir / "checkpoints" / str(step))
    assert tiny_runs.train("dialogue", workdir) == 0
    assert_same_run(tiny_runs.workdirs["dialogue"], workdir, NUM_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"), [("codec", signal.SIGTERM), ("prior", signal.SIGUSR1), ("dialogue", signal.SIGTERM)]
)
def test_a_run_told_to_stop_saves_and_retrains_nothing(tiny_runs, tmp_path, stage, number):
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "xla"
    assert run_to_end(command(tiny_runs, stage, whole), cache, tmp_path / "whole.log") == 0
    for step in random_steps(f"{stage} {number}", 1):
        assert killed(command(tiny_runs, stage, broken), broken, step, number, cache) == EXIT_STATUS
        log = broken.with_suffix(".log").read_text()
        stopped_at = last_step(broken)
        assert f"stopped by {signal.Signals(number).name} after step {stopped_at}, which is saved" in log
        assert (broken / "checkpoints" / str(stopped_at)).is_dir()
        reported = (broken / "metrics.jsonl").read_bytes()
    assert run_to_end(command(tiny_runs, stage, broken), cache, tmp_path / "broken.log") == 0
    assert (broken / "metrics.jsonl").read_bytes().startswith(reported)
    assert_same_run(whole, broken, LONG)


class StopAt(PreemptionGuard):
    """A signal that comes while step `step` runs."""

    def __init__(self, step: int):
        super().__init__()
        self.steps_left = step

    @property
    def requested(self) -> bool:
        self.steps_left -= 1
        self.reason = "SIGTERM" if self.steps_left <= 0 else ""
        return bool(self.reason)


def test_an_evaluation_that_a_signal_puts_off_is_made_up_for(tiny_runs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("unils_jax.cli.train.PreemptionGuard", lambda: StopAt(3))
    assert tiny_runs.train("codec", tmp_path / "codec") == EXIT_STATUS
    assert [(row["step"], row["split"]) for row in without_speed(metrics(tmp_path / "codec"))] == [
        (step, "train") for step in (1, 2, 3)
    ]
    assert "stopped by SIGTERM after step 3, which is saved" in caplog.text
    monkeypatch.undo()
    assert tiny_runs.train("codec", tmp_path / "codec") == 0
    assert_same_run(tiny_runs.workdirs["codec"], tmp_path / "codec", NUM_STEPS)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with PreemptionGuard() as stop:
        assert not stop.requested and stop.waited_s() == 0
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name and stop.waited_s() > 0
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * len(SIGNALS)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def restore(runs, workdir: Path):
    """Restores the newest whole checkpoint of a tiny codec's workdir."""
    config = run_config(load_config(str(runs.configs["codec"])).to_dict())
    _, shapes = abstract(lambda rngs: UniLS(config.model, rngs=rngs))
    with Checkpoints(workdir, config) as checkpoints:
        return checkpoints.restore(state_shapes(STAGE_DATA["codec"], shapes, config, make_mesh()))


def damage(path: Path, how: str) -> None:
    """Removes a file, empties it or cuts it in the middle."""
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(content[: 0 if how == "empty" else len(content) // 2])


def largest_file(folder: Path) -> Path:
    """Returns the file that holds an item's numbers."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# What Orbax was reading when it met the damage is left to the garbage collector, which tells of it.
LEFT_BY_ORBAX = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collected():
    """Collects the test's garbage when it ends, so that no later test reports it."""
    yield
    gc.collect()


@pytest.mark.slow
@LEFT_BY_ORBAX
@pytest.mark.parametrize("how", ["missing", "empty", "truncated"])
def test_whatever_file_is_damaged_a_whole_checkpoint_is_restored(tiny_runs, tmp_path, collected, how):
    workdir = tiny_runs.workdirs["codec"]
    expected = {step: item(workdir, step, "params") for step in (3, 6)}
    files = [path.relative_to(workdir) for path in (workdir / "checkpoints" / "6").rglob("*") if path.is_file()]
    assert len(files) > 20
    found = []
    for i, file in enumerate(files):
        copy = tiny_runs.copy("codec", tmp_path / str(i))
        damage(copy / file, how)
        restored = restore(tiny_runs, copy)
        step = int(restored.state.step)
        found.append(step)
        assert_same({path: np.asarray(value) for path, value in restored.state.params.items()}, expected[step])
        assert sorted(entry.name for entry in (copy / "checkpoints").iterdir()) == (
            ["3", "6"] if step == 6 else ["3", "damaged-6"]
        )
        shutil.rmtree(copy)
    assert 3 in found  # files that nothing is read from may be missing


@LEFT_BY_ORBAX
@pytest.mark.parametrize(("name", "how"), [("params", "truncated"), ("optimizer", "missing"), ("data", "empty")])
def test_a_damaged_checkpoint_is_kept_and_the_one_before_it_is_used(tiny_runs, tmp_path, caplog, collected, name, how):
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    folder = workdir / "checkpoints" / "6" / name
    damage(folder / "metadata" if name == "data" else largest_file(folder), how)
    assert int(restore(tiny_runs, workdir).state.step) == 3
    assert f"WARNING: checkpoint {workdir / 'checkpoints' / '6'} is skipped" in caplog.text
    assert sorted(entry.name for entry in (workdir / "checkpoints").iterdir()) == ["3", "damaged-6"]


@LEFT_BY_ORBAX
def test_a_run_goes_on_and_saves_again_where_its_newest_checkpoint_is_damaged(tiny_runs, tmp_path, caplog, collected):
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    damage(largest_file(workdir / "checkpoints" / "6" / "ema"), "truncated")
    (workdir / "checkpoints" / "damaged-6").mkdir()
    assert tiny_runs.train("codec", workdir) == 0
    assert f"resumed {workdir} at step 3" in caplog.text
    assert_same_run(tiny_runs.workdirs["codec"], workdir, NUM_STEPS)
    assert sorted(entry.name for entry in (workdir / "checkpoints").iterdir()) == ["3", "6", "damaged-6", "damaged-6-2"]


NOTES = (None, b"", b"[1", b"[]", b'{"item_handlers": 3, "commit_timestamp_nsecs": "x"}', b"\xff\xfe", b"[" * 100_000)


@LEFT_BY_ORBAX
@pytest.mark.parametrize("content", NOTES, ids=["missing", "empty", "cut", "list", "types", "bytes", "deep"])
def test_what_orbax_notes_of_a_step_costs_at_most_that_step(tiny_runs, tmp_path, caplog, collected, content):
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    steps = workdir / "checkpoints"
    for step in ("3", "6"):
        note = steps / step / "_CHECKPOINT_METADATA"
        note.unlink()
        if content is not None:
            note.write_bytes(content)
    assert int(restore(tiny_runs, workdir).state.step) == 6 and "skipped" not in caplog.text
    damage(largest_file(steps / "6" / "params"), "truncated")
    assert int(restore(tiny_runs, workdir).state.step) == 3
    (warning,) = [line for line in caplog.text.splitlines() if "skipped" in line]
    assert f"checkpoint {steps / '6'} is skipped" in warning


def test_nothing_is_renamed_where_no_checkpoint_can_be_read(tiny_runs, tmp_path):
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    for step in (3, 6):
        damage(largest_file(workdir / "checkpoints" / str(step) / "params"), "missing")
    with pytest.raises(UserError, match="no checkpoint can be read .*/6: .*/3: .*name a new workdir"):
        restore(tiny_runs, workdir)
    assert sorted(entry.name for entry in (workdir / "checkpoints").iterdir()) == ["3", "6"]


def changed(runs, **settings):
    """Returns the tiny codec's config with other settings, `group__name` for group.name."""
    config = load_config(str(runs.configs["codec"]))
    for name, value in settings.items():
        *groups, last = name.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    return run_config(config.to_dict())


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"data__batch_size": 4}, "data.batch_size 2 -> 4"),
        ({"loss__vq": 2.0}, "loss.vq 1.0 -> 2.0"),
        ({"noise__style_drop": 0.5}, "noise.style_drop 0.1 -> 0.5"),
        ({"optimizer__learning_rate": 1.0, "seed": 1}, "optimizer.learning_rate 0.004 -> 1.0, seed 0 -> 1"),
        ({"train__compute_dtype": "bfloat16"}, "train.compute_dtype 'float32' -> 'bfloat16'"),
    ],
)
def test_settings_that_change_what_is_learnt_are_refused_or_allowed(tiny_runs, caplog, settings, reported):
    workdir = tiny_runs.workdirs["codec"]
    with pytest.raises(UserError, match=f"was started with another {reported}; .* or --allow_changes to go on"):
        check_workdir(changed(tiny_runs, **settings), workdir)
    assert check_workdir(changed(tiny_runs, **settings), workdir, allow_changes=True)
    for change in reported.split(", "):
        assert f"WARNING: changed setting of {workdir}: {change}" in caplog.text


def test_settings_that_do_not_change_what_is_learnt_are_told_and_taken(tiny_runs, caplog):
    caplog.set_level("INFO", "unils_jax")
    config = changed(tiny_runs, keep_checkpoints=1, log_every=5, data__num_workers=2, mesh__fsdp=1)
    assert check_workdir(config, tiny_runs.workdirs["codec"])
    assert "keep_checkpoints 3 -> 1" in caplog.text and "data.num_workers 0 -> 2" in caplog.text
    assert len(caplog.records) == 3 and "WARNING" not in caplog.text


def test_a_workdir_that_is_older_than_a_setting_has_its_default(tiny_runs, tmp_path):
    workdir = tiny_runs.copy("prior", tmp_path / "prior")
    saved = json.loads((workdir / "config.json").read_text())
    del saved["model"]["prior"]["audio_condition"], saved["data"]["centre_head"]
    (workdir / "config.json").write_text(json.dumps(saved))
    config = run_config(json.loads((tiny_runs.workdirs["prior"] / "config.json").read_text()))
    assert check_workdir(config, workdir)
    with pytest.raises(UserError, match="another data.centre_head True -> False"):
        check_workdir(replace(config, data=replace(config.data, centre_head=False)), workdir)


def test_another_model_is_refused_whatever_is_allowed(tiny_runs):
    config = changed(tiny_runs, model__codec__width=32, data__batch_size=4)
    with pytest.raises(UserError, match="another model.codec.width 16 -> 32; use the same config or a new workdir"):
        check_workdir(config, tiny_runs.workdirs["codec"], allow_changes=True)


def test_other_data_are_refused_until_changes_are_allowed(tiny_runs, tmp_path, capsys):
    other = tmp_path / "store"
    flags = ["--conversations", "3", "--minutes", "0.2", "--seed", "9", "--voices", "builtin"]
    assert run_unils("data", "synth", "--out", other, *flags) == 0
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    shutil.rmtree(workdir / "checkpoints" / "6")
    flags = [f"--config.data.store={other}"]
    before = (workdir / "config.json").read_bytes()
    assert tiny_runs.train("codec", workdir, *flags) == 2
    assert (workdir / "config.json").read_bytes() == before
    assert "cannot resume: the saved position is of other stores" in capsys.readouterr().err
    assert tiny_runs.train("codec", workdir, *flags, "--allow_changes") == 0
