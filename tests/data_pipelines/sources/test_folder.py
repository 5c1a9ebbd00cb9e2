"""Folders of .wav and our motion files: one or two people, audio apart or as channels."""

import numpy as np
import pytest
from foreign_data import talking, write_motion, write_wav

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
