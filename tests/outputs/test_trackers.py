"""Motion under the names that trackers give it; every file is made here."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unils_jax.errors import UserError
from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW
from unils_jax.outputs import layouts
from unils_jax.outputs.trackers import read_tracker

FRAMES = 11


def values(width: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal((FRAMES, width))).astype(np.float32)


@pytest.fixture
def read(tmp_path, caplog):
    """Writes arrays to a file and reads it; returns motion, rate and what was said."""

    def call(flag=None, **arrays):
        np.savez(tmp_path / "t.npz", **arrays)
        caplog.clear()
        motion, rate = read_tracker(tmp_path / "t.npz", flag)
        return motion, rate, caplog.text

    return call


def error_of(read, flag=None, **arrays) -> str:
    with pytest.raises(UserError) as error:
        read(flag, **arrays)
    assert "t.npz" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", ["exp", "expcode", "exp_params", "expression", "expression_params", "expr"])
@pytest.mark.parametrize("width", [10, 50, 53, 100])
def test_expression_has_many_names_and_widths(read, key, width):
    expression = values(width)
    motion, _, said = read(**{key: expression, "pose": np.zeros((FRAMES, 6), np.float32)})
    assert np.array_equal(motion[:, :width], expression) and not motion[:, width:].any()
    assert motion.dtype == np.float32 and "left out" not in said


@pytest.mark.parametrize("key", ["pose", "posecode", "pose_code"])
def test_a_pose_of_six_is_head_and_jaw_and_the_jaws_loss_is_told(read, key):
    pose = values(6, 1)
    motion, _, said = read(exp=values(50), **{key: pose})
    assert np.array_equal(motion[:, HEAD], pose[:, :3]) and np.array_equal(motion[:, JAW], pose[:, 3:4])
    assert f"left out are the jaw's second and third component (up to {np.abs(pose[:, 4:]).max():.3g})" in said
    assert "left out" not in read(exp=values(50), **{key: pose * [1, 1, 1, 1, 0, 0]})[2]


def test_a_pose_of_three_is_the_heads_where_the_jaw_has_its_own_array(read):
    head, jaw, lids = values(3, 1), values(3, 2), values(2, 3)
    motion, _, said = read(expression_params=values(50), pose_params=head, jaw_params=jaw, eyelid_params=lids)
    assert np.array_equal(motion[:, HEAD], head) and np.array_equal(motion[:, JAW], jaw[:, :1])
    assert "eyelid_params [11, 2]" in said and "jaw's second and third" in said and said.count("left out") == 1


def test_parts_by_their_own_names_with_eyes_and_neck(read):
    parts = {"rotation": values(3, 1), "neck_pose": values(3, 2), "jaw_pose": values(3, 3), "eyes_pose": values(6, 4)}
    motion, _, said = read(expr=values(120), translation=values(3), static_offset=np.zeros((1, 7, 3)), **parts)
    assert np.array_equal(motion[:, EXPRESSION], values(120)[:, :100])
    assert np.array_equal(motion[:, HEAD], parts["rotation"])
    assert np.array_equal(motion[:, EYES], parts["eyes_pose"][:, [0, 1, 3, 4]])
    for what in ("expression 100 to 119 (up to", "eyes' third", "neck_pose [11, 3]", "static_offset [1, 7, 3]"):
        assert what in said, what
    short, _, said = read(expr=values(50), global_pose=parts["rotation"], jaw=values(1, 3)[:, 0], eyes=values(4, 5))
    assert np.array_equal(short[:, JAW], values(1, 3)) and np.array_equal(short[:, EYES], values(4, 5))
    assert "left out" not in said


def test_a_full_pose_and_matrices_are_understood(read):
    pose = values(15, 6)
    motion, _, said = read(exp=values(50), full_pose=pose)
    assert np.array_equal(motion[:, [*range(100, 104)]], pose[:, [0, 1, 2, 6]]) and "neck" in said
    matrices = Rotation.from_rotvec(values(3, 1)).as_matrix()
    motion, _, _ = read(exp=values(50), rotation=matrices.astype(np.float32))
    np.testing.assert_allclose(motion[:, HEAD], values(3, 1), atol=1e-6)
    assert np.array_equal(
        read(exp=values(50)[None], pose=values(6)[:, None])[0], read(exp=values(50), pose=values(6))[0]
    )


def test_what_the_file_lacks_is_told(read):
    assert "has no head rotation and no jaw, which is zero" in read(exp=values(50))[2]
    assert "has no jaw, which" in read(exp=values(50), head_pose=values(3))[2]


def test_rates_are_read_by_name_or_from_times_and_the_flag_counts_more(read):
    arrays = {"exp": values(50), "pose": values(6)}
    assert read(**arrays)[1] == 25.0 and "names no frame rate" in read(**arrays)[2]
    for key in ("fps", "frame_rate", "framerate", "video_fps"):
        motion, rate, said = read(**arrays, **{key: np.float64(29.97)})
        assert rate == 29.97 and len(motion) == FRAMES and "frame rate" not in said
    assert read(**arrays, fps=np.array([60]))[1] == 60.0
    assert read(**arrays, timestamps=np.arange(FRAMES) / 24)[1] == 24.0
    _, rate, said = read(50.0, **arrays, frame_rate=30)
    assert rate == 50.0 and "says 30 frames a second; --fps 50 is taken instead" in said


def test_people_of_different_rates_meet_at_ours(tmp_path):
    for name, fps, frames in (("a", 30.0, 60), ("b", 50.0, 101)):
        exp = np.repeat(np.arange(frames, dtype=np.float32)[:, None] / fps, 50, 1)
        np.savez(tmp_path / f"{name}.npz", exp=exp, pose=np.zeros((frames, 6), np.float32), fps=fps)
    motion = layouts.read_dualtalk([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert motion.shape == (2, 50, 108)
    np.testing.assert_allclose(motion[0, :49, :50], motion[1, :49, :50], atol=1e-5)


def test_files_that_are_no_motion_are_refused_in_one_line(read):
    exp, pose = values(50), values(6)
    assert "got scan" in error_of(read, scan=exp)
    assert "exp and expression, which mean the same" in error_of(read, exp=exp, expression=exp, pose=pose)
    assert "pose must be [T, 3 or 6 or 15], got [11, 7]" in error_of(read, exp=exp, pose=values(7))
    assert "expression 11, head rotation 10" in error_of(read, exp=exp, pose=pose[:10])
    assert "exp must be [T, W], got [0, 50]" in error_of(read, exp=exp[:0], pose=pose[:0])
    assert "pose is int64" in error_of(read, exp=exp, pose=pose.astype(np.int64))
    assert "exp is float64" in error_of(read, exp=np.full((4, 50), 1e39), pose=np.zeros((4, 6)))
    assert "degrees" in error_of(read, exp=exp, pose=100 * pose)
    assert "rotation matrices" in error_of(read, exp=exp, rotation=np.zeros((FRAMES, 3, 3)))
    assert "fps must be 1 to 1000" in error_of(read, exp=exp, pose=pose, fps=0.0)
    assert "fps must be one number" in error_of(read, exp=exp, pose=pose, fps=np.array("30"))
    assert "not evenly spaced" in error_of(read, exp=exp, pose=pose, timestamps=np.arange(FRAMES) ** 2.0)
    assert "a second for each of 11" in error_of(read, exp=exp, pose=pose, timestamps=np.arange(3.0))
    assert "pickled objects" in error_of(read, exp=np.array([{}], object), pose=pose)


def test_short_gaps_of_a_tracker_are_interpolated_and_long_ones_refused(read):
    frames = np.arange(60)
    exp, pose = np.repeat(frames[:, None], 50, 1).astype(np.float32), np.zeros((60, 6), np.float32)
    pose[:, 1] = frames / 100
    kept = np.delete(frames, [10, 30, 31, 32, 33, 34])
    motion, rate, said = read(exp=exp[kept], pose=pose[kept], timestamps=kept / 25)
    assert motion.shape == (60, 108) and rate == 25.0
    np.testing.assert_allclose(motion[:, 0], frames, atol=1e-5)
    np.testing.assert_allclose(motion[:, 101], frames / 100, atol=1e-6)
    assert "6 missing frames (at most 5 in a row, the first after 0.36 s) are interpolated" in said
    kept = np.delete(frames, range(30, 36))
    assert "not evenly spaced" in error_of(read, exp=exp[kept], pose=pose[kept], timestamps=kept / 25)
