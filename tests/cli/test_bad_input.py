"""A user's mistakes: one clear line on stderr, exit status 2, nothing that was there touched."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from flame_golden import golden_arrays
from pt_writer import call, write_pt
from tiny_runs import meta_cfg, run_unils

from unils_jax.cli.main import COMMANDS
from unils_jax.motion import save_motion

RATE = 16_000


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def bad(tmp_path_factory, golden, release, tiny_runs) -> SimpleNamespace:
    """Good and bad files by name, and `marker`, the file that malicious pickles would make."""
    folder = tmp_path_factory.mktemp("bad")
    marker = folder / "marker"
    rng = np.random.default_rng(0)
    good = rng.normal(0, 0.1, RATE).astype(np.float32)

    def wav(name: str, samples: np.ndarray) -> Path:
        soundfile.write(folder / name, samples, RATE, subtype="FLOAT")
        return folder / name

    def motion(name: str, frames: int, people: int = 1, basis: str = "standin") -> Path:
        values = rng.normal(0, 0.1, (people, frames, 108)).astype(np.float32)
        save_motion(folder / name, values, expression_basis=basis, source={})
        return folder / name

    def file(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    contents = {"model": golden("loragen").weights, "meta_cfg": meta_cfg(golden("loragen").config["model"])}
    group_norm = shutil.copytree(release.encoder, folder / "group_norm")
    config = json.loads((group_norm / "config.json").read_text())
    (group_norm / "config.json").write_text(json.dumps({**config, "feat_extract_norm": "group"}))
    flame = {**golden_arrays(golden), "v_template": Runs(f"touch {marker}")}
    damaged = tiny_runs.copy("codec", folder / "damaged")
    for step in ("3", "6"):
        shutil.rmtree(damaged / "checkpoints" / step / "params")
    unreadable = tiny_runs.copy("codec", folder / "unreadable")
    (unreadable / "config.json").write_text("{")
    for meta in (unreadable / "checkpoints").glob("*/meta/metadata"):
        meta.write_text("{")
    return SimpleNamespace(
        folder=folder,
        marker=marker,
        missing=folder / "missing",
        good=wav("good.wav", good),
        renamed=file("renamed.wav", b"this is no sound, it is a text\n" * 40),
        zero_bytes=file("zero_bytes.wav", b""),
        empty=wav("empty.wav", good[:0]),
        nan=wav("nan.wav", np.where(np.arange(RATE) == 7, np.nan, good).astype(np.float32)),
        text=file("text.npz", b"no motion"),
        short=motion("short.npz", 99),
        long=motion("long.npz", 130),
        people=motion("people.npz", 130, people=2),
        flame_motion=motion("flame_motion.npz", 130, basis="flame"),
        truncated=file("truncated.pt", release.dialogue.read_bytes()[:-3000]),
        half=file("half.pt", release.dialogue.read_bytes()[: release.dialogue.stat().st_size // 2]),
        evil=write_pt(folder / "evil.pt", contents, call("os", "system", f"touch {marker}")),
        evil_flame=file("evil.pkl", pickle.dumps(flame, 2)),
        no_flame=file("text.pkl", b"no pickle"),
        group_norm=group_norm,
        damaged=damaged,
        unreadable=unreadable,
        under_a_file=folder / "good.wav" / "under",
        release=release,
        runs=tiny_runs,
        dialogue=tiny_runs.workdirs["dialogue"],
    )


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(capfd, caplog, tmp_path, bad):
    """Runs a command that must fail as a user's mistake; returns its one line."""

    def run(*argv: str | Path) -> str:
        (tmp_path / "kept.npz").write_bytes(b"an older result")
        (tmp_path / "kept.mp4").write_bytes(b"an older video")
        before = snapshot(tmp_path), snapshot(bad.folder)
        capfd.readouterr()
        assert run_unils(*argv) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("unils: error: ") and err.count("\n") == 1 and err.endswith("\n")
        assert not caplog.records
        assert (snapshot(tmp_path), snapshot(bad.folder)) == before
        assert not bad.marker.exists()
        return err

    return run


def decode_flags(bad, tmp_path, **changes) -> list:
    flags = {"checkpoint": bad.dialogue, "audio": bad.good, "out": tmp_path / "kept.npz", **changes}
    return ["decode", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"audio": "missing"}, "missing does not exist; check the path"),
        ({"audio": "folder"}, "holds several conversations, --out"),
        ({"audio2": "folder"}, "{folder} is a folder, not an audio file"),
        ({"audio2": "missing"}, "missing does not exist; check the path"),
        (
            {"audio": "renamed"},
            "renamed.wav is not an audio file that libsndfile or FFmpeg can read; convert it to wav",
        ),
        ({"audio2": "renamed"}, "renamed.wav is not an audio file"),
        ({"audio": "zero_bytes"}, "zero_bytes.wav is empty (0 bytes)"),
        ({"audio": "empty"}, "empty.wav is empty (0 samples)"),
        ({"audio": "nan"}, "nan.wav holds 1 NaN or infinite samples"),
        ({"checkpoint": "missing"}, "missing does not exist; give a workdir"),
        ({"checkpoint": "truncated"}, "truncated.pt"),
        ({"checkpoint": "half"}, "half.pt"),
        ({"checkpoint": "renamed"}, "renamed.wav"),
        ({"checkpoint": "folder"}, "holds no checkpoint"),
        ({"checkpoint": "evil"}, "evil.pt"),
        ({"style": "short"}, "--style {short} has 99 frames; at least 100 are needed"),
        ({"prev": "short"}, "--prev {short} has 99 frames; at least 100 are needed"),
        ({"style": "people"}, "holds 2 people, the decode 1; give one or as many"),
        ({"style": "flame_motion"}, "is of the 'flame' expression basis, the checkpoint of 'standin'"),
        ({"style": "text"}, "text.npz is not a motion file of unils"),
        ({"style": "missing"}, "missing does not exist"),
        ({"flame": "evil_flame", "video": "kept.mp4"}, "evil.pkl"),
        ({"flame": "no_flame", "video": "kept.mp4"}, "text.pkl"),
        ({"flame": "missing", "video": "kept.mp4"}, "missing"),
        ({"flame": "missing"}, "--flame is the head of the video; name one with --video V.mp4"),
        ({"out": "under_a_file"}, "must end in .npz"),
        ({"out": None}, "nothing to write: give --out M.npz, --video V.mp4 or both"),
        ({"tau": -1}, "tau must be 0 (greedy) or positive, got -1.0"),
        ({"tau": "NaN"}, "tau must be 0 (greedy) or positive, got nan"),
        ({"tau": "1,x"}, "argument --tau: must be a number, or one for each scale as 2,1.5,1; got '1,x'"),
        ({"cfg": "inf"}, "cfg must be 0 or positive, got inf"),
        ({"top_p": 0.2}, "top_p must be from 0.5 to 1, got 0.2"),
        ({"seed": -1}, "--seed must be from 0 to 4294967295, got -1"),
        ({"seed": 1 << 70}, "--seed must be from 0 to 4294967295"),
        ({"seed": "x"}, "argument --seed: invalid int value: 'x'"),
    ],
)
def test_decode_refuses(refused, bad, tmp_path, changes, problem):
    files = {name: getattr(bad, value, value) if isinstance(value, str) else value for name, value in changes.items()}
    if "video" in files:
        files["video"] = tmp_path / files["video"]
    assert problem.format(**vars(bad)) in refused(*decode_flags(bad, tmp_path, **files))


@pytest.mark.parametrize("stage", ["codec", "prior"])
@pytest.mark.parametrize("source", ["release", "workdir"])
def test_decode_refuses_a_checkpoint_of_another_stage(refused, bad, tmp_path, stage, source):
    checkpoint = getattr(bad.release, stage) if source == "release" else bad.runs.workdirs[stage]
    message = refused(*decode_flags(bad, tmp_path, checkpoint=checkpoint))
    assert f"is a checkpoint of the {stage} stage, a dialogue or dualtalk or unitalker is needed" in message


def test_decode_asks_for_the_audio_encoder(refused, bad, tmp_path):
    message = refused(*decode_flags(bad, tmp_path, checkpoint=bad.release.dialogue))
    assert "needs its audio encoder, facebook/wav2vec2-xls-r-300m" in message and "hf download" in message


@pytest.mark.parametrize(
    ("encoder", "problem"),
    [
        ("group_norm", 'feat_extract_norm must be "layer", got "group"'),
        ("folder", "config.json: No such file"),
        ("good", "is not a folder"),
        ("missing", "is neither a folder nor a hub name"),
    ],
)
def test_decode_refuses_other_audio_encoders(refused, bad, tmp_path, encoder, problem):
    flags = decode_flags(bad, tmp_path, checkpoint=bad.release.dialogue, audio_encoder=getattr(bad, encoder))
    assert problem in refused(*flags)


@pytest.mark.parametrize("flag", ["out", "video"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(refused, bad, tmp_path, flag):
    suffix = {"out": ".npz", "video": ".mp4"}[flag]
    for path, problem in (
        (bad.under_a_file / f"x{suffix}", "cannot write to"),
        (Path("/proc/nowhere") / f"x{suffix}", "cannot write to /proc/nowhere"),
        (tmp_path / ("x" * 300 + suffix), "File name too long"),
        (tmp_path / "x.txt", f"must end in {suffix}, got '.txt'"),
        (tmp_path / "x", f"must end in {suffix}, got 'no suffix'"),
    ):
        assert problem in refused(*decode_flags(bad, tmp_path, **{flag: path}))
    (tmp_path / f"folder{suffix}").mkdir()
    assert "is a folder; name a file in it" in refused(
        *decode_flags(bad, tmp_path, **{flag: tmp_path / f"folder{suffix}"})
    )


@pytest.mark.parametrize(
    ("motion", "flags", "problem"),
    [
        ("missing", {}, "missing does not exist"),
        ("text", {}, "text.npz is not a motion file of unils"),
        ("good", {}, "good.wav is not a motion file of unils"),
        ("long", {"flame": "evil_flame"}, "evil.pkl"),
        ("long", {"flame": "no_flame"}, "text.pkl"),
        ("long", {"flame": "missing"}, "missing"),
        ("long", {"audio": "renamed"}, "renamed.wav is not an audio file"),
        ("long", {"audio2": "good"}, "give the first with --audio"),
        ("long", {"video": "under_a_file"}, "must end in .mp4"),
        ("long", {"size": "0"}, "size"),
    ],
)
def test_render_refuses(refused, bad, tmp_path, motion, flags, problem):
    flags = {"video": tmp_path / "kept.mp4", **{name: getattr(bad, value, value) for name, value in flags.items()}}
    words = [f"--{name}={value}" for name, value in flags.items()]
    assert problem in refused("render", getattr(bad, motion), *words)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--out={under_a_file}/store"], "cannot write to"),
        (["--out={folder}"], "already exists and is not empty"),
        (["--out={missing}", "--conversations=2"], "a set needs at least 3 records, one for each split, got 2"),
        (["--out={missing}", "--minutes=0"], "minutes must be in 0.1..120, got 0.0"),
        (["--out={missing}", "--minutes=nan"], "minutes must be in 0.1..120, got nan"),
        (["--out={missing}", "--seed=-1"], "seed must not be negative"),
        (["--out={missing}", "--minute=1"], "unknown argument --minute=1"),
        ([], "the following arguments are required: --out"),
    ],
)
def test_data_synth_refuses(refused, bad, flags, problem):
    assert problem in refused("data", "synth", *(flag.format(**vars(bad)) for flag in flags))
    assert not bad.missing.exists()


def test_a_store_made_with_other_settings_is_kept(refused, bad, tiny_store):
    before = snapshot(tiny_store)
    assert "holds a store made with other settings" in refused("data", "synth", "--out", tiny_store, "--seed", "5")
    assert snapshot(tiny_store) == before


def train_flags(bad, workdir: Path, stage: str, *flags: str | Path) -> list:
    return ["train", "--config", bad.runs.configs[stage], "--workdir", workdir, *flags]


@pytest.mark.parametrize(
    ("stage", "flags", "problem"),
    [
        ("codec", ["--config.num_step=3"], "unknown config key 'num_step'; did you mean num_steps?"),
        ("codec", ["--config.num_steps=many"], "config key num_steps is int (now 6), got 'many'"),
        ("codec", ["--config.num_steps=0"], "num_steps must be at least 1, got 0"),
        ("codec", ["--config.num_steps"], "needs a value: --config.num_steps=VALUE"),
        ("codec", ["--config.model.codec.num_heads=0"], "num_heads must be at least 1"),
        ("codec", ["--config.model.codec.scales=(50, 1)"], "codec.scales must rise"),
        ("codec", ["--config.data.store={missing}"], "is no store"),
        ("codec", ["--config.data.store={good}"], "is no store"),
        ("codec", ["--config.data.store="], "data.store is empty"),
        (
            "codec",
            ["--config.expression_basis=flame"],
            "holds motion of the 'standin' basis, the config expects 'flame'",
        ),
        ("codec", ["--config.head={missing}"], "missing"),
        ("codec", ["--config.head={evil_flame}"], "evil.pkl"),
        ("codec", ["--config.probe_every=3"], "probe_every must be 0 for the codec"),
        ("codec", ["--profile_steps=5"], "--profile_steps must be FIRST:LAST"),
        ("codec", ["--coordinator=here:1"], "--process_id, --num_processes is missing"),
        ("codec", ["--coordinator=here:1", "--process_id=2", "--num_processes=2"], "must be from 0 to 1, got 2"),
        ("codec", ["--distributed", "--process_id=0"], "--distributed reads everything from the environment"),
        ("codec", ["--parent={dialogue}"], "the codec stage starts from scratch; leave --parent away"),
        ("codec", ["--speed"], "unknown argument --speed"),
        ("codec", ["--dry"], "unknown argument --dry"),
        ("codec", ["surplus"], "unknown argument surplus"),
        ("prior", [], "the prior stage starts from a codec; give its checkpoint with --parent"),
        ("prior", ["--parent={missing}"], "missing does not exist"),
        ("prior", ["--parent={dialogue}"], "is a checkpoint of the dialogue stage, a codec is needed"),
        ("prior", ["--parent={evil}"], "evil.pt"),
        ("dialogue", [], "the dialogue stage starts from a prior"),
    ],
)
def test_train_refuses(refused, bad, tmp_path, stage, flags, problem):
    flags = [flag.format(**vars(bad)) for flag in flags]
    assert problem in refused(*train_flags(bad, tmp_path / "workdir", stage, *flags))


def test_train_refuses_a_parent_of_other_sizes_or_basis(refused, bad, tmp_path):
    codec = bad.runs.workdirs["codec"]
    message = refused(*train_flags(bad, tmp_path / "w", "prior", "--parent", codec, "--config.model.codec.num_heads=4"))
    assert "does not fit: codec.num_heads is 2 in it and 4 in the config" in message
    wider = ["--parent", codec, "--config.model.codec.width=32", "--config.model.codec.scales=(1, 100)"]
    message = refused(*train_flags(bad, tmp_path / "w", "prior", *wider))
    assert "codec.scales is (1, 25, 100) in it and (1, 100) in the config; codec.width is 16" in message
    deeper = ["--parent", bad.runs.workdirs["prior"], "--config.model.prior.depth=2"]
    assert "prior.depth is 1 in it and 2 in the config" in refused(
        *train_flags(bad, tmp_path / "w", "dialogue", *deeper)
    )
    message = refused(*train_flags(bad, tmp_path / "w", "prior", "--parent", codec, "--config.data.centre_head=False"))
    assert "data.centre_head is True in it and False in the config" in message
    message = refused(*train_flags(bad, tmp_path / "w", "prior", "--parent", bad.release.codec))
    assert "its motion is of the 'flame' basis" in message


def test_train_refuses_a_workdir_of_another_run(refused, bad, tmp_path):
    codec, prior = (bad.runs.copy(stage, tmp_path / stage) for stage in ("codec", "prior"))
    message = refused(*train_flags(bad, codec, "codec", "--config.model.codec.width=32", "--config.seed=1"))
    assert "was started with another model.codec.width 16 -> 32; use the same config or a new workdir" in message
    assert "stage 'codec' -> 'prior'" in refused(*train_flags(bad, codec, "prior", "--parent", codec))
    message = refused(*train_flags(bad, prior, "prior", "--config.optimizer.learning_rate=1"))
    assert "was started with another optimizer.learning_rate" in message and "--allow_changes" in message


def test_train_refuses_workdirs_that_cannot_be_used(refused, bad):
    assert "cannot write to" in refused(*train_flags(bad, bad.under_a_file, "codec"))
    assert "cannot write to /proc/nowhere" in refused(*train_flags(bad, Path("/proc/nowhere"), "codec"))
    assert "its config cannot be read in" in refused(*train_flags(bad, bad.unreadable, "codec"))


def test_a_run_without_its_config_goes_on_with_that_of_its_newest_checkpoint(bad, tmp_path, caplog):
    workdir = bad.runs.copy("codec", tmp_path / "codec")
    whole = (workdir / "config.json").read_bytes()
    for damage in (lambda file: file.unlink(), lambda file: file.write_text('{"stage": "co')):
        damage(workdir / "config.json")
        assert run_unils(*train_flags(bad, workdir, "codec")) == 0
        assert "config.json (" in caplog.text and "the config is taken from" in caplog.text
        assert (workdir / "config.json").read_bytes() == whole


def test_train_names_the_damaged_checkpoint_that_it_cannot_resume_from(bad, capfd):
    assert run_unils(*train_flags(bad, bad.damaged, "codec")) == 2
    err = capfd.readouterr().err
    assert err.count("unils: error: ") == 1 and "Traceback" not in err
    assert "cannot resume, no checkpoint can be read" in err
    assert f"{bad.damaged / 'checkpoints' / '6'}: FileNotFoundError" in err and "name a new workdir" in err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nothing_of_that_name", "fails with ModuleNotFoundError"),
        ("def get_config(:", "fails with SyntaxError"),
        ("x = 1", "must define get_config()"),
    ],
)
def test_config_files_that_fail_are_one_line_too(refused, bad, tmp_path, text, problem):
    (tmp_path / "mine.py").write_text(text)
    message = refused("train", "--config", tmp_path / "mine.py", "--workdir", tmp_path / "w")
    assert "mine.py" in message and problem in message


def test_an_unknown_setting_in_a_config_file_has_its_nearest_named(refused, bad, tmp_path):
    text = (
        bad.runs.configs["codec"]
        .read_text()
        .replace("    return config", "    config.num_stepz = 3\n    return config")
    )
    (tmp_path / "mine.py").write_text(text)
    message = refused("train", "--config", tmp_path / "mine.py", "--workdir", tmp_path / "w")
    assert "num_stepz" in message and "num_steps" in message


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["decoed"], "invalid choice: 'decoed'"),
        (["--speed"], "the following arguments are required: COMMAND"),
        (["decode"], "the following arguments are required: --audio"),
        (["decode", "--checkpoint", "x", "--audio", "y", "--ou", "m.npz"], "unknown argument --ou"),
        (["decode", "--checkpoint", "x", "--audio"], "argument --audio: expected one argument"),
        (
            ["train", "--config", "codek", "--workdir", "w"],
            "no config named 'codek'; known are baselines/artalk_codec, baselines/artalk_partner",
        ),
        (["train", "--config", "no.py", "--workdir", "w"], "config file no.py does not exist"),
        (["render"], "the following arguments are required"),
        (["data"], "the following arguments are required"),
        (["data", "synthh"], "invalid choice: 'synthh'"),
        (["data", "synth", "--out", "s", "--unpaired", "2"], "a set needs at least 3 records"),
        (["data", "synth", "--out", "s", "--unpaired", "9", "--conversations", "9"], "not allowed with"),
        (["demo", "--times", "0"], "--times must be at least 1, got 0"),
    ],
)
def test_wrong_words_are_one_line(refused, argv, problem):
    assert problem in refused(*argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_flag_that_is_not_its_own(refused, command):
    assert f"(see `unils {command}" in refused(command, "--no_such_flag")


def test_the_console_script_prints_one_line_and_exits_2(bad, tmp_path):
    """What the other tests see inside this process, as a user sees it: nothing else on stderr."""
    script = Path(sys.executable).with_name("unils")
    for checkpoint, problem in ((bad.evil, "evil.pt"), (bad.truncated, "truncated.pt"), (bad.dialogue, "nan.wav")):
        audio = bad.nan if checkpoint == bad.dialogue else bad.good
        command = [script, *map(str, decode_flags(bad, tmp_path, checkpoint=checkpoint, audio=audio))]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("unils: error: ") and done.stderr.count("\n") == 1 and problem in done.stderr
    assert not bad.marker.exists() and not (tmp_path / "kept.npz").exists()
