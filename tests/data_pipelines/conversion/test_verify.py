"""A check of a store finds what is wrong with it, by name, and counts what there is."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from foreign_data import motioncode, talking
from tiny_runs import run_unils

from data_pipelines.conversion.alignment import align, peak
from data_pipelines.conversion.verify import summary, verify
from data_pipelines.record import Record
from data_pipelines.store.reader import Store, write_store
from unils_jax.motion import HEAD, JAW, center_head, from_motioncode


def dialogue(name: str, frames: int = 400, seed: int = 0, offset_frames: int = 0) -> Record:
    """Two people whose jaws follow their voices, `offset_frames` late."""
    people = [seed * 2, seed * 2 + 1]
    motion = [from_motioncode(motioncode(frames, person, offset_frames=offset_frames)) for person in people]
    voices = [talking(frames, person) for person in people]
    audio = np.stack([(voice[1] * 32767).astype(np.int16) for voice in voices])
    return Record(name, np.stack(motion), audio, np.stack([voice[2] for voice in voices]), "flame")


def changed(record: Record, person: int, channels, value) -> Record:
    motion = record.motion.copy()
    motion[person, 50, channels] = value
    return dataclasses.replace(record, motion=motion)


@pytest.fixture(scope="module")
def records() -> list[tuple[str, Record]]:
    return [(split, dialogue(f"r{i}", 400 + i, i)) for i, split in enumerate(("train", "train", "val", "test"))]


@pytest.fixture
def check(tmp_path):
    def checked(records, damage=lambda store: None) -> dict:
        store = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        write_store(store, records)
        damage(store)
        return verify(store)

    return checked


def test_a_sound_store_is_found_sound_and_counted(check, records):
    report = check(records)
    assert report["problems"]["count"] == report["warnings"]["count"] == 0
    everything = np.concatenate([r.motion.astype(np.float64).reshape(-1, 108) for _, r in records])
    centred = np.concatenate([center_head(r.motion).astype(np.float64).reshape(-1, 108) for _, r in records])
    for column, expected in (
        ("min", everything.min(axis=0)),
        ("max", everything.max(axis=0)),
        ("mean", centred.mean(axis=0)),
        ("std", centred.std(axis=0)),
    ):
        np.testing.assert_allclose([c[column] for c in report["channels"].values()], expected, atol=1e-9)
    masks = np.concatenate([r.speech_mask for _, r in records], axis=1)
    assert report["speech"]["share_speaking"] == pytest.approx(masks.mean())
    assert report["speech"]["share_both_speak"] == pytest.approx(masks.all(axis=0).mean())
    counts = {name: sum(histogram["counts"]) for name, histogram in report["histograms"].items()}
    frames = everything.shape[0]
    assert (counts["expression"], counts["jaw"], counts["loudness_db"], counts["seconds"]) == (
        100 * frames,
        frames,
        frames,
        4,
    )
    assert [split["count"] for split in report["splits"].values()] == [2, 1, 1]
    assert abs(report["alignment"]["offset_frames"]) < 0.2 and report["alignment"]["correlation"] > 0.7


@pytest.mark.parametrize("offset", [-9, -2, 0, 3, 12])
@pytest.mark.parametrize("with_mask", [True, False])
def test_the_lag_between_voice_and_mouth_is_measured(offset, with_mask):
    record = dialogue("x", 500, 3, offset)
    audio = record.audio[0] / np.float32(32768)
    got = align(record.motion[0].astype(np.float32), audio, record.speech_mask[0] if with_mask else None)
    lag, correlation = peak(got.curve)
    assert abs(lag - offset) < 0.3 and correlation > 0.7
    if with_mask:
        assert got.frames == record.speech_mask[0][25:-25].sum()


def test_without_speech_or_movement_there_is_no_lag():
    record = dialogue("x", 500, 3)
    motion, audio = record.motion[0].astype(np.float32), record.audio[0] / np.float32(32768)
    assert align(motion, np.zeros_like(audio), None) is None
    assert align(motion, audio, np.zeros(500, bool)) is None
    motion[:, JAW] = 0.1
    assert align(motion, audio, None) is None
    assert align(motion[:40], audio, None) is None


def test_motion_out_of_step_with_the_audio_is_a_problem(check, records):
    report = check([(split, dialogue(r.name, 400, i, offset_frames=8)) for i, (split, r) in enumerate(records)])
    assert report["alignment"]["offset_frames"] == pytest.approx(8, abs=0.2)
    assert report["problems"]["count"] == 1 and "+8.0 frames away" in report["problems"]["first"][0]
    assert any("record 'r3' of test: the jaw agrees best" in text for text in report["warnings"]["first"])


def unsteady(frames: int, seed: int, agreement: float, lag: int = 0) -> Record:
    """One person who speaks in syllables of irregular length; the jaw follows the voice as far as `agreement`."""
    rng = np.random.default_rng(seed)

    def syllables() -> np.ndarray:
        return np.convolve(np.abs(rng.standard_normal(frames)), np.ones(4) / 4, "same")

    loudness, other = syllables(), syllables()
    audio = np.repeat(loudness, 640) * rng.standard_normal(frames * 640) * 0.05
    motion = rng.standard_normal((1, frames, 108)).astype(np.float32) * 0.01
    motion[0, :, 103] = np.roll(agreement * loudness + np.sqrt(1 - agreement**2) * other, lag) * 0.2
    samples = np.clip(audio * 32767, -32767, 32767).astype(np.int16)[None]
    return Record(f"{seed}", motion, samples, np.ones((1, frames), bool), "flame")


def test_a_peak_that_chance_explains_is_a_remark_and_no_fault(check):
    weak, clear = [], 0
    for seed in range(30):  # an unrelated voice: the highest of 51 correlations lies anywhere
        record = unsteady(350, seed, 0.0)
        found = align(record.motion[0], record.audio[0] / np.float32(32768), None)
        lag, correlation = peak(found.curve)
        weak += [record] if correlation > 0.2 and abs(lag) > 5 and found.chance > 0.01 else []
        clear += found.chance < 0.01
    assert len(weak) >= 5 and clear <= 1  # of 30, 0.3 are expected
    report = check([("train", weak[0])])
    assert report["problems"]["count"] == report["warnings"]["count"] == 0
    assert report["alignment"]["offset_frames"] is None and report["alignment"]["correlation"] > 0.2
    assert "no clear offset in 1 person" in summary(report) and "no fault" in summary(report)


@pytest.mark.parametrize("lag", [-12, 12])
def test_one_recording_that_is_clearly_out_of_step_is_a_problem(check, lag):
    report = check([("train", unsteady(600, 7, 0.8, lag))])
    assert report["problems"]["count"] == 1 and "out of step" in report["problems"]["first"][0]
    assert report["alignment"]["offset_frames"] == pytest.approx(lag, abs=0.5)


def test_the_median_over_people_judges_and_one_odd_recording_is_a_warning(check):
    late = [(split, unsteady(600, i, 0.8, 12 if i == 0 else 0)) for i, split in enumerate(("train", "train", "val"))]
    report = check(late)
    assert report["problems"]["count"] == 0 and abs(report["alignment"]["offset_frames"]) < 0.5
    assert report["warnings"]["count"] == 1 and "record '0' of train" in report["warnings"]["first"][0]


def test_clear_offsets_of_few_people_are_a_warning(check):
    records = [unsteady(600, 0, 0.8, 12), *(unsteady(600, i, 0.0) for i in range(1, 4))]
    report = check([("train", record) for record in records])
    assert report["problems"]["count"] == 0
    assert any("of 1 of 4 people" in text for text in report["warnings"]["first"])


def flip_a_byte(store: Path) -> None:
    file = store / "train.array_record-00000"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 255
    file.write_bytes(content)


def edit_manifest(change):
    def edit(store: Path) -> None:
        manifest = json.loads((store / "manifest.json").read_text())
        change(manifest)
        (store / "manifest.json").write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "train.array_record-00000 is not the file that was written"),
        (
            lambda store: (store / "audio" / "test.array_record-00000").unlink(),
            "audio/test.array_record-00000 is missing",
        ),
        (edit_manifest(lambda m: m["statistics"]["mean"].__setitem__(3, 1.0)), "channel statistics are not those"),
    ],
)
def test_damaged_stores_have_problems(check, records, damage, message):
    problems = check(records, damage)["problems"]
    assert problems["count"] >= 1 and any(message in text for text in problems["first"])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda r: changed(r, 1, HEAD, 4.0), "problems", "record 'r0' of train, person 2: head reaches 4 rad"),
        (lambda r: changed(r, 0, 7, 40.0), "warnings", "record 'r0' of train, person 1: expression reaches 40"),
        (lambda r: dataclasses.replace(r, speech_mask=~r.speech_mask), "warnings", "dB where the speech mask is set"),
        (lambda r: dataclasses.replace(r, audio=r.audio[:, : -5 * 640]), "warnings", "audio and motion differ by -5.0"),
        (
            lambda r: dataclasses.replace(r, motion=np.ones_like(r.motion)),
            "warnings",
            "person 1: the motion never moves",
        ),
        (lambda r: dataclasses.replace(r, name="r3"), "warnings", "record 'r3' is in train and in test"),
    ],
)
def test_odd_records_are_named(check, records, change, kind, message):
    report = check([("train", change(records[0][1])), *records[1:]])
    assert any(message in text for text in report[kind]["first"])
    assert report["problems"]["count"] == (kind == "problems")


def test_people_without_motion_and_missing_channels_are_left_out(check, records):
    heard = records[0][1]
    motion, observed = heard.motion.copy(), np.ones((2, 108), bool)
    motion[0], observed[0] = 0, False
    motion[1, :, 50:100], observed[1, 50:100] = 0, False
    report = check([("train", dataclasses.replace(heard, motion=motion, observed=observed))])
    assert report["problems"]["count"] == report["warnings"]["count"] == 0
    assert report["channels"]["expression_99"] == {"min": None, "max": None, "mean": None, "std": None}
    assert sum(report["histograms"]["expression"]["counts"]) == 50 * heard.num_frames
    assert report["alignment"]["people_with_a_clear_offset"] == 1


def test_the_command_writes_a_readable_report(tmp_path, records, capsys):
    write_store(tmp_path / "store", records)
    assert run_unils("data", "verify", tmp_path / "store", "--out", tmp_path / "a.json") == 0
    assert "sound, 0.02 hours, the jaw " in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["problems"]["count"] == 0
    assert "**0 problems, 0 warnings.**" in (tmp_path / "a.md").read_text()
    page = (tmp_path / "a.html").read_text()
    pictures = re.findall(r"base64,([^\"]+)", page)
    assert len(pictures) == 2 and all(b"<svg" in base64.b64decode(picture) for picture in pictures)


def test_the_command_ends_with_status_2_where_there_is_a_problem(tmp_path, records, capsys):
    write_store(tmp_path / "store", records)
    flip_a_byte(tmp_path / "store")
    assert run_unils("data", "verify", tmp_path / "store") == 2
    captured = capsys.readouterr()
    assert "train.array_record-00000 is not the file that was written" in captured.err and not captured.out
    assert json.loads((tmp_path / "store" / "verify.json").read_text())["problems"]["count"] >= 1
    assert run_unils("data", "verify", tmp_path / "nothing") == 2
    assert "is no store" in capsys.readouterr().err


def test_statistics_of_several_stores_are_those_of_all_their_frames(tmp_path, records, capsys):
    write_store(tmp_path / "a", records[:1])
    write_store(tmp_path / "b", records[1:])
    flags = [tmp_path / "a", tmp_path / "b", "--out", tmp_path / "stats.json"]
    assert run_unils("data", "stats", *flags) == 0
    assert capsys.readouterr().out.startswith("2 stores, 0.02 person-hours of train")
    got = json.loads((tmp_path / "stats.json").read_text())
    frames = [center_head(r.motion).astype(np.float64).reshape(-1, 108) for split, r in records if split == "train"]
    np.testing.assert_allclose(got["mean"], np.concatenate(frames).mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(got["std"], np.concatenate(frames).std(axis=0), atol=1e-9)
    assert got["count"] == [801 * 2] * 108
    assert run_unils("data", "stats", tmp_path / "a") == 0
    assert capsys.readouterr().out.startswith("1 store, ")
    write_store(tmp_path / "c", [("train", dataclasses.replace(records[0][1], expression_basis="standin"))])
    assert run_unils("data", "stats", tmp_path / "a", tmp_path / "c") == 2
    assert "different expression bases, flame and standin" in capsys.readouterr().err
    assert Store(tmp_path / "c").expression_basis == "standin"
