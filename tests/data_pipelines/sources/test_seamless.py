"""Seamless Interaction as it is downloaded: pairs, heads, masks, trackers beside it, and every fault by its name."""

import json

import numpy as np
import pytest
from seamless_data import pack, true_head, write_participant
from tiny_runs import run_unils
from tracked import smirk, truth, write_clip

from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.seamless import SeamlessSource
from data_pipelines.store.reader import Store
from unils_jax.errors import UserError
from unils_jax.motion import EXPRESSION, HEAD

PAIR = ("V00_S0809_I00000582_P0947", "V00_S0809_I00000582_P1043A")
DEV = "improvised/dev/0000/0005"


def write_pair(folder, where=DEV, ids=PAIR, **flags):
    return [write_participant(folder / where, one, seed=seed, **flags) for seed, one in enumerate(ids, 1)]


def read_one(folder, **flags):
    source = SeamlessSource(folder, **flags)
    (entry,) = source.entries()
    with source.open() as read:
        return read(entry)


def test_two_participants_are_a_record_with_heads_sound_and_masks(tmp_path):
    sounds = write_pair(tmp_path, turns=((0.52, 2.0), (3.0, 9.9)))
    (entry,) = SeamlessSource(tmp_path).entries()
    assert (entry.split, entry.name) == ("val", "V00_S0809_I00000582")
    record = read_one(tmp_path).record
    assert record.identities == ("V00_P0947", "V00_P1043A") and record.motion.shape == (2, 125, 108)
    np.testing.assert_array_equal(record.observed, np.broadcast_to(np.isin(np.arange(108), [100, 101, 102]), (2, 108)))
    assert not record.motion[:, :, ~record.observed[0]].any()
    for person, sound in enumerate(sounds):
        # Every fifth frame of 25 a second is at the time of a sixth one of 30: no interpolation.
        np.testing.assert_allclose(record.motion[person, ::5, HEAD], true_head(5, 25, person + 1)[::5], atol=1e-5)
        np.testing.assert_allclose(record.motion[person, :-1, HEAD], true_head(5, 25, person + 1)[:-1], atol=4e-3)
        np.testing.assert_allclose(record.audio[person, 100:-100], sound[::3][100:-100], atol=1e-3)
        np.testing.assert_array_equal(np.flatnonzero(record.speech_mask[person]), [*range(13, 50), *range(75, 125)])


def test_pairs_in_different_archives_are_as_in_folders(tmp_path):
    write_pair(tmp_path / "a")
    for number, one in enumerate(PAIR):
        inside = tmp_path / f"b/improvised/dev/0000/{number:04d}"
        write_participant(inside, one, seed=number + 1)
        pack(inside, inside.with_suffix(".tar"))
    ours, theirs = (read_one(tmp_path / name).record for name in "ab")
    for field in ("motion", "audio", "speech_mask"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert "smplh:translation" in SeamlessSource(tmp_path / "b").table()


def test_lost_tracking_cuts_a_record_and_short_gaps_are_filled(tmp_path):
    write_participant(tmp_path / DEV, PAIR[0], 12, seed=1, lost=slice(150, 153))
    write_participant(tmp_path / DEV, PAIR[1], 12, seed=2, lost=slice(174, 192))
    reading = read_one(tmp_path)
    assert [record.name for record in reading.records] == [f"V00_S0809_I00000582_from{n}" for n in (0, 160)]
    assert [record.num_frames for record in reading.records] == [145, 140] and reading.lost[0].frames == 15
    np.testing.assert_allclose(reading.record.motion[0, ::5, HEAD], true_head(12, 25, 1)[:145:5], atol=2e-2)
    np.testing.assert_allclose(reading.records[1].motion[1, ::5, HEAD], true_head(12, 25, 2)[160::5], atol=1e-5)


def test_a_trackers_files_are_taken_instead_of_the_set(tmp_path):
    write_pair(tmp_path / "in")
    motion = truth(5, 30)
    write_clip(tmp_path / "tracked/any", PAIR[1], smirk(motion))
    source = SeamlessSource(tmp_path / "in", motion_folder=tmp_path / "tracked")
    assert "instead of the head above for 1 of 2 file ids" in source.table() and "| layout | smirk |" in source.table()
    reading = read_one(tmp_path / "in", motion_folder=tmp_path / "tracked")
    np.testing.assert_array_equal(reading.record.observed.sum(axis=1), [3, 54])
    np.testing.assert_allclose(reading.record.motion[1, ::5, :50], motion[::6, :50], atol=1e-5)
    np.testing.assert_allclose(reading.record.motion[1, ::5, HEAD], motion[::6, HEAD], atol=1e-5)
    np.testing.assert_allclose(reading.record.motion[0, ::5, HEAD], true_head(5, 30, 1)[::6], atol=1e-5)
    assert not reading.record.motion[0, :, EXPRESSION].any()
    assert "P1043A: V00_S0809_I00000582_P1043A.npz does not say its rate, taken to be the set's 30" in str(
        reading.notices
    )


def test_a_tracker_folder_without_an_id_is_refused(tmp_path):
    write_pair(tmp_path / "in")
    write_clip(tmp_path / "tracked", "P0947", smirk(truth(5, 30)))
    with pytest.raises(UserError, match=f"holds no file of a tracker named like {PAIR[0]}; name them by the ids"):
        SeamlessSource(tmp_path / "in", motion_folder=tmp_path / "tracked").check()


def other_shapes(path):
    np.savez(path, **{"smplh:global_orient": np.zeros((150, 3)), "smplh:body_pose": np.zeros((149, 21, 3))})


def rewrite_vad(path, vad):
    path.write_text(json.dumps({"id": path.stem, "metadata:vad": vad}))


FAULTS = {
    "partner": (lambda f: [p.unlink() for p in f.glob("*_P0947*")], "missing partner: 1 participant .P1043A., two"),
    "three": (lambda f: write_participant(f, "V00_S0809_I00000582_P0001"), r"3 participants \(P0001, P0947, P1043A\)"),
    "sound": (lambda f: (f / f"{PAIR[0]}.wav").unlink(), "missing: no .wav of P0947"),
    "noise": (lambda f: (f / f"{PAIR[0]}.wav").write_bytes(b"RIFF none"), f"damaged: {DEV}/{PAIR[0]}.wav"),
    "npz": (lambda f: (f / f"{PAIR[0]}.npz").write_bytes(b"PK none"), f"damaged: {DEV}/{PAIR[0]}.npz is no .npz"),
    "json": (lambda f: (f / f"{PAIR[1]}.json").write_text('{"id"'), f"damaged: {DEV}/{PAIR[1]}.json is no JSON"),
    "shapes": (lambda f: other_shapes(f / f"{PAIR[0]}.npz"), r"must hold smplh:global_orient \[T, 3\] and smplh:body"),
    "vad": (lambda f: rewrite_vad(f / f"{PAIR[0]}.json", [{"start": 3, "end": 1}]), "segment 0 is none"),
    "length": (lambda f: write_participant(f, PAIR[0], 6), "lengths disagree: sound of P0947 6.00 s"),
    "nobody": (lambda f: [p.unlink() for p in f.glob("*.npz")], "missing: nobody in it has motion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_a_record_is_left_out_with_its_reason(tmp_path, fault):
    write_pair(tmp_path)
    make, reason = FAULTS[fault]
    make(tmp_path / DEV)
    with pytest.raises(SkippedEntry, match=reason) as skipped:
        read_one(tmp_path)
    assert str(skipped.value).count("\n") == 0 and (skipped.value.frames == 125 or fault in ("length", "three"))


def test_what_a_participant_lacks_is_said_and_the_rest_is_kept(tmp_path):
    write_pair(tmp_path)
    (tmp_path / DEV / f"{PAIR[0]}.npz").unlink()
    (tmp_path / DEV / f"{PAIR[1]}.json").unlink()
    reading = read_one(tmp_path / "improvised/dev")
    assert reading.record.observed.sum(axis=1).tolist() == [0, 3] and reading.record.speech_mask is None
    assert "P0947: no motion" in str(reading.notices) and "P1043A: no metadata:vad" in str(reading.notices)


def test_files_that_differ_by_less_than_half_a_second_are_cut_to_the_shortest(tmp_path):
    write_participant(tmp_path / DEV, PAIR[0], 5.0, seed=1)
    write_participant(tmp_path / DEV, PAIR[1], 5.4, seed=2)
    reading = read_one(tmp_path)
    assert (reading.record.num_frames, reading.frames_in) == (125, 135)
    assert "its files differ by 0.40 s; all are cut to the shortest" in str(reading.notices)


def test_splits_are_the_folders_or_keep_a_person_in_one(tmp_path):
    names = [f"V00_S0001_I{number:04d}" for number in range(8)]
    for number, name in enumerate(names):
        for person in (f"P{number // 2}A", f"P{number // 2}B"):
            (tmp_path / f"{name}_{person}.wav").touch()
    entries = SeamlessSource(tmp_path, shares=(0.5, 0.25, 0.25)).entries()
    assert {entry.split for entry in entries} == {"train", "val", "test"}
    assert all(first.split == second.split for first, second in zip(entries[::2], entries[1::2], strict=True))
    assert {entry.split for entry in SeamlessSource(tmp_path, "test").entries()} == {"test"}
    (tmp_path / "naturalistic/train").mkdir(parents=True)
    (tmp_path / f"{names[0]}_P0A.wav").rename(tmp_path / f"naturalistic/train/{names[0]}_P0A.wav")
    problems = {entry.name: entry.problem for entry in SeamlessSource(tmp_path).entries()}
    assert problems[names[1]] == "no folder above it is train, dev or test"


def test_a_folder_converts_with_the_table_printed_before(tmp_path, capsys):
    write_pair(tmp_path / "in")
    alone = write_participant(tmp_path / "in/naturalistic/train/0000/0001", "V01_S0002_I00000003_P0001")
    assert len(alone) == 240_000
    flags = ["data", "convert", "--from", "seamless", "--source", tmp_path / "in", "--out", tmp_path / "out"]
    assert (
        run_unils(*flags, "--fps", "30") == 2
        and "--from tracks or --motion_source, not of --from seamless" in capsys.readouterr().err
    )
    assert run_unils(*flags, "--motion_source", tmp_path / "in/improvised") == 2
    assert "must lie apart from --source" in capsys.readouterr().err
    assert run_unils(*flags, "--workers", "0") == 0
    out = capsys.readouterr().out
    for line in (
        "| layout | seamless | 2 interactions of 3 file ids |",
        "| expression | missing | marked as missing |",
        "| - | movement:FAUValue | ignored: action units, which do not determine FLAME's coefficients |",
        "| - | smplh:left_hand_pose, smplh:right_hand_pose | ignored: hands, which have no channel |",
        "| - | metadata:transcript | ignored: words, which records do not keep |",
        "1 record, 0.00 of 0.00 hours, 1 sequence left out",
    ):
        assert line in out, line
    store = Store(tmp_path / "out")
    assert store.lengths("val").tolist() == [125] and "missing partner" in (tmp_path / "out/CONVERSION.md").read_text()
