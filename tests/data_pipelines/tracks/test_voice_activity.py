"""Who speaks when without a file that says it: by loudness, by Silero's detector, and by whose jaw moves."""

import importlib.util
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from foreign_data import write_wav
from scipy.signal import resample_poly
from tracked import deca, truth, write_clip

from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.tracking import TrackOptions
from data_pipelines.sources.tracks import TracksSource
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from data_pipelines.tracks import voice_activity
from data_pipelines.tracks.voice_activity import check_detector, find_speech, share_by_jaws, turns_of
from unils_jax.audio import speaking_frames
from unils_jax.errors import UserError

SILERO = all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime")) and shutil.which("flite")
needs_silero = pytest.mark.skipif(
    not SILERO, reason="needs Silero's detector and a voice: pip install '.[vad]', apt-get install flite"
)


@pytest.fixture(scope="module")
def conversation():
    """A minute of two people, each with the own microphone."""
    record = make_conversation(SynthConfig(minutes=1.0), 0, 0)
    return record, [np.float32(track) / 32768 for track in record.audio]


def read(folder, vad):
    """The one recording of a folder, as `--vad` reads it."""
    source = TracksSource(folder, "train", options=TrackOptions(vad=vad))
    with source.open() as reader:
        return reader(source.entries()[0])


def write_people(folder, record, *, jaws=True):
    for k, motion in enumerate(record.motion.astype(np.float64), 1):
        arrays = deca(motion)
        arrays["pose"] = arrays["pose"] if jaws else arrays["pose"][:, :3]
        write_clip(folder, f"a_speaker{k}", {**arrays, "fps": np.float64(25)})


@pytest.mark.parametrize("layout", ["files", "channels"])
def test_turns_are_found_in_each_person_s_own_sound(tmp_path, conversation, layout):
    record, sounds = conversation
    write_people(tmp_path, record)
    if layout == "files":
        for k, sound in enumerate(sounds, 1):
            write_wav(tmp_path / f"a_speaker{k}.wav", sound)
    else:
        write_wav(tmp_path / "a.wav", np.stack(sounds, axis=1))
    assert read(tmp_path, None).record.speech_mask is None
    found = read(tmp_path, "loudness").record
    np.testing.assert_array_equal(found.speech_mask, speaking_frames(list(found.audio)))
    assert (found.speech_mask == record.speech_mask).mean() > 0.9


def test_one_microphone_is_shared_out_by_the_jaw_that_moves(tmp_path, conversation):
    record, sounds = conversation
    write_people(tmp_path, record)
    write_wav(tmp_path / "a.wav", 0.5 * (sounds[0] + sounds[1]))
    with pytest.raises(SkippedEntry, match="no .rttm, and no --vad"):
        read(tmp_path, None)
    reading = read(tmp_path, "loudness")
    mask, alone = reading.record.speech_mask, record.speech_mask.sum(axis=0) == 1
    assert not mask.all(axis=0).any() and (mask == record.speech_mask)[:, alone].mean() > 0.95
    # Each person has the sound of the own turns, and silence in the middle of the other's.
    audio, frames = reading.record.audio.reshape(2, -1, 640), mask.shape[1]
    silent = np.array([[not mask[k, max(t - 1, 0) : t + 2].any() for t in range(frames)] for k in (0, 1)])
    assert not audio[silent].any() and audio[mask].any(axis=1).mean() > 0.9
    assert "one microphone: the moving jaw says who speaks" in str(reading.notices)


def test_one_microphone_without_jaws_is_left_out(tmp_path, conversation):
    record, sounds = conversation
    write_people(tmp_path, record, jaws=False)
    write_wav(tmp_path / "a.wav", sounds[0])
    with pytest.raises(SkippedEntry, match="no jaws to tell who speaks"):
        read(tmp_path, "loudness")


def test_turns_that_a_file_gives_come_first(tmp_path):
    for k in (1, 2):
        write_clip(tmp_path, f"a_speaker{k}", deca(truth(4.8, 25, k)))
        write_wav(tmp_path / f"a_speaker{k}.wav", 0.1 * np.random.default_rng(k).standard_normal(76_800))
    rows = [f"SPEAKER a 1 {k} 1 <NA> <NA> {k} <NA> <NA>\n" for k in (1, 2)]
    (tmp_path / "a.rttm").write_text("".join(rows))
    mask = read(tmp_path, "loudness").record.speech_mask
    np.testing.assert_array_equal(mask, [(np.arange(120) // 25) == k for k in (1, 2)])


def test_short_movements_of_the_other_jaw_change_no_turn():
    """Two jaws that move in turn for four seconds each, and the second for a moment while the first does."""
    opening = np.abs(np.sin(np.arange(400) * 0.9)) * 0.2
    turn = np.arange(400) // 100 % 2
    jaws = np.stack([opening * (turn == 0), opening * (turn == 1)])
    jaws[1, 48:52] += 0.2
    mask = share_by_jaws(np.ones(400, bool), jaws)
    assert (mask.sum(axis=0) == 1).all() and (mask[1] == turn).mean() > 0.96
    assert len(turns_of(mask[0])) == 2 and turns_of(np.zeros(4, bool)) == []
    assert turns_of(np.array([True, True, False, True])) == [(0.0, 0.08), (0.12, 0.16)]


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(voice_activity.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs silero_vad and onnxruntime: run pip install '.\[vad\]'"):
        check_detector("silero")
    check_detector("loudness")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Four sentences of a voice with two seconds before and after each, and which samples they are."""
    parts, inside = [np.zeros(32_000, np.float32)], [np.zeros(32_000, bool)]
    texts = ("We met at the station this morning.", "Nobody had told me about the change.", "Yes, of course.")
    for i, text in enumerate((*texts, "And then the whole family came along to the lake.")):
        path = tmp_path_factory.mktemp("voice") / f"{i}.wav"
        subprocess.run(["flite", "-voice", "rms", "-t", text, str(path)], check=True, capture_output=True)
        sound, rate = soundfile.read(path, dtype="float32")
        sound = resample_poly(sound, 16_000, rate) if rate != 16_000 else sound
        loud = np.flatnonzero(np.abs(sound) > 0.02)
        sound = sound[loud[0] : loud[-1]]
        parts += [sound, np.zeros(32_000, np.float32)]
        inside += [np.ones(len(sound), bool), np.zeros(32_000, bool)]
    return np.concatenate(parts), np.concatenate(inside)


@needs_silero
def test_silero_finds_a_voice_and_no_noise_that_is_as_loud(spoken):
    sound, inside = spoken
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    # Knocks of noise in the middle of the pauses, as loud as the voice.
    starts = np.flatnonzero(np.diff(inside.astype(int)) == 1) - 18_000
    knocks = np.isin(np.arange(len(sound)), np.concatenate([np.arange(s, s + 6_000) for s in starts]))
    sound = sound + 0.001 * noise + 0.2 * noise * knocks
    wanted = inside[320::640][: len(sound) // 640]
    (by_loudness,), (by_silero,) = (find_speech([sound], detector) for detector in ("loudness", "silero"))
    by_loudness, by_silero = by_loudness[: len(wanted)], by_silero[: len(wanted)]
    assert len(turns_of(by_silero)) == 4 and (by_silero == wanted).mean() > 0.93
    assert len(turns_of(by_loudness)) == 8
    for found, true in zip(turns_of(by_silero), turns_of(wanted), strict=True):
        assert abs(found[0] - true[0]) < 0.2 and abs(found[1] - true[1]) < 0.3


@needs_silero
def test_a_voice_that_leaks_into_the_other_microphone_is_the_nearer_person_s(spoken):
    sound, _ = spoken
    mask = find_speech([sound, 0.1 * sound], "silero")
    assert mask[0].any() and not mask[1].any()


@needs_silero
def test_probabilities_are_the_package_s(spoken):
    torch = pytest.importorskip("torch", reason="needs torch: pip install '.[torch]'")
    model = importlib.import_module("silero_vad").load_silero_vad(onnx=True)
    sound, _ = spoken
    expected = model.audio_forward(torch.from_numpy(sound)[None], sr=16_000)[0].numpy()
    np.testing.assert_allclose(voice_activity.probabilities(sound), expected, atol=1e-6)
