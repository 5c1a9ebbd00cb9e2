"""The command line as its users meet it: help, flags, what is printed where, and what lies in the files."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_runs import quick_compiles, run_unils

from unils_jax import __version__
from unils_jax.cli.arguments import read_clip
from unils_jax.cli.main import COMMANDS, prepare
from unils_jax.motion import load_motion, save_motion

RATE = 16_000


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> dict[str, Path]:
    """Five seconds of noise in several forms: mono 16 kHz, 8 kHz stereo, and a shorter one."""
    folder = tmp_path_factory.mktemp("tracks")
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    files = {"mono": (noise, RATE), "stereo": (np.stack([noise, -noise / 2], 1)[::2], RATE // 2)}
    files["short"] = (noise[: 3 * RATE + 1], RATE)
    for name, (samples, rate) in files.items():
        soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")
    return {name: folder / f"{name}.wav" for name in files}


@pytest.fixture(scope="module")
def decode(tiny_runs, tmp_path_factory):
    """Runs `unils decode` with the tiny dialogue model and returns the motion file."""
    folder = tmp_path_factory.mktemp("decoded")

    def run(*flags: str | Path, name: str = "m.npz"):
        common = ["--checkpoint", tiny_runs.workdirs["dialogue"], "--out", folder / name, "--cfg=1"]
        with quick_compiles():
            assert run_unils("decode", *common, *flags) == 0
        return load_motion(folder / name)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_a_working_example(capsys, command):
    assert run_unils(command, "--help") == 0
    shown = capsys.readouterr().out
    assert "example" in shown and f"unils {command}" in shown.split("example")[1]
    assert f"`unils {command}" in importlib.import_module(f"unils_jax.cli.{COMMANDS[command].module}").__doc__


@pytest.mark.parametrize(
    ("command", "kinds"),
    [("data", ("synth", "convert", "verify", "stats", "pca")), ("bench", ("decode", "train", "data", "gpu-smoke"))],
)
def test_help_of_a_kind_shows_its_own_examples_alone(capsys, command, kinds):
    for kind in kinds:
        assert run_unils(command, kind, "--help") == 0
        examples = capsys.readouterr().out.split("example")[-1]
        shown = re.findall(rf"unils {command} (\S+)", examples)
        assert shown and set(shown) == {kind}


def test_help_lists_every_command_and_version_says_which_this_is(capsys):
    assert run_unils("--help") == 0
    shown = capsys.readouterr().out
    assert all(
        re.search(rf"^    {name}\s", shown, re.MULTILINE) and command.summary.split()[0] in shown
        for name, command in COMMANDS.items()
    )
    assert run_unils("--version") == 0
    assert capsys.readouterr().out == f"unils {__version__}\n"


def test_two_tracks_give_both_people_and_one_line_on_stdout(decode, tracks, capfd):
    motion = decode("--audio", tracks["mono"], "--audio2", tracks["short"])
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and "m.npz: 2 x 125 frames, decoded in" in out and err == ""
    assert motion.motion.shape == (2, 125, 108) and np.isfinite(motion.motion).all()
    assert motion.expression_basis == "standin"
    assert motion.source["step"] == 6 and motion.source["stage"] == "dialogue"
    assert motion.source["audio"] == [str(tracks["mono"]), str(tracks["short"])]
    assert motion.source["version"] == __version__


def test_one_track_gives_one_person(decode, tracks):
    assert decode("--audio", tracks["short"]).motion.shape == (1, 76, 108)


def test_flags_are_given_with_or_without_an_equals_sign(decode, tracks):
    first, second = decode("--audio", tracks["mono"], "--seed", "3"), decode(f"--audio={tracks['mono']}", "--seed=3")
    assert np.array_equal(first.motion, second.motion)


def test_any_rate_and_channel_count_is_read(decode, tracks):
    assert decode("--audio", tracks["stereo"]).motion.shape == (1, 125, 108)


def test_the_seed_decides_and_greedy_ignores_it(decode, tracks):
    seeds = [decode("--audio", tracks["mono"], f"--seed={seed}").motion for seed in (0, 0, 1)]
    assert np.array_equal(seeds[0], seeds[1]) and not np.array_equal(seeds[0], seeds[2])
    greedy = [decode("--audio", tracks["mono"], "--tau=0", f"--seed={seed}").motion for seed in (0, 1)]
    assert np.array_equal(*greedy)


def test_style_is_the_middle_and_prev_the_end_of_a_motion_file(decode, tracks, tmp_path):
    def clip_file(name: str, *parts: np.ndarray) -> Path:
        save_motion(tmp_path / name, np.concatenate(parts, axis=1), expression_basis="standin", source={})
        return tmp_path / name

    clip = np.random.default_rng(0).normal(0, 3, (1, 100, 108)).astype(np.float32)
    filler = np.full((1, 21, 108), 9, np.float32)
    exact = clip_file("exact.npz", clip)
    files = {"style": clip_file("middle.npz", filler, clip, filler), "prev": clip_file("end.npz", filler, clip)}
    for name, file in files.items():
        assert np.array_equal(read_clip(str(file), name, 1, "standin"), clip)
        with_clip = decode("--audio", tracks["mono"], f"--{name}", file).motion
        assert np.array_equal(with_clip, decode("--audio", tracks["mono"], f"--{name}", exact).motion)
        assert not np.array_equal(with_clip, decode("--audio", tracks["mono"]).motion)


def test_one_persons_clip_serves_both_people(decode, tracks, tmp_path):
    clip = np.random.default_rng(0).normal(0, 3, (1, 100, 108)).astype(np.float32)
    for name, motion in (("one.npz", clip), ("both.npz", np.concatenate([clip, clip]))):
        save_motion(tmp_path / name, motion, expression_basis="standin", source={})
    audio = ["--audio", tracks["mono"], "--audio2", tracks["short"]]
    one, both = (decode(*audio, "--style", tmp_path / name).motion for name in ("one.npz", "both.npz"))
    assert np.array_equal(one, both)


def test_an_older_result_is_replaced_by_the_whole_new_one(decode, tracks):
    before = decode("--audio", tracks["mono"], name="again.npz")
    after = decode("--audio", tracks["short"], name="again.npz")
    assert before.motion.shape[1] == 125 and after.motion.shape[1] == 76


def test_without_speech_engines_the_builtin_voices_speak(tmp_path, capsys, caplog, monkeypatch):
    caplog.set_level("INFO", "unils_jax")
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["data", "synth", "--conversations=3", "--minutes=0.1", "--bank", tmp_path / "bank"]
    assert run_unils(*words, "--out", tmp_path / "auto") == 0
    line = "flite and espeak-ng not found; get the speech engines with `apt-get install flite espeak-ng libespeak-ng1`"
    assert f"the built-in voices speak: {line}" in caplog.text
    caplog.clear()
    assert run_unils(*words, "--voices=builtin", "--out", tmp_path / "builtin") == 0
    assert "voices" not in caplog.text
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("auto", "builtin")]
    assert manifests[0] == manifests[1]
    assert run_unils(*words, "--voices=bank", "--out", tmp_path / "bank_voices") == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "bank").exists() and not (tmp_path / "bank_voices").exists()


def test_synthetic_data_is_made_once(tmp_path, capsys):
    words = ["data", "synth", "--out", tmp_path / "store", "--conversations=3", "--minutes=0.1", "--voices=builtin"]
    assert run_unils(*words) == 0
    assert "3 conversations, 0.01 hours, seed 0, made in" in capsys.readouterr().out
    before = (tmp_path / "store" / "manifest.json").stat().st_mtime_ns
    assert run_unils(*words) == 0
    assert "already there (3 conversations" in capsys.readouterr().out
    assert (tmp_path / "store" / "manifest.json").stat().st_mtime_ns == before


def test_train_says_where_it_starts_and_how_it_ended(tiny_runs, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "unils_jax")
    assert tiny_runs.train("codec", tmp_path / "codec", "--config.eval_every=6", "--config.checkpoint_every=6") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'codec'}: trained 6 steps, train/loss ")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("unils_jax")]
    assert lines[0] == "starting from scratch"
    assert "the codec trains without mesh and lip losses" in lines[1]
    assert "codec: 7,620 trainable and 216 frozen values" in lines
    assert sum(line.startswith("codec step ") for line in lines) == 6


def test_decode_makes_the_video_too(tiny_runs, tracks, tmp_path):
    import av

    words = ["--checkpoint", tiny_runs.workdirs["dialogue"], "--audio", tracks["short"], "--cfg=1"]
    with quick_compiles():
        assert run_unils("decode", *words, "--video", tmp_path / "v.mp4") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    with av.open(str(tmp_path / "v.mp4")) as video:
        assert {stream.type for stream in video.streams} == {"video", "audio"}
        assert sum(1 for _ in video.decode(video=0)) == 76


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "unils_jax" / "xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


def test_a_bug_of_ours_is_a_traceback_and_exit_status_1():
    program = (
        "import sys, unils_jax.cli.motion as command\n"
        "def run(args): raise RuntimeError('ours')\n"
        "command.run_render = run\n"
        "from unils_jax.cli.main import main\n"
        "sys.exit(main(['render', 'm.npz', '--video', 'v.mp4']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "RuntimeError: ours" in done.stderr


def test_a_real_conversation_decodes_to_every_frame(tiny_runs, tmp_path):
    folder = os.environ.get("UNILS_REAL_DATA")
    if not folder:
        pytest.skip("needs outside data: set UNILS_REAL_DATA to a folder with dialogue_speaker1.wav and _speaker2.wav")
    tracks = [Path(folder) / f"dialogue_speaker{person}.wav" for person in (1, 2)]
    files = ["--audio", tracks[0], "--audio2", tracks[1], "--out", tmp_path / "m.npz", "--video", tmp_path / "v.mp4"]
    assert run_unils("decode", "--checkpoint", tiny_runs.workdirs["dialogue"], *files) == 0
    motion = load_motion(tmp_path / "m.npz").motion  # refuses what is not finite
    assert motion.shape == (2, 588, 108)
    assert (tmp_path / "v.mp4").stat().st_size > 10_000
