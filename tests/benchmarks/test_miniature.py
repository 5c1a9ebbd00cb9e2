"""`unils miniature`: the order of its work, what it refuses, and the whole of it with two steps a training."""

import json
from pathlib import Path
from textwrap import dedent

import pytest
from tiny_runs import run_unils

from unils_jax.benchmarks.miniature.plan import RUNS, SYSTEMS, Plan, phases
from unils_jax.config import from_dict, load_config
from unils_jax.systems.registry import STAGES, system_of_stage

PLAN = Plan(conversations=20, people_alone=40, seeds=2, times=1.0)


def test_what_a_job_needs_is_made_in_an_earlier_phase(tmp_path):
    made: set[str] = set()
    for phase in phases(tmp_path, PLAN, jobs=2):
        for job in phase:
            if job.kind == "train" and RUNS[job.name].parent:
                assert f"train {RUNS[job.name].parent}" in made
            if job.kind == "move" and SYSTEMS[job.name].run:
                assert f"train {SYSTEMS[job.name].run}" in made
            if job.kind == "score" or job.name == "dualtalk_chain":
                assert "move unils" in made
        made |= {f"{job.kind} {job.name}" for job in phase}
    assert {f"score {name}" for name in SYSTEMS} <= made


def test_no_two_jobs_write_one_file(tmp_path):
    places = [job.done for phase in phases(tmp_path, PLAN, jobs=2) for job in phase]
    assert len(places) == len(set(places))


def test_all_generators_see_as_many_frames_and_all_codecs_too():
    def frames(name: str) -> int:
        config = load_config(RUNS[name].config)
        model = from_dict(system_of_stage(config.stage).config, config.model.to_dict())
        return config.num_steps * config.data.batch_size * STAGES[config.stage].item_frames(model)

    budget = frames("prior") + frames("unils")
    assert {frames("prior_paired") + frames("no_unpaired"), frames("prior") + frames("mixed")} == {budget}
    assert {frames(name) for name in ("no_prior", "artalk", "dualtalk")} == {budget}
    assert frames("codec") == frames("codec_paired") == frames("codec_artalk")


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            ("--conversations", 19, "--seeds", 0),
            "--conversations must be at least 20, got 19; --seeds must be at least 1",
        ),
        (("--times", 0), "--times must be above 0 and below 1000, got 0"),
        (("--jobs", 0), "--jobs must be at least 1, got 0"),
        (("--configs", "nowhere"), "--configs nowhere lacks artalk, artalk_codec, "),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, flags, told):
    assert run_unils("miniature", "--out", tmp_path / "out", *flags) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_results_is_refused(tmp_path, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"conversations": 50}))
    assert run_unils("miniature", "--out", tmp_path) == 2
    assert "was begun with" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def write_tiny_configs(folder: Path) -> Path:
    """The configs of all trainings, at a size that compiles in seconds."""
    folder.mkdir()
    for name in {run.config for run in RUNS.values()}:
        (folder / f"{Path(name).name}.py").write_text(
            dedent(f"""
            from unils_jax.config import load_config

            def get_config():
                config = load_config({name!r})
                config.head = ""
                config.update({{"num_steps": 2, "eval_batches": 1}})
                config.data.batch_size = 2
                if config.stage == "dualtalk":
                    config.model.update({{"width": 16, "num_heads": 2, "hidden_dim": 16, "depth": 1}})
                    return config
                scales = config.model.codec.scales[::2]
                config.model.codec.update({{"code_dim": 8, "scales": scales, "width": 16, "depth": 1}})
                config.loss.coarse_scales = 1
                if config.model.get("prior"):
                    config.model.prior.update({{"width": 16, "depth": 1}})
                if config.model.get("logmel"):
                    config.model.prior.audio_dim = 6
                    config.model.logmel = {{"num_mels": 6, "context_frames": 0}}
                return config
            """)
        )
    return folder


@pytest.mark.slow
def test_everything_is_trained_moved_scored_and_told_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the trainings' processes
    configs, out = write_tiny_configs(tmp_path / "configs"), tmp_path / "out"
    flags = ("--conversations", 20, "--seeds", 1, "--jobs", 2, "--configs", configs)
    assert run_unils("miniature", "--out", out, *flags) == 0
    told = capsys.readouterr().out
    for system in SYSTEMS.values():
        assert f"| {system.title} | " in told
    assert (out / "listening.png").stat().st_size > 10_000
    report = json.loads((out / "miniature.json").read_text())
    assert report["systems"]["retake"]["metrics"]["unils/speaking/LVE"]["mean"] > 0
    jobs = [job for phase in phases(out, Plan(**report["plan"]), 2) for job in phase]
    times = {job.done: job.done.stat().st_mtime_ns for job in jobs}
    lost = out / "scores" / "mean.json"
    lost.unlink()
    assert run_unils("miniature", "--out", out, *flags) == 0
    assert {path for path, at in times.items() if path.stat().st_mtime_ns != at} == {lost}
    assert json.loads((out / "miniature.json").read_text()) == report
