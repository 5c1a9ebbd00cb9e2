"""Folders of sound and our motion files: one or two people, audio apart or as channels, any format."""

from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from foreign_data import talking, write_dualtalk, write_motion, write_wav
from tiny_runs import run_unils

from data_pipelines.conversion.convert import make_plan
from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.folder import FilesSource
from unils_jax.errors import UserError


def read_one(folder):
    (entry,) = FilesSource(folder, "train").entries()
    with FilesSource(folder, "train").open() as read:
        return read(entry).record


def sound(seed: int, frames: int = 120) -> np.ndarray:
    return talking(frames, seed)[1]


def test_one_person_with_audio(tmp_path):
    motion = write_motion(tmp_path / "a.npz", 1, 120, 1, "standin")
    write_wav(tmp_path / "a.wav", np.stack([sound(1), sound(2)], axis=1))
    record = read_one(tmp_path)
    np.testing.assert_array_equal(record.motion, motion)
    np.testing.assert_allclose(record.audio, [(sound(1) + sound(2)) / 2], atol=1e-7)
    assert (record.name, record.expression_basis, record.source) == ("a", "standin", "files")


def test_motion_alone_is_a_record_without_audio(tmp_path):
    write_motion(tmp_path / "a.npz", 2, 120, 1)
    assert read_one(tmp_path).audio is None


def test_motion_of_three_people_is_left_out_and_named(tmp_path):
    write_motion(tmp_path / "a.npz", 3, 120, 1)
    write_wav(tmp_path / "a.wav", np.stack([sound(1), sound(2)], axis=1))
    with pytest.raises(SkippedEntry, match="motion of 3 people"):
        read_one(tmp_path)


@pytest.mark.parametrize("audio", ["stereo", "apart"])
def test_two_people_in_one_motion_file(tmp_path, audio):
    motion = write_motion(tmp_path / "a.npz", 2, 120, 1)
    if audio == "stereo":
        write_wav(tmp_path / "a.wav", np.stack([sound(1), sound(2)], axis=1))
    else:
        for person in (1, 2):
            write_wav(tmp_path / f"a_speaker{person}.wav", sound(person))
    record = read_one(tmp_path)
    np.testing.assert_array_equal(record.motion, motion)
    np.testing.assert_array_equal(record.audio, [sound(1), sound(2)])


def test_a_motion_file_for_each_person(tmp_path):
    motions = [write_motion(tmp_path / f"a_speaker{k}.npz", 1, 120, k) for k in (1, 2)]
    for person in (1, 2):
        write_wav(tmp_path / f"a_speaker{person}.wav", sound(person))
    np.testing.assert_array_equal(read_one(tmp_path).motion, np.concatenate(motions))
    (tmp_path / "a_speaker2.npz").unlink()
    record = read_one(tmp_path)
    assert record.observed[0].all() and not record.observed[1].any() and not record.motion[1].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f: (write_motion(f / "a.npz", 2, 120, 1), write_wav(f / "a.wav", sound(1))),
            "1 channels for two people",
        ),
        (
            lambda f: (write_motion(f / "a.npz", 1, 120, 1), write_motion(f / "a_speaker1.npz", 1, 120, 1)),
            "both of all",
        ),
        (
            lambda f: (write_motion(f / "a.npz", 2, 120, 1), write_wav(f / "a_speaker2.wav", sound(1))),
            "audio of 1 people",
        ),
        (lambda f: write_motion(f / "a_speaker1.npz", 1, 120, 1), "needs files of _speaker1 and _speaker2"),
        (lambda f: write_motion(f / "a_speaker1.npz", 2, 120, 1), "must hold one person"),
        (lambda f: (write_motion(f / "a.npz", 1, 120, 1), write_wav(f / "a.wav", sound(1, 90))), "lengths disagree"),
        (lambda f: np.savez(f / "a.npz", motion=np.zeros((1, 120, 108))), "a.npz is not a motion file of unils"),
    ],
)
def test_broken_recordings_are_dropped_with_the_reason(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(SkippedEntry, match=message) as dropped:
        read_one(tmp_path)
    assert str(tmp_path) not in dropped.value.detail


def test_audio_without_motion_is_dropped_beside_others(tmp_path):
    write_motion(tmp_path / "a.npz", 1, 120, 1)
    write_wav(tmp_path / "b.wav", sound(1))
    source = FilesSource(tmp_path, "train")
    with source.open() as read, pytest.raises(SkippedEntry, match="no motion .npz") as dropped:
        read(source.entries()[1])
    assert dropped.value.frames == 120


def test_a_folder_without_motion_is_refused(tmp_path):
    write_wav(tmp_path / "b.wav", sound(1))
    with pytest.raises(UserError, match="holds no motion .npz"):
        FilesSource(tmp_path).entries()


def write_video(path, samples=None):
    """Writes a video of black pictures, 4.8 s, with or without sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        sound = None if samples is None else container.add_stream("aac", rate=16000, layout="mono")
        for _ in range(120):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def test_sound_of_any_format_and_case_is_found(tmp_path):
    names = ["a.FLAC", "b.Wav", "c.ogg", "d.W64", "e.MP4", "f_Speaker1.flac"]
    for name in names:
        stem, _, suffix = name.partition(".")
        write_motion(tmp_path / f"{stem.partition('_')[0]}.npz", 2 if stem.startswith("f") else 1, 120, 1)
        if suffix == "MP4":
            write_video(tmp_path / "e.mp4", sound(1))
            (tmp_path / "e.mp4").rename(tmp_path / name)
        else:
            form = {"FLAC": "FLAC", "Wav": "WAV", "ogg": "OGG", "W64": "W64", "flac": "FLAC"}[suffix]
            soundfile.write(tmp_path / name, sound(1), 16000, format=form)
    soundfile.write(tmp_path / "f_SPEAKER2.flac", sound(2), 16000)
    source = FilesSource(tmp_path, "train")
    with source.open() as read:
        records = [read(entry).record for entry in source.entries()]
    assert [record.name for record in records] == list("abcdef")
    for record in records:
        assert np.corrcoef(record.audio[0][:70000], sound(1)[:70000])[0, 1] > 0.9, record.name
    assert len(records[5].audio) == 2


def test_one_of_several_files_with_the_same_sound_is_read_and_the_others_are_named(tmp_path):
    write_motion(tmp_path / "a.npz", 1, 120, 1)
    write_wav(tmp_path / "a.wav", sound(1))
    soundfile.write(tmp_path / "a.flac", sound(2), 16000)
    write_video(tmp_path / "a.mp4", sound(3))
    write_motion(tmp_path / "b.npz", 2, 120, 1)
    for person in (1, 2):
        write_wav(tmp_path / f"b_speaker{person}.wav", sound(person))
    write_video(tmp_path / "b.mp4", sound(3))
    source = FilesSource(tmp_path, "train")
    with source.open() as read:
        first, second = (read(entry).record for entry in source.entries())
    np.testing.assert_array_equal(first.audio[0], sound(1))
    np.testing.assert_array_equal(second.audio, [sound(1), sound(2)])
    (note,) = make_plan(source).notes
    assert note.endswith("the same sound or motion: a.flac, a.mp4, b.mp4")


def test_a_video_without_sound_beside_motion_is_passed_over(tmp_path):
    write_motion(tmp_path / "a.npz", 1, 120, 1)
    write_video(tmp_path / "a.mp4")
    assert read_one(tmp_path).audio is None


def test_one_voice_in_opposite_phase_is_kept_and_is_not_two_people(tmp_path, caplog):
    write_motion(tmp_path / "a.npz", 1, 120, 1)
    write_wav(tmp_path / "a.wav", np.stack([sound(1), -0.5 * sound(1)], axis=1))
    np.testing.assert_allclose(read_one(tmp_path).audio[0], sound(1), atol=1e-4)
    assert "a: its channels are of opposite phase" in caplog.text
    write_motion(tmp_path / "a.npz", 2, 120, 1)
    with pytest.raises(SkippedEntry, match="1 channels for two people .its 2 channels are the same sound"):
        read_one(tmp_path)


def test_damage_and_gaps_of_a_source_are_logged(tmp_path, caplog):
    write_motion(tmp_path / "a.npz", 1, 120, 1)
    soundfile.write(tmp_path / "a.flac", sound(1), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(range(200))
    (tmp_path / "a.flac").write_bytes(data)
    assert read_one(tmp_path).audio.shape == (1, 120 * 640)
    assert "WARNING" in caplog.text and "a.flac: " in caplog.text and "silence was put there" in caplog.text


def test_damage_losses_and_mixed_channels_reach_the_report_of_the_conversion(tmp_path, caplog):
    folder = tmp_path / "in"
    write_dualtalk(folder, "a", 120, 1)
    for speaker, sideways in ((1, 0.04), (2, 0.3)):
        with np.load(folder / f"a_speaker{speaker}.npz") as clip:
            arrays = dict(clip)
        arrays["pose"][:, 4:] = 0
        arrays["pose"][7, 4] = sideways
        np.savez(folder / f"a_speaker{speaker}.npz", **arrays)
    write_wav(folder / "a_speaker1.wav", np.stack([sound(1), sound(2)], axis=1))
    flags = ["--from", "dualtalk", "--source", folder, "--out", tmp_path / "s", "--workers", "0"]
    assert run_unils("data", "convert", *flags) == 0
    said = (tmp_path / "s" / "CONVERSION.md").read_text()
    assert "the jaw keeps the first of its three components" in said and "three components" in caplog.text
    assert "| train | a | the jaw of speaker 2 turns sideways by up to 0.30 rad, which is left out |" in said
    assert "its 2 channels differ" in said and "2 notices on gaps, damage or losses" in caplog.text
    write_motion(tmp_path / "files" / "b.npz", 1, 120, 1)
    soundfile.write(tmp_path / "files" / "b.flac", sound(1), 16000)
    data = bytearray((tmp_path / "files" / "b.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(range(200))
    (tmp_path / "files" / "b.flac").write_bytes(data)
    flags = ["--from", "files", "--source", tmp_path / "files", "--out", tmp_path / "t", "--workers", "1"]
    assert run_unils("data", "convert", *flags) == 0
    assert "silence was put there" in (tmp_path / "t" / "CONVERSION.md").read_text()
