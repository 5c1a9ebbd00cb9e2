"""Finished motion: borders mended, smoothed, limited; once, the same in every export, and in streams."""

import csv
import json
import re
import zlib
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import run_unils

from unils_jax.errors import UserError
from unils_jax.inference.finishing import (
    CEILING,
    KNEE,
    LIDS,
    Finisher,
    finish,
    finish_file,
    limit,
    limits_of,
    mend_borders,
)
from unils_jax.motion import (
    BASES,
    EYES,
    GROUPS,
    HEAD,
    JAW,
    STANDIN_SHAPES,
    MotionFile,
    channel_names,
    load_motion,
    save_motion,
    smooth,
)

NAMES, FULL = list(STANDIN_SHAPES), np.array(list(STANDIN_SHAPES.values()))


def wandering(people: int, frames: int, seed: int = 0) -> np.ndarray:
    """Motion that moves a little from frame to frame, well within every range."""
    rng = np.random.default_rng(seed)
    slow = rng.normal(0, 1, (people, frames // 10 + 3, 108))
    places = np.arange(frames) / 10 + 0.45  # no border where a slope changes
    before, rest = places.astype(int), (places % 1)[:, None]
    return (0.01 * (slow[:, before] * (1 - rest) + slow[:, before + 1] * rest) + 0.05).astype(np.float32)


def jumping(people: int, frames: int, seed: int = 0) -> np.ndarray:
    """The same with a jump at the beginning of every window."""
    rng = np.random.default_rng(seed + 1)
    jumps = rng.choice([-0.06, 0.06], (people, frames // 100 + 1, 108))
    return wandering(people, frames, seed) + np.repeat(jumps, 100, axis=1)[:, :frames].astype(np.float32)


def steps(motion: np.ndarray, group: str) -> np.ndarray:
    return np.linalg.norm(np.diff(motion[..., GROUPS[group]].astype(np.float64), axis=-2), axis=-1)


@pytest.mark.parametrize("causal", [False, True])
def test_a_step_at_a_border_fades_into_the_frames_around_it(causal):
    motion = jumping(2, 430)
    mended = mend_borders(motion, causal=causal)
    for group in GROUPS:
        before, after, usual = steps(motion, group), steps(mended, group), steps(wandering(2, 430), group)
        borders = [99, 199, 299, 399]
        assert before[:, borders].mean() > 3 * after[:, borders].mean()
        assert after.max() < 0.75 * before[:, borders].max() + usual.max()
    changed = np.flatnonzero(np.abs(mended - motion).max(axis=(0, 2)) > 0)
    first = 0 if causal else -10
    assert set(changed) <= {border + k for border in (100, 200, 300, 400) for k in range(first, 10)}


def test_what_moves_without_jumps_is_hardly_touched():
    motion = wandering(2, 400)
    assert np.abs(mend_borders(motion) - motion).mean() < 0.01 * np.abs(np.diff(motion, axis=1)).mean()


def test_mending_and_smoothing_have_no_direction_in_time():
    motion = jumping(1, 400)
    forwards, backwards = finish(motion, "standin").motion, finish(motion[:, ::-1], "standin").motion
    np.testing.assert_allclose(backwards[:, ::-1], forwards, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 8, 99, 100, 101, 102, 105, 230])
def test_any_length_is_finished_and_has_its_frames(frames):
    for causal in (False, True):
        finished = finish(jumping(2, frames), "flame", causal=causal).motion
        assert finished.shape == (2, frames, 108) and np.isfinite(finished).all() and finished.dtype == np.float32


@pytest.mark.parametrize("frames", [3, 30, 100, 101, 103, 230, 400])
def test_a_stream_in_windows_is_the_causal_whole(frames):
    motion, finisher = 3 * jumping(2, frames), Finisher(2, "standin")
    parts = [finisher.feed(motion[:, start : start + 100]) for start in range(0, frames, 100)]
    assert sum(part.shape[1] for part in parts) == (frames - 4 if frames >= 9 else 0)
    parts.append(finisher.flush())
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), finish(motion, "standin", causal=True).motion)
    assert finisher.flush().shape[1] == 0


@pytest.mark.parametrize("window_frames", [5, 10, 25])
def test_shorter_windows_are_mended_at_their_own_borders(window_frames):
    motion = 3 * jumping(2, 64)
    finisher = Finisher(2, "standin", window_frames)
    parts = [finisher.feed(motion[:, start : start + window_frames]) for start in range(0, 64, window_frames)]
    whole = finish(motion, "standin", causal=True, window_frames=window_frames).motion
    np.testing.assert_array_equal(np.concatenate([*parts, finisher.flush()], axis=1), whole)
    stepped = wandering(2, 64)
    stepped[:, window_frames:] += 1.0
    for causal in (False, True):
        mended = mend_borders(stepped, causal=causal, window_frames=window_frames)
        step = np.abs(np.diff(mended, axis=1)).mean((0, 2))[window_frames - 1]
        assert step < 0.5


def test_a_motion_file_says_where_its_borders_are():
    motion = wandering(1, 64)
    motion[:, 10:] += 0.3
    file = MotionFile(motion, "standin", {"window_frames": 10})
    expected = finish(motion, "standin", window_frames=10).motion
    np.testing.assert_array_equal(finish_file(file, "x")[0].motion, expected)
    assert not np.array_equal(finish_file(replace(file, source={}), "x")[0].motion, expected)


@pytest.mark.parametrize("basis", BASES)
def test_values_within_their_range_stay_and_no_value_is_far_beyond(basis):
    low, high = limits_of(basis)
    ends = np.where(np.isfinite(low), low, -9.0), np.where(np.isfinite(high), high, 9.0)
    parts = np.linspace(0, 1, 50)[:, None]
    inside = (KNEE * (ends[0] * (1 - parts) + ends[1] * parts)).astype(np.float32)
    np.testing.assert_allclose(limit(inside, basis), inside, rtol=1e-6)
    far = np.stack([1e6 * ends[0], 3 * ends[1], 1e6 * ends[1]]).astype(np.float32)
    bounded = np.isfinite(low)
    assert (limit(far, basis) <= np.float32(1.0001 * CEILING) * ends[1])[:, bounded].all()
    assert (limit(far, basis) >= np.float32(1.0001 * CEILING) * ends[0])[:, bounded].all()
    np.testing.assert_array_equal(limit(far, basis)[:, ~bounded], far[:, ~bounded])
    assert bounded[JAW].all() and bounded[HEAD].all() and bounded[EYES].all()


def test_the_limit_rises_everywhere_and_has_no_corner():
    values = np.zeros((4001, 108), np.float64)
    values[:, NAMES.index("smile_left")] = np.linspace(-5, 5, 4001)
    slope = np.diff(limit(values, "standin")[:, NAMES.index("smile_left")]) / 0.0025
    assert slope.min() >= 0 and slope.max() < 1.001 and np.abs(np.diff(slope)).max() < 0.03
    full = limit(np.array([[2.5] + 107 * [0.0]]), "standin")[0, 0]
    assert full == pytest.approx(2.5, rel=0.01), "a shape fully expressed still is"


def test_the_share_that_was_limited_is_counted_and_said_in_one_line():
    motion = np.zeros((2, 100, 108), np.float32)
    motion[0, 30:55, NAMES.index("lip_press")] = 2.0 * 1.5
    motion[1, 90:, JAW] = 1.0
    motion[1, 90:, NAMES.index("sneer")] = 1.2 * 1.5
    assert finish(motion[:, :8], "standin").limits() == ""
    # Eight frames are too few to be smoothed: what is limited is what was there.
    finished = finish(motion[:, 48:56], "standin")
    assert finished.limited_frames == pytest.approx(7 / 16) and finished.limited_channels == ("lip_press",)
    num_ranges = 24 + 8
    assert finished.limited_values == pytest.approx(7 / (16 * num_ranges))
    assert finished.limits().startswith("limited to what a face can do in 43.8% of the frames, 1.37% of the values")


def test_a_file_is_finished_once_and_raw_is_as_it_was():
    motion = wandering(1, 150)
    once, line = finish_file(MotionFile(motion, "standin", {}), "m.npz")
    assert once.finished and not line and finish_file(once, "m.npz")[0] is once
    np.testing.assert_array_equal(once.motion, finish(motion, "standin").motion)
    raw = MotionFile(motion, "standin", {})
    assert finish_file(raw, "m.npz", raw=True)[0] is raw
    same, line = finish_file(once, "m.npz", raw=True)
    assert same is once and line.startswith("m.npz holds finished motion")
    far = MotionFile(9 * motion + 9, "standin", {})
    assert finish_file(far, "m.npz")[1].startswith("m.npz: limited to what a face can do in")


def test_a_motion_file_says_whether_it_is_finished(tmp_path):
    motion = wandering(1, 20)
    for finished in (False, True):
        save_motion(tmp_path / "m.npz", motion, expression_basis="flame", source={}, finished=finished)
        assert load_motion(tmp_path / "m.npz").finished is finished


@pytest.mark.parametrize(("shape", "basis", "problem"), [((2, 10, 56), "flame", "108"), ((2, 10, 108), "x", "basis")])
def test_what_is_no_motion_is_refused(shape, basis, problem):
    with pytest.raises(UserError, match=problem):
        finish(np.zeros(shape, np.float32), basis)


@pytest.fixture(scope="module")
def grotesque(tmp_path_factory):
    """A decoded file as bad as they come: shapes at three times full, noise, jumps at the borders."""
    rng = np.random.default_rng(3)
    motion = jumping(2, 230)
    motion[..., :24] += (FULL * rng.normal(0, 1, (2, 230, 24))).astype(np.float32)
    motion[..., JAW] += rng.normal(0, 0.4, (2, 230, 1)).astype(np.float32)
    folder = tmp_path_factory.mktemp("grotesque")
    save_motion(folder / "m.npz", motion, expression_basis="standin", source={"seed": 1})
    return folder / "m.npz"


def page_motion(path) -> np.ndarray:
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', path.read_text(encoding="utf-8")).group(1))["motion"]
    planes = np.frombuffer(zlib.decompress(b64decode(data["data"])), np.uint8).reshape(2, -1)
    levels = np.ascontiguousarray(planes.T).view("<i2").reshape(data["shape"])
    return np.cumsum(levels, axis=1, dtype=np.int16).astype(np.float64) * data["step"]


def glb_weights(path, people: int) -> np.ndarray:
    content = path.read_bytes()
    length = int.from_bytes(content[12:16], "little")
    document, binary = json.loads(content[20 : 20 + length]), content[28 + length :]
    found = []
    for channel in document["animations"][0]["channels"]:
        if channel["target"]["path"] == "weights":
            accessor = document["accessors"][document["animations"][0]["samplers"][channel["sampler"]]["output"]]
            view = document["bufferViews"][accessor["bufferView"]]
            found.append(np.frombuffer(binary, "<f4", accessor["count"], view["byteOffset"]))
    return np.stack(found).reshape(people, -1, len(found[0]) // 230)


def test_all_exports_agree_and_none_has_a_shape_beyond_its_own(grotesque, tmp_path, caplog):
    expected = finish(load_motion(grotesque).motion, "standin").motion
    assert (expected[..., :24] / FULL).max() <= 1.05 < (load_motion(grotesque).motion[..., :24] / FULL).max()
    for name in ("m.npz", "m.csv", "m.glb"):
        assert run_unils("convert-motion", grotesque, "--out", tmp_path / name) == 0
        assert run_unils("convert-motion", tmp_path / "m.npz", "--out", tmp_path / f"again_{name}") == 0
    for path in (tmp_path / "m.npz", tmp_path / "again_m.npz"):
        assert load_motion(path).finished
        np.testing.assert_array_equal(load_motion(path).motion, expected)
    for name in ("m.csv", "again_m.csv"):
        with open(tmp_path / name, newline="") as table:
            rows = [[row[channel] for channel in channel_names("standin")] for row in csv.DictReader(table)]
        np.testing.assert_allclose(np.array(rows, np.float32).reshape(2, 230, 108), expected, atol=1e-6)
    for name in ("m.glb", "again_m.glb"):
        weights = glb_weights(tmp_path / name, 2)
        np.testing.assert_allclose(weights[..., :24], expected[..., :24] / FULL, atol=1e-5)
    assert run_unils("convert-motion", grotesque, "--out", tmp_path / "a.csv", "--layout", "arkit") == 0
    with open(tmp_path / "a_person1.csv", newline="") as table:
        opened = [float(row["JawOpen"]) for row in csv.DictReader(table)]
    np.testing.assert_allclose(opened, np.clip(expected[0, :, JAW][:, 0] / 0.35, 0, 1), atol=1e-6)
    assert caplog.text.count("limited to what a face can do in") == 4, "once for each file that was not finished"


def test_raw_is_what_was_decoded(grotesque, tmp_path):
    assert run_unils("convert-motion", grotesque, "--raw", "--out", tmp_path / "raw.npz") == 0
    raw = load_motion(tmp_path / "raw.npz")
    assert not raw.finished
    np.testing.assert_array_equal(raw.motion, load_motion(grotesque).motion)


def test_the_page_is_finished_or_raw(grotesque, tmp_path, monkeypatch):
    monkeypatch.setattr("unils_jax.outputs.page.page_script", lambda: ("", "licence"))
    monkeypatch.setattr("unils_jax.cli.motion.page_script", lambda: ("", "licence"))
    motion = load_motion(grotesque).motion
    for flags, expected in (((), finish(motion, "standin").motion), (("--raw",), motion)):
        assert run_unils("view", grotesque, *flags, "--out", tmp_path / "p.html") == 0
        shown = page_motion(tmp_path / "p.html")
        np.testing.assert_allclose(shown[..., :24], expected[..., :24], atol=1e-3)
        np.testing.assert_allclose(shown[..., 24:], expected[..., 100:], atol=1e-3)
        assert ('"smoothing":null' in (tmp_path / "p.html").read_text(encoding="utf-8")) is (not flags)


@pytest.mark.parametrize("raw", [False, True])
def test_the_video_is_finished_or_raw(grotesque, tmp_path, monkeypatch, raw):
    from unils_jax.outputs import rendering

    drawn, summary = [], rendering.RenderSummary(0, 0.0, 0.0, "", "")
    monkeypatch.setattr(
        rendering, "render_video", lambda path, motion, *given, **named: drawn.append(motion) or summary
    )
    motion = load_motion(grotesque).motion
    for given in (grotesque, motion):
        rendering.render(tmp_path / "v.mp4", given, expression_basis="standin", raw=raw)
        np.testing.assert_array_equal(drawn[-1], motion if raw else finish(motion, "standin").motion)


def test_a_blink_stays_shut_and_a_head_is_smoothed_as_ever():
    motion = wandering(1, 90)
    finished = finish(motion, "standin").motion
    np.testing.assert_array_equal(finished[..., HEAD], smooth(motion)[..., HEAD])
    lid = NAMES.index("blink_left")
    motion[0, 40:46, lid] = [1.6, 3.8, 4.0, 2.8, 1.5, 0.5]
    assert finish(motion, "standin").motion[0, :, lid].max() > 0.9 * 4.0 > 1.05 * smooth(motion)[0, :, lid].max()


def test_smoothing_takes_noise_down_everywhere():
    noise = np.random.default_rng(0).normal(0, 0.01, (1, 400, 108)).astype(np.float32)
    smoothed = finish(noise, "standin").motion
    for channels in GROUPS.values():
        assert smoothed[..., channels].std() < 0.8 * noise[..., channels].std()


def test_lips_that_close_for_three_frames_stay_closed():
    motion, press = np.zeros((200, 108), np.float32), NAMES.index("lip_press")
    motion[50:53, press] = np.array([0.35, 0.5, 0.35], np.float32) * STANDIN_SHAPES["lip_press"]
    # Over nine frames 0.86 of it would be left.
    assert finish(motion, "standin").motion[51, press] > 0.95 * motion[51, press]


def test_a_blink_stays_as_deep_as_it_was_decoded():
    motion = np.zeros((200, 108), np.float32)
    motion[50:53, LIDS] = np.array([0.7, 1.0, 0.7], np.float32)[:, None] * STANDIN_SHAPES["blink_left"]
    finished = finish(motion, "standin").motion
    np.testing.assert_allclose(finished[:, LIDS], motion[:, LIDS], atol=0.02 * STANDIN_SHAPES["blink_left"])
    smoothed = finish(motion, "").motion  # of a basis without limits and without lids
    assert np.abs(smoothed - motion)[:, LIDS].max() > 0.1 * STANDIN_SHAPES["blink_left"]
