"""A folder of recordings is scored by one command, on motion whose answer is known."""

import json

import numpy as np
import pytest
import soundfile
from tiny_runs import run_unils

from unils_jax.audio import frame_loudness, read_audio
from unils_jax.checkpoints.loading import PRETRAINED, load
from unils_jax.evaluation.figures import recordings
from unils_jax.evaluation.figures.recordings import STANDIN_REST, Track, closed_in_silence, track_figures
from unils_jax.motion import JAW, SAMPLE_RATE, STANDIN_SHAPES

FRAMES = 250


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A conversation with tracked motion of its second person, one person alone, and a file that is no recording."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    loud = np.where(np.arange(FRAMES) // 50 % 2 == 0, 1.0, 0.0)
    for name, frames in (("talk_speaker1", loud), ("talk_speaker2", 1 - loud), ("alone", loud)):
        gains = np.repeat(frames * rng.uniform(0.05, 0.3, FRAMES), 640)
        soundfile.write(folder / f"{name}.wav", (gains * rng.normal(0, 0.5, FRAMES * 640)).clip(-1, 1), SAMPLE_RATE)
    jaw = rng.uniform(0, 0.3, (FRAMES, 1))
    pose = np.concatenate([np.zeros((FRAMES, 3)), jaw, np.zeros((FRAMES, 2))], axis=1)
    np.savez(folder / "talk_speaker2.npz", exp=np.zeros((FRAMES, 50)), pose=pose)
    (folder / "notes.json").write_text("{}")
    return folder


@pytest.fixture
def decoded(folder, monkeypatch):
    """Instead of a model: jaws that follow the own loudness, or the tracked jaw in the second of two seeds."""
    tracked = np.load(folder / "talk_speaker2.npz")["pose"][:, 3]

    def decode(checkpoint, audio, seed, dtype):
        motion = np.zeros((len(audio), FRAMES, 108), np.float32)
        for person, track in enumerate(audio):
            motion[person, :-1, JAW] = 0.004 * (frame_loudness(track)[1:, None] + 80)
        if seed == 1 and len(audio) == 2:
            motion[1, :, JAW] = tracked[:, None]
        motion[0, 10:60, 0] = 1.2 * STANDIN_SHAPES["smile_left"]
        return motion

    monkeypatch.setattr(recordings, "decode", decode)


def test_the_command_prints_a_table_and_writes_json(folder, decoded, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert run_unils("evaluate", "--recordings", folder, "--seeds", "2", "--out", out) == 0
    scores, said = json.loads(out.read_text()), capsys.readouterr().out
    assert [row["name"] for row in scores["tracks"]] == ["alone", "talk_speaker1", "talk_speaker2"]
    alone, first, second = (row["figures"] for row in scores["tracks"])
    assert alone["jaw_loudness"] == first["jaw_loudness"] == pytest.approx(1, abs=1e-4)
    assert abs(alone["jaw_shuffled_loudness"]) < 0.1
    assert alone["jaw_to_tracked_jaw"] is None and second["jaw_to_tracked_jaw"] > 0.45, "the mean of one and of chance"
    assert first["shapes_beyond_full"] == pytest.approx(50 / FRAMES) and second["shapes_beyond_full"] == 0
    assert scores["mean"]["jaw_to_tracked_jaw"] == pytest.approx(second["jaw_to_tracked_jaw"])
    assert scores["settings"]["seeds"] == [0, 1] and scores["settings"]["motion"] == "raw"
    lines = said.splitlines()
    assert lines[0].split()[0] == "track" and "talk_speaker2" in lines[3] and lines[4].split()[0] == "mean"
    assert lines[5] == f"{out}: 3 tracks, motion raw"


def test_finished_motion_has_no_shape_beyond_its_own(folder, decoded, tmp_path):
    assert run_unils("evaluate", "--recordings", folder, "--finished", "--out", tmp_path / "r.json") == 0
    scores = json.loads((tmp_path / "r.json").read_text())
    assert scores["settings"]["motion"] == "finished" and scores["mean"]["shapes_beyond_full"] == 0


def test_a_mouth_closed_in_half_of_the_silence():
    speaking = np.arange(200) < 100
    motion = np.zeros((200, 108), np.float32)
    motion[:100, JAW.start] = np.linspace(STANDIN_REST, 0.3, 100)
    motion[100:, JAW.start] = np.where(np.arange(100) % 2 == 0, 0.05, 0.2)
    motion[100:105, JAW.start] = 0.3  # on its way to rest
    for basis in ("standin", "flame"):
        assert closed_in_silence(motion, speaking, basis) == pytest.approx(47 / 95)
    assert np.isnan(closed_in_silence(motion, np.ones(200, bool), "standin"))


def test_motion_of_another_clip_is_refused(folder):
    audio = read_audio(folder / "alone.wav")
    track = Track("alone", audio, np.ones(FRAMES, bool), np.zeros((FRAMES + 40, 108), np.float32))
    with pytest.raises(Exception, match="alone.npz holds 290 frames, its audio 250"):
        track_figures(np.zeros((FRAMES, 108), np.float32), track, "standin")


def test_borders_are_those_of_the_model_s_own_windows():
    motion = np.zeros((FRAMES, 108), np.float32)
    motion[:, JAW.start] = 0.01 * np.arange(FRAMES) + 0.05 * (np.arange(FRAMES) // 10)
    track = Track("alone", np.zeros(FRAMES * 640, np.float32), np.zeros(FRAMES, bool), None)
    assert track_figures(motion, track, "standin", 10)["border_jump_jaw"] == pytest.approx(6, rel=1e-3)
    assert track_figures(motion, track, "standin")["border_jump_jaw"] < 5, "two borders among 24 like them"


def test_recordings_are_scored_with_the_checkpoint_s_window(folder, monkeypatch):
    """The packaged live model has borders every 10 frames."""

    def decode(checkpoint, audio, seed, dtype):
        frames = np.arange(FRAMES)
        motion = np.zeros((len(audio), FRAMES, 108), np.float32)
        motion[:, :, JAW.start] = 0.001 * frames + 0.005 * (frames // 10)
        return motion

    monkeypatch.setattr(recordings, "decode", decode)
    scores = recordings.score_recordings(folder, load(PRETRAINED / "live.safetensors"), seeds=1)
    assert scores["mean"]["border_jump_jaw"] == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "name what is scored"),
        (("--recordings", "nowhere"), "is no folder"),
        (("--recordings", ".", "--data", "x"), "--recordings goes with --checkpoint alone"),
        (("--recordings", ".", "--limit", "1"), "--limit goes with --data"),
        (("--motion", ".", "--data", "x", "--finished"), "--finished is of --checkpoint"),
    ],
)
def test_mistakes_are_one_line(words, problem, capsys):
    assert run_unils("evaluate", *words) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_an_empty_folder_has_nothing_to_score(tmp_path, capsys):
    assert run_unils("evaluate", "--recordings", tmp_path, "--out", tmp_path / "r.json") == 2
    assert "names no audio file" in capsys.readouterr().err
