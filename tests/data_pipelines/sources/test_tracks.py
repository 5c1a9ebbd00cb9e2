"""Files of face trackers: every layout, form, kind of rotation, rate and fault gives the truth or its reason."""

import json
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import tracked
from foreign_data import write_wav
from scipy.spatial.transform import Rotation
from tracked import TRACKERS, deca, rotvec, truth, write_clip, write_pictures

from data_pipelines.conversion.convert import convert, make_plan
from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.tracks import TrackOptions, TracksSource
from data_pipelines.tracks.mapping import parse_keys, parse_rotations
from unils_jax.errors import UserError
from unils_jax.motion import HEAD, JAW

SECONDS = 4.8


def options(layout="auto", keys="", rotations="", **others):
    return TrackOptions(layout, parse_keys(keys), parse_rotations(rotations), **others)


def read_all(folder, opts=None, **flags):
    source = TracksSource(folder, "train", options=opts or options(**flags))
    with source.open() as read:
        return [read(entry) for entry in source.entries()]


def read_one(folder, **flags):
    (reading,) = read_all(folder, **flags)
    return reading


def assert_is(record, motion, channels=range(108), person=0):
    observed = np.zeros(108, bool)
    observed[list(channels)] = True
    np.testing.assert_allclose(record.motion[person][:, observed], motion[:, observed], atol=1e-5)
    assert not record.motion[person][:, ~observed].any()
    assert (record.observed is None) == observed.all()
    if record.observed is not None:
        np.testing.assert_array_equal(record.observed[person], observed)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_tracker_gives_the_motion_that_its_file_was_made_from(tmp_path, tracker):
    make, channels = TRACKERS[tracker]
    form = {"mica": "frame frames", "general": "pkl", "flame": "pkl"}.get(tracker, "npz")
    write_clip(tmp_path, "a", make(truth(SECONDS, 25)), form)
    source = TracksSource(tmp_path)
    assert source.mapping.layout == tracker and not source.mapping.problems
    assert_is(read_one(tmp_path).record, truth(SECONDS, 25), channels)


@pytest.mark.parametrize("form", ["json", "pt", "json frames", "arrays", "npz frames", "arrays frames"])
def test_a_clip_may_be_a_file_or_a_folder_of_frames_or_of_arrays(tmp_path, form):
    write_clip(tmp_path, "a", deca(truth(SECONDS, 25)), form)
    assert_is(read_one(tmp_path).record, truth(SECONDS, 25), TRACKERS["deca"][1])


def kinds_of(vectors):
    """One rotation in every kind that is read, and the flag that names what widths do not say."""
    turned = Rotation.from_rotvec(vectors)
    wxyz = np.roll(turned.as_quat(), 1, axis=1)
    columns = turned.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    return {
        "axis-angle": (vectors, ""),
        "degrees": (np.rad2deg(vectors), ""),
        "euler-degrees": (turned.as_euler("xyz", degrees=True), "euler-degrees"),
        "quaternion-xyzw": (turned.as_quat(), ""),
        "quaternion-wxyz": (-wxyz, ""),
        "6d": (tracked.six(vectors), ""),
        "6d-columns": (columns, "6d-columns"),
        "matrix": (turned.as_matrix(), ""),
        "nine": (turned.as_matrix().reshape(-1, 9), ""),
    }


@pytest.mark.parametrize("kind", kinds_of(np.ones((1, 3))))
def test_rotations_of_every_kind_are_read(tmp_path, kind):
    motion = truth(SECONDS, 25)
    values, flag = kinds_of(rotvec(motion, "head"))[kind]
    jaw, _ = kinds_of(rotvec(motion, "jaw"))[kind]
    write_clip(tmp_path, "a", {"exp": motion[:, :50], "head": values, "jaw": jaw})
    assert_is(read_one(tmp_path, rotations=flag).record, motion, TRACKERS["deca"][1])


def test_flags_name_arrays_and_columns_that_have_no_usual_name(tmp_path):
    motion = truth(SECONDS, 25)
    np.save(tmp_path / "a.npy", np.concatenate([motion[:, :100], rotvec(motion, "jaw"), motion[:, HEAD]], axis=1))
    with pytest.raises(UserError, match="no array has a name of the face; name them, like --keys"):
        read_one(tmp_path)
    keys = "expression=array[0:100],jaw=array[100:103],head=array[103:106]"
    assert_is(read_one(tmp_path, keys=keys).record, motion, range(104))


def test_two_arrays_of_one_meaning_have_to_be_named(tmp_path):
    motion = truth(SECONDS, 25)
    write_clip(tmp_path, "a", {"exp": motion[:, :50], "expr": motion[:, :50], "head": np.zeros((120, 3))})
    with pytest.raises(UserError, match="exp and expr may each be the expression; name one, like --keys"):
        read_one(tmp_path)
    assert_is(
        read_one(tmp_path, keys="expression=exp").record, motion * (np.arange(108) < 50), [*range(50), *range(100, 103)]
    )


def test_a_head_near_half_a_turn_does_not_jump(tmp_path):
    angles = np.linspace(3.0, 3.3, 150)[:, None] * [0.0, 1.0, 0.0]
    quaternions = Rotation.from_rotvec(angles).as_quat()
    write_clip(tmp_path, "a", {"exp": np.ones((150, 50)), "head": quaternions, "fps": np.array(30.0)})
    head = read_one(tmp_path).record.motion[0][:, HEAD]
    np.testing.assert_allclose(head[:, 1], np.interp(np.arange(125) / 25, np.arange(150) / 30, angles[:, 1]), atol=1e-5)


RATES = [24, 24000 / 1001, 29.97, 30, 50, 59.94, 60]


@pytest.mark.parametrize("fps", RATES)
def test_any_rate_is_the_same_function_of_time_at_25(tmp_path, fps):
    exact = {29.97: 30000 / 1001, 59.94: 60000 / 1001}.get(fps, fps)
    motion = truth(6, exact)
    write_clip(tmp_path, "a", {**deca(motion), "fps": np.array(fps)})
    record = read_one(tmp_path).record
    assert abs(record.num_frames - 150) <= 1
    inside = slice(0, 145)
    # Linear interpolation between frames loses (2 pi 1.5 / fps) ** 2 / 8 of a wave.
    np.testing.assert_allclose(record.motion[0][inside, :50], truth(6, 25)[inside, :50], atol=0.6 * 11.2 / exact**2)
    np.testing.assert_allclose(record.motion[0][inside, JAW], truth(6, 25)[inside, JAW], atol=0.15 * 11.2 / exact**2)


def test_frames_at_times_of_their_own_are_placed_by_them(tmp_path):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.05, 400))
    times -= times[0]
    ramp = np.repeat(times[:, None], 50, axis=1)
    write_clip(tmp_path, "a", {"exp": ramp, "times": times})
    record = read_one(tmp_path).record
    expected = np.clip(np.arange(record.num_frames) / 25, times[0], times[-1])
    np.testing.assert_allclose(record.motion[0][:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("fps", [30.0, 30000 / 1001])
def test_a_click_and_a_jaw_opening_stay_together_for_ten_minutes(tmp_path, fps):
    """The jaw opens within one frame at the click; the same sample of the sound has to be there."""
    clicks = np.array([1.0, 60.0, 299.0, 598.0])
    audio = np.zeros(600 * 16000, np.int16)
    audio[(clicks * 16000).astype(int)] = 32767
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="PCM_16")
    times = np.arange(round(600 * fps)) / fps
    # A ramp of 0.2 s from each click on, that rises by 1 rad a second.
    jaw = sum(np.clip(times - click, 0, 0.2) for click in clicks)
    exp = np.zeros((len(times), 50), np.float32)
    np.savez(tmp_path / "a.npz", exp=exp, jaw=jaw, fps=np.float64(round(fps, 2)))
    record = read_one(tmp_path).record
    found = np.flatnonzero(record.audio[0] > 0.5) / 16000
    np.testing.assert_allclose(found, clicks, atol=1e-3)
    opened = record.motion[0][:, JAW][:, 0]
    for i, click in enumerate(clicks):
        middle = np.interp(0.2 * i + 0.1, opened, np.arange(len(opened)) / 25) - 0.1
        assert abs(middle - click) < 0.001


def test_the_pictures_of_a_video_say_when_its_frames_are(tmp_path):
    """A file that says 30 is of a video of 29.97 with two pictures that a camera left out."""
    rate, kept = Fraction(30000, 1001), [i for i in range(300) if i not in (100, 101)]
    write_pictures(tmp_path / "a.mp4", 300, rate, drop=(100, 101))
    times = np.array(kept) / float(rate)
    write_clip(tmp_path, "a", {"exp": np.repeat(times[:, None], 50, 1), "fps": np.array(30.0)})
    reading = read_one(tmp_path)
    expected = np.minimum(np.arange(reading.record.num_frames) / 25, times[-1])
    np.testing.assert_allclose(reading.record.motion[0][:, 0], expected, atol=1e-3)
    assert "it says 30 frames a second, its video has 29." in str(reading.notices)


def with_gap(motion, first, last):
    arrays = deca(motion)
    arrays["exp"] = arrays["exp"].copy()
    arrays["exp"][first:last] = np.nan
    return arrays


def test_short_gaps_are_interpolated_and_long_ones_are_cut_out(tmp_path):
    motion = truth(16, 25)
    arrays = with_gap(motion, 50, 54)
    arrays["exp"][200:230] = np.nan
    arrays["valid"] = np.ones(400)
    arrays["valid"][395:] = 0
    write_clip(tmp_path, "a", arrays)
    write_wav(tmp_path / "a.wav", np.arange(400 * 640, dtype=np.float32) / (400 * 640))
    reading = read_one(tmp_path)
    first, second = reading.records
    assert (first.name, second.name) == ("a_from0", "a_from230")
    assert (first.num_frames, second.num_frames, reading.frames_in) == (200, 165, 400)
    assert [(span.reason, span.frames) for span in reading.lost] == [("lost tracking", 30), ("lost tracking", 5)]
    assert "4 frames without a face are interpolated (up to 4 in a row, from 50)" in str(reading.notices)
    np.testing.assert_allclose(first.motion[0][52, :50], (motion[49] + 0.6 * (motion[54] - motion[49]))[:50], atol=1e-5)
    np.testing.assert_allclose(second.motion[0][:, :50], motion[230:395, :50], atol=1e-5)
    np.testing.assert_allclose(second.audio[0][0], 230 / 400, atol=1e-6)
    assert len(read_one(tmp_path, max_gap_s=2.0).records) == 1


def test_missing_files_of_frames_are_gaps(tmp_path):
    write_clip(tmp_path, "a", deca(truth(SECONDS, 25)), "npz frames")
    for number in (1, 2, 11, 12):
        (tmp_path / "a" / f"{number:05d}.npz").unlink()
    reading = read_one(tmp_path)
    assert reading.record.num_frames == 118 and "2 frames without a face" in str(reading.notices)
    assert [(span.reason, span.frames) for span in reading.lost] == [("lost tracking", 2)] and reading.frames_in == 120


def stereo(frames, seed=0):
    return (np.random.default_rng(seed).standard_normal((frames * 640, 2)) * 0.1).astype(np.float32)


def two_people(folder, frames=120):
    motions = [truth(frames / 25, 25, seed) for seed in (1, 2)]
    for k, motion in enumerate(motions, 1):
        write_clip(folder, f"a_speaker{k}", deca(motion))
    return motions


@pytest.mark.parametrize("how", ["files", "channels", "turns"])
def test_two_people_have_their_own_files_channels_or_turns(tmp_path, how):
    motions, sound = two_people(tmp_path), stereo(120)
    if how == "files":
        for k in (1, 2):
            write_wav(tmp_path / f"a_speaker{k}.wav", sound[:, k - 1])
    elif how == "channels":
        write_wav(tmp_path / "a.wav", sound)
    else:
        write_wav(tmp_path / "a.wav", sound[:, 0])
        turns = "SPEAKER a 1 0.00 2.00 <NA> <NA> spk_1 <NA> <NA>\nSPEAKER a 1 2.40 1.60 <NA> <NA> spk_2 <NA> <NA>\n"
        (tmp_path / "a.rttm").write_text(turns)
    record = read_one(tmp_path).record
    for person, motion in enumerate(motions):
        assert_is(record, motion, TRACKERS["deca"][1], person)
    if how != "turns":
        np.testing.assert_allclose(record.audio, sound.T, atol=1e-6)
        return
    np.testing.assert_allclose(record.audio[0, 100:31900], sound[100:31900, 0], atol=1e-6)
    assert not record.audio[0, 32100:].any() and not record.audio[1, :38300].any()
    np.testing.assert_array_equal(record.speech_mask[0], np.arange(120) < 50)
    np.testing.assert_array_equal(np.flatnonzero(record.speech_mask[1])[[0, -1]], [60, 99])


def test_a_frame_rate_that_the_sound_contradicts_is_refused_with_the_one_that_agrees(tmp_path):
    write_clip(tmp_path, "a", {**deca(truth(20, 30)), "fps": np.array(30.0)})
    write_wav(tmp_path / "a.wav", np.zeros(24 * 16000, np.float32))
    with pytest.raises(SkippedEntry, match=r"motion 20.00 s, sound 24.00 s; --fps 25 would make them agree"):
        read_one(tmp_path)
    assert read_one(tmp_path, fps=25.0).record.num_frames == 600


def test_outliers_and_another_face_are_reported(tmp_path):
    motion = truth(SECONDS, 25)
    motion[60, JAW] += 0.9
    arrays = deca(motion)
    arrays["shape"] = np.where(np.arange(120)[:, None] < 80, 0.0, 0.5) * np.ones(100)
    write_clip(tmp_path, "a", arrays)
    said = str(read_one(tmp_path).notices)
    assert "1 frames of the jaw are outliers and kept, the first frame 60" in said
    assert "another person's from frame 80 on" in said


def test_a_switch_of_tracks_is_reported(tmp_path):
    track = np.where(np.arange(120) < 70, 3, 5)
    write_clip(tmp_path, "a", {**deca(truth(SECONDS, 25)), "track_id": track})
    assert "another person's from frame 70 on" in str(read_one(tmp_path).notices)


def write_people(folder):
    for i in range(12):
        write_clip(folder, f"r{i}", deca(truth(SECONDS, 25, i)))
    rows = ["name;person", *(f"r{i};p{i // 3}" for i in range(12))]
    (folder / "people.csv").write_bytes("\r\n".join(rows).encode("utf-16"))  # as a spreadsheet writes it


def test_a_person_is_in_one_split_and_named_in_the_record(tmp_path):
    write_people(tmp_path)
    source = TracksSource(tmp_path, shares=(0.5, 0.25, 0.25))
    splits = [{entry.split for entry in source.entries() if int(entry.name[1:]) // 3 == person} for person in range(4)]
    assert all(len(found) == 1 for found in splits) and {"train", "val", "test"} == set.union(*splits)
    with source.open() as read:
        assert read(source.entries()[0]).record.identities == ("p0",)


FAULTS = {
    "short": (lambda f: write_clip(f, "short", deca(truth(2, 25))), "too short"),
    "lost": (lambda f: write_clip(f, "lost", with_gap(truth(SECONDS, 25), 0, 120)), "lost tracking"),
    "broken": (lambda f: (f / "broken.npz").write_bytes(b"PK not at all"), "damaged"),
    "pickle": (lambda f: (f / "pickle.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR."), "forbidden global"),
    "other": (lambda f: write_clip(f, "other", {"landmarks": np.zeros((120, 68))}), "holds none of"),
    "frames": (
        lambda f: write_clip(f, "frames", {**deca(truth(SECONDS, 25)), "pose": np.zeros((119, 6))}),
        "as many frames",
    ),
    "turns": (
        lambda f: write_clip(f, "turns", {**deca(truth(SECONDS, 25)), "pose": np.full((120, 6), 40.0)}),
        "may be degrees",
    ),
    "rate": (lambda f: write_clip(f, "rate", {**deca(truth(SECONDS, 25)), "fps": np.array(0.0)}), "must be one number"),
    "times": (
        lambda f: write_clip(f, "times", {**deca(truth(SECONDS, 25)), "times": np.zeros(120)}),
        "grow from frame",
    ),
    "loud": (
        lambda f: write_clip(f, "loud", {**deca(truth(SECONDS, 25)), "exp": np.full((120, 50), 1e5)}),
        "out of range",
    ),
    "sound": (
        lambda f: (write_clip(f, "sound", deca(truth(SECONDS, 25))), write_wav(f / "sound.wav", np.zeros(16000))),
        "lengths",
    ),
    "noise": (
        lambda f: (write_clip(f, "noise", deca(truth(SECONDS, 25))), (f / "noise.wav").write_bytes(b"RIFF not at all")),
        "damaged",
    ),
    "alone": (lambda f: write_clip(f, "alone_speaker1", deca(truth(SECONDS, 25))), "missing partner"),
    "voice": (lambda f: write_wav(f / "voice.wav", np.zeros(80000)), "no file of a tracker"),
    "twice": (
        lambda f: [write_clip(f, "twice", deca(truth(SECONDS, 25)), form) for form in ("npz", "pkl")],
        "keep one",
    ),
}


def test_every_fault_is_named_and_no_hour_is_lost(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for i in range(3):
        write_clip(folder, f"good{i}", deca(truth(8, 25, i)))
    write_clip(folder, "gap", with_gap(truth(12, 25), 120, 140))
    for make, _ in FAULTS.values():
        make(folder)
    # Flags keep the folder's faults from deciding what the arrays mean.
    source = TracksSource(folder, options=options("deca", rotations="axis-angle"))
    outcome = convert(source, out, make_plan(source))
    report = outcome.report
    dropped = {}
    for item in report["dropped"]:
        dropped[item["name"]] = f"{item['reason']}: {item['detail']}"
    assert set(dropped) == {*FAULTS, "gap"}
    for name, (_, why) in FAULTS.items():
        assert why in dropped[name], (name, dropped[name])
        assert str(tmp_path) not in dropped[name]
    frames = report["frames"]
    assert frames["in"] == frames["out"] + frames["dropped"] + frames["cut_at_ends"] and frames["cut_at_ends"] == 0
    assert report["records"] == 5 and json.loads((out / "conversion.json").read_text())["records"] == 5
