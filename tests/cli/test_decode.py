"""`unils decode` on folders and lists: who is paired with whom, what a broken file costs, the same bits as alone."""

import os
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from tiny_runs import quick_compiles, run_unils

from unils_jax.errors import UserError
from unils_jax.inference.recordings import Recording, find_recordings
from unils_jax.media import shown
from unils_jax.motion import load_motion


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A folder with a pair, two single tracks, a broken file, and files that are no audio."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for name, frames in (("a_speaker1", 30), ("a_speaker2", 20), ("b", 10), ("c_speaker2", 110)):
        noise = rng.normal(0, 0.1, frames * 640).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", noise, 16_000, subtype="FLOAT")
    (folder / "broken.mp3").write_bytes(b"no sound")
    (folder / "notes.md").write_text("not audio")
    return folder


def decode(tiny_runs, *flags) -> int:
    with quick_compiles():
        return run_unils("decode", "--checkpoint", tiny_runs.workdirs["dialogue"], "--cfg=1", *flags)


def test_a_broken_file_fails_by_name_and_the_rest_finish(tiny_runs, recordings, tmp_path, capfd):
    assert decode(tiny_runs, "--audio", recordings, "--out", tmp_path, "--batch", "2") == 2
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and f"{tmp_path}: 3 conversations, 180 frames" in out
    assert "1 of 4 conversations failed: broken: " in err.splitlines()[-1]
    shapes = {path.name: load_motion(path).motion.shape for path in tmp_path.iterdir()}
    assert shapes == {"a.npz": (2, 30, 108), "b.npz": (1, 10, 108), "c_speaker2.npz": (1, 110, 108)}
    file = load_motion(tmp_path / "a.npz")
    assert file.source["audio"] == [str(recordings / f"a_speaker{i}.wav") for i in (1, 2)]
    assert (file.source["batch"], file.source["dtype"]) == (2, "float32")


def spoil(folder: Path) -> dict[str, str]:
    """Puts every kind of file that cannot be decoded into a folder; returns the reason of each by its name."""
    sound = np.random.default_rng(1).normal(0, 0.1, 6400).astype(np.float32)
    soundfile.write(folder / "x.wav", sound, 16_000, subtype="FLOAT")
    wav = (folder / "x.wav").read_bytes()
    (folder / "x.wav").unlink()
    spoilt = {
        "empty.wav": (b"", "is empty"),
        "text.mp3": (b"no sound", "not an audio file"),
        "page.mp4": (b"<html>404 not found</html>", "not an audio file"),
        "headless.wav": (wav[:20], "not an audio file"),
        "header.wav": (wav[:44], "not an audio file"),
        "slow.wav": (wav[:24] + (1).to_bytes(4, "little") + wav[28:], "has a rate of 1 Hz"),
        "nan.wav": (wav[:200] + np.float32(np.nan).tobytes() * 50 + wav[400:], "50 NaN or infinite samples"),
        "loud.wav": (wav[:200] + np.float32(3e9).tobytes() * 50 + wav[400:], "reaches 3e+09"),
        "list.wav": (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot decode"),
        "a\nline.wav": (wav[:10], "not an audio file"),
    }
    for name, (content, _) in spoilt.items():
        (folder / name).write_bytes(content)
    with av.open(folder / "silent.mp4", "w") as video:
        stream = video.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        video.mux([*stream.encode(picture), *stream.encode()])
    (folder / "link.wav").symlink_to("/nowhere/x.wav")
    os.mkfifo(folder / "pipe.wav")
    reasons = {name: reason for name, (_, reason) in spoilt.items()}
    return reasons | {"silent.mp4": "has no audio track", "link.wav": "does not exist"}


def test_among_every_kind_of_bad_file_the_good_ones_are_decoded_once(tiny_runs, tmp_path, capfd, caplog):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("good", "b_speaker1", "b_speaker2"):
        soundfile.write(folder / f"{name}.wav", np.random.default_rng(2).normal(0, 0.1, 6400), 16_000)
    reasons = spoil(folder)
    assert decode(tiny_runs, "--audio", folder, "--out", out, "--batch=2") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"unils: error: {len(reasons)} of {len(reasons) + 2} conversations failed: ")
    for name, reason in reasons.items():
        (told,) = [
            part for part in error.split("; ") if part.rpartition("failed: ")[2].startswith(shown(Path(name).stem))
        ]
        assert reason in told, (name, told)
    assert "left out, no plain files: pipe.wav" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == ["b.npz", "good.npz"]
    # Again, with one of them mended and one output lost: nothing else is decoded.
    written = (out / "good.npz").stat().st_mtime_ns
    (out / "b.npz").unlink()
    for name in {*reasons} - {"nan.wav"}:
        (folder / name).unlink()
    soundfile.write(folder / "nan.wav", np.zeros(640), 16_000)
    assert decode(tiny_runs, "--audio", folder, "--out", out, "--batch=2") == 0
    printed = capfd.readouterr().out
    assert "2 conversations, 21 frames" in printed and "1 already there" in printed
    assert sorted(path.name for path in out.iterdir()) == ["b.npz", "good.npz", "nan.npz"]
    assert (out / "good.npz").stat().st_mtime_ns == written
    # Other settings are other motion, and so is a file that changed.
    assert decode(tiny_runs, "--audio", folder, "--out", out, "--batch=2", "--seed=7") == 0
    assert "3 conversations" in capfd.readouterr().out
    os.utime(folder / "good.wav", (time.time() + 5, time.time() + 5))
    assert decode(tiny_runs, "--audio", folder, "--out", out, "--batch=2", "--seed=7") == 0
    assert "1 conversation, 10 frames" in capfd.readouterr().out


def test_one_of_many_has_the_bits_of_one_alone(tiny_runs, recordings, tmp_path):
    (tmp_path / "list.txt").write_text(f"# mine\n\n{recordings}/c_speaker2.wav\n{recordings}/b.wav\n")
    assert decode(tiny_runs, "--audio", tmp_path / "list.txt", "--out", tmp_path / "many", "--batch=2") == 0
    flags = ("--audio", recordings / "b.wav", "--out", tmp_path / "b.npz", "--batch=2")
    assert decode(tiny_runs, *flags) == 0
    alone, one_of_many = (load_motion(path).motion for path in (tmp_path / "b.npz", tmp_path / "many" / "b.npz"))
    np.testing.assert_array_equal(alone, one_of_many)
    assert (tmp_path / "many" / "c_speaker2.npz").exists()


def test_the_first_person_alone_of_two_tracks(tiny_runs, recordings, tmp_path):
    tracks = ("--audio", recordings / "a_speaker1.wav", "--audio2", recordings / "a_speaker2.wav", "--tau=0")
    assert decode(tiny_runs, *tracks, "--out", tmp_path / "both.npz") == 0
    assert decode(tiny_runs, *tracks, "--out", tmp_path / "first.npz", "--people", "1") == 0
    both, first = (load_motion(tmp_path / f"{name}.npz").motion for name in ("both", "first"))
    assert first.shape == (1, 30, 108)
    np.testing.assert_allclose(first[0], both[0], atol=1e-4)


def test_names_with_speaker1_and_speaker2_are_a_pair(recordings):
    found = {recording.name: [path.name for path in recording.tracks] for recording in find_recordings(recordings)}
    assert found == {
        "a": ["a_speaker1.wav", "a_speaker2.wav"],
        "b": ["b.wav"],
        "broken": ["broken.mp3"],
        "c_speaker2": ["c_speaker2.wav"],
    }


def test_a_list_names_one_track_or_two_a_line(tmp_path):
    (tmp_path / "list.txt").write_text("# comment\none.wav\n\nx/two_speaker1.wav\tx/two_speaker2.wav\n")
    assert find_recordings(tmp_path / "list.txt") == [
        Recording("one", (tmp_path / "one.wav",)),
        Recording("two", (tmp_path / "x" / "two_speaker1.wav", tmp_path / "x" / "two_speaker2.wav")),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no audio file"),
        ("a.wav\tb.wav\tc.wav", "line 1 must be one file, or two with a tab between them"),
        ("x/a.wav\ny/a.wav", "several conversations are called a; rename their files"),
    ],
)
def test_impossible_lists_are_refused(tmp_path, text, problem):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        find_recordings(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--audio2", "b.wav"), "--audio2 and --video go with one conversation"),
        (("--video", "v.mp4"), "--audio2 and --video go with one conversation"),
        (("--batch", "0"), "--batch must be at least 1, got 0"),
        (("--people", "2"), "--people 2 needs both tracks of every conversation"),
        (("--dtype", "float16"), "argument --dtype: invalid choice: 'float16'"),
    ],
)
def test_flags_that_do_not_go_with_a_folder_are_refused(tiny_runs, recordings, tmp_path, capfd, flags, problem):
    assert decode(tiny_runs, "--audio", recordings, "--out", tmp_path, *flags) == 2
    assert problem in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
