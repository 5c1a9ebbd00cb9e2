import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipelines.resampling import at_our_rate, check_rate, rate_of_times, resample
from unils_jax.errors import UserError
from unils_jax.motion import EYES, HEAD, JAW


def moving(seconds: float, fps: float) -> np.ndarray:
    """Two people whose channels are known at every time: linear ones, and a steady turn about a slanting axis."""
    times = np.arange(round(seconds * fps)) / fps
    motion = np.zeros((2, len(times), 108))
    motion[..., 0], motion[..., JAW] = times, 0.1 * times[:, None]
    motion[1, :, HEAD] = 0.9 * times[:, None] * np.array([0.6, 0.0, -0.8])
    motion[..., EYES] = times[:, None] * np.array([0.1, 0.2, -0.1, 0.2])
    return motion.astype(np.float32)


@pytest.mark.parametrize("fps", [24.0, 30000 / 1001, 30.0, 48.0, 50.0, 60000 / 1001, 60.0, 12.5])
def test_motion_keeps_its_speed_and_its_seconds(fps):
    found, expected = resample(moving(4.0, fps), fps), moving(4.0, 25.0)
    assert found.dtype == np.float32 and found.shape == expected.shape
    inside = np.arange(found.shape[1]) / 25 <= (round(4 * fps) - 1) / fps
    np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=2e-6)
    assert np.array_equal(found[:, ~inside], np.repeat(moving(4.0, fps)[:, -1:], (~inside).sum(), 1)), "held"


def test_frames_whose_time_is_that_of_another_are_the_same_bit_for_bit():
    motion = np.random.default_rng(0).standard_normal((2, 90, 108)).astype(np.float32)
    assert np.array_equal(resample(motion, 50.0), motion[:, ::2])
    assert np.array_equal(resample(motion, 75.0), motion[:, ::3])
    assert np.array_equal(resample(motion, 30.0)[:, ::5], motion[:, ::6])
    assert np.array_equal(resample(motion, 25.0), motion)


def test_rotations_go_the_shortest_way_and_keep_on_counting_beyond_half_a_turn():
    motion = np.zeros((1, 2, 108), np.float32)
    motion[0, :, HEAD] = [[0.9, 0.0, 0.0], [0.0, 1.1, 0.3]]
    between = resample(motion, 12.5)[0, 1, HEAD]
    first, last = (Rotation.from_rotvec(v) for v in motion[0, :, HEAD])
    to_middle = (first.inv() * Rotation.from_rotvec(between)).as_rotvec()
    np.testing.assert_allclose(to_middle, (first.inv() * last).as_rotvec() / 2, atol=1e-6)
    motion[0, :, HEAD] = [[3.1, 0.0, 0.0], [3.3, 0.0, 0.0]]
    np.testing.assert_allclose(resample(motion, 12.5)[0, 1, HEAD], [3.2, 0.0, 0.0], atol=1e-6)
    motion[0, :, HEAD] = [[0.0, -3.1, 0.0], [0.0, 3.1, 0.0]]  # across the back, not through the face
    assert abs(resample(motion, 12.5)[0, 1, HEAD][1]) == pytest.approx(np.pi, abs=1e-6)


def test_one_frame_stays_one_and_a_change_is_told(caplog):
    assert resample(np.ones((1, 1, 108), np.float32), 60.0).shape == (1, 1, 108)
    motion = moving(1.0, 25.0)
    assert at_our_rate(motion, 25.0, "m.npz") is motion and not caplog.records
    assert at_our_rate(moving(1.0, 60.0), 60.0, "m.npz").shape[1] == 25
    assert "m.npz has 60 frames a second and is resampled to 25: 60 frames become 25" in caplog.text


@pytest.mark.parametrize("decimals", [2, 3, 4, 9])
@pytest.mark.parametrize("fps", [24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0])
def test_the_rate_of_times_is_found_as_they_are_rounded(fps, decimals):
    assert rate_of_times(np.round(7 + np.arange(900) / fps, decimals), "t") == fps


def test_few_times_are_ours_and_strange_rates_are_taken_as_they_are():
    assert rate_of_times(np.array([3.0]), "t") == rate_of_times(np.array([0.0, 0.04]), "t") == 25.0
    assert rate_of_times(np.arange(100) / 37.5, "t") == 37.5
    assert rate_of_times(np.arange(500, dtype=np.float32).astype(np.float64) / 25, "t") == 25.0


@pytest.mark.parametrize(
    ("times", "message"),
    [([0, 0.04, 0.04, 0.12], "must grow"), ([0, 0.04, np.nan], "must grow"), ([*range(50), *range(90, 140)], "evenly")],
)
def test_times_that_are_no_steady_rate_are_refused(times, message):
    with pytest.raises(UserError, match=message) as error:
        rate_of_times(np.array(times, float), "m.csv: time_s")
    assert str(error.value).startswith("m.csv: time_s")


@pytest.mark.parametrize("fps", [0.0, -25.0, float("nan"), float("inf"), 0.04, 44100.0])
def test_what_is_no_frame_rate_is_refused(fps):
    with pytest.raises(UserError, match="m.npz: fps must be 1 to 1000 frames a second"):
        check_rate(fps, "m.npz: fps")
