"""DualTalk folders: what they hold arrives in its channels, what they lack is marked, audio alone is kept."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from foreign_data import dualtalk_arrays, talking, write_dualtalk, write_wav
from read_back import read_all

from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.dualtalk import DualTalkSource
from unils_jax.errors import UserError
from unils_jax.motion import EYES, HEAD, JAW


def test_channels_go_to_their_places_and_the_missing_ones_are_marked(tmp_path):
    write_dualtalk(tmp_path / "train", "clip_a", 130, 1)
    record = read_all(DualTalkSource(tmp_path))["train", "clip_a"].record
    expected = dualtalk_arrays(130, 12)
    motion, observed = record.motion[1], record.observed[1]
    np.testing.assert_array_equal(motion[:, :50], expected["exp"])
    np.testing.assert_array_equal(motion[:, HEAD], expected["pose"][:, :3])
    np.testing.assert_array_equal(motion[:, JAW], expected["pose"][:, 3:4])
    assert not motion[:, 50:100].any() and not motion[:, EYES].any()
    assert observed[:50].all() and observed[100:104].all() and observed.sum() == 54
    assert record.expression_basis == "flame" and record.motion.dtype == np.float32 and record.speech_mask is None
    np.testing.assert_array_equal(record.audio[1], talking(130, 12)[1])


def test_a_partner_without_motion_is_kept_as_audio_only(tmp_path):
    write_dualtalk(tmp_path / "test", "clip", 130, 1, silent="1")
    record = read_all(DualTalkSource(tmp_path))["test", "clip"].record
    assert not record.observed[0].any() and not record.motion[0].any() and record.observed[1].sum() == 54
    np.testing.assert_array_equal(record.audio[0], talking(130, 11)[1])


def test_other_rates_are_resampled(tmp_path):
    write_dualtalk(tmp_path, "clip", 130, 1)
    for speaker, rate, channels in (("1", 44_100, 2), ("2", 48_000, 1)):
        tone = np.sin(2 * np.pi * 440 * np.arange(int(5.2 * rate)) / rate) * 0.5
        write_wav(tmp_path / f"clip_speaker{speaker}.wav", np.stack([tone] * channels, axis=1), rate)
    audio = read_all(DualTalkSource(tmp_path, "train"))["train", "clip"].record.audio
    assert abs(audio.shape[1] - 83_200) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(83_200) / 16_000)
    for track in audio:
        assert np.abs(track - expected[: len(track)])[200:-200].max() < 2e-3


@pytest.mark.parametrize(("more_frames", "kept"), [(0.2, True), (-1.2, True), (1.9, True), (-2.0, False), (2.0, False)])
def test_lengths_may_differ_by_a_frame_as_in_the_published_clips(tmp_path, more_frames, kept):
    """The published clips have 587.2 frames of audio beside 587 of motion, and 748.8 beside 750."""
    write_dualtalk(tmp_path, "clip", 130, 1)
    sound = np.zeros(round((130 + more_frames) * 640), np.float32)
    for speaker in "12":
        write_wav(tmp_path / f"clip_speaker{speaker}.wav", sound)
    got = read_all(DualTalkSource(tmp_path, "train"))["train", "clip"]
    if kept:
        assert got.record.num_frames == 130 and got.record.audio.shape[1] == min(len(sound), 130 * 640)
    else:
        assert got.reason == "lengths disagree"


def break_npz(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: break_npz(folder / "clip_speaker2.npz"), "^damaged: clip_speaker2.npz "),
        (
            lambda folder: (folder / "clip_speaker1.wav").write_bytes(b"RIFF"),
            "^damaged: clip_speaker1.wav is not an audio file",
        ),
        (
            lambda folder: np.savez(folder / "clip_speaker1.npz", exp=np.zeros((130, 50))),
            r"must hold float exp \[T, 50\]",
        ),
        (lambda folder: (folder / "clip_speaker1.wav").unlink(), "^missing partner: no wav of speaker 1"),
        (
            lambda folder: [(folder / f"clip_speaker{k}.npz").unlink() for k in "12"],
            "^missing: nobody in it has motion",
        ),
        (lambda folder: [file.unlink() for file in folder.glob("*speaker2*")], "^missing partner: no wav of speaker 2"),
    ],
)
def test_broken_clips_are_dropped_with_the_reason(tmp_path, change, message):
    write_dualtalk(tmp_path, "clip", 130, 1)
    change(tmp_path)
    dropped = read_all(DualTalkSource(tmp_path, "train"))["train", "clip"]
    with pytest.raises(SkippedEntry, match=message):
        raise dropped
    assert dropped.frames == 130


def test_wavs_that_claim_absurd_sizes_or_rates_are_not_read(tmp_path):
    write_dualtalk(tmp_path, "clip", 130, 1)
    soundfile.write(tmp_path / "clip_speaker1.wav", np.zeros(16_000), 2_000_000_000)
    dropped = read_all(DualTalkSource(tmp_path, "train"))["train", "clip"]
    assert "has a rate of 2000000000 Hz, must be 1000 to 768000" in dropped.detail


def test_folders_are_splits_and_flat_ones_are_split_by_name(tmp_path):
    for split in ("train", "test", "ood"):
        write_dualtalk(tmp_path / "by_folder" / split, f"clip_{split}", 110, 1)
    assert [(e.split, e.name) for e in DualTalkSource(tmp_path / "by_folder").entries()] == [
        ("train", "clip_train"),
        ("test", "clip_test"),
    ]
    (ood,) = DualTalkSource(tmp_path / "by_folder" / "ood", "test").entries()
    assert ood.split == "test"
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(30):
        (flat / f"c{i}_speaker1.wav").touch()
    splits = [entry.split for entry in DualTalkSource(flat).entries()]
    assert [splits.count(split) for split in ("train", "val", "test")] == [24, 3, 3]
    assert splits == [entry.split for entry in DualTalkSource(shutil.copytree(flat, tmp_path / "copy")).entries()]


def test_folders_that_are_none_of_dualtalks_are_refused(tmp_path):
    for source, message in (
        (DualTalkSource(tmp_path / "missing"), "is no folder"),
        (DualTalkSource(tmp_path), "holds no NAME_speaker1.wav"),
        (DualTalkSource(tmp_path, "ood"), "split must be one of train, val, test, got 'ood'"),
    ):
        with pytest.raises(UserError, match=message):
            source.entries()


@pytest.mark.skipif(
    "UNILS_REAL_DATA" not in os.environ, reason="set UNILS_REAL_DATA to a folder of a real dialogue clip"
)
def test_the_real_clip_is_read_with_its_partner_as_audio_only():
    (reading,) = read_all(DualTalkSource(Path(os.environ["UNILS_REAL_DATA"]), "train")).values()
    assert reading.record.motion.shape == (2, 587, 108) and reading.record.audio.shape == (2, 587 * 640)
    assert not reading.record.observed[0].any() and reading.record.observed[1].sum() == 54
