import csv
import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unils_jax.cli.main import main
from unils_jax.motion import EYES, HEAD, JAW, save_motion
from unils_jax.outputs import arkit
from unils_jax.outputs.arkit import ARKIT_NAMES


def test_columns_are_the_apps_in_its_order():
    names = arkit.COLUMNS
    assert len(names) == len(set(names)) == 61
    assert {name.lower() for name in names[:52]} == {name.lower() for name in ARKIT_NAMES}
    assert names[14:18] == ("JawForward", "JawRight", "JawLeft", "JawOpen")
    assert names[18:23] == ("MouthClose", "MouthFunnel", "MouthPucker", "MouthRight", "MouthLeft")
    assert names[50:55] == ("NoseSneerRight", "TongueOut", "HeadYaw", "HeadPitch", "HeadRoll")
    assert names[-3:] == ("RightEyeYaw", "RightEyePitch", "RightEyeRoll")


def test_angles_have_their_axis_and_sign():
    motion = np.zeros((4, 108), np.float32)
    motion[[0, 1, 2], [HEAD.start + 1, HEAD.start, HEAD.start + 2]] = [0.3, 0.2, -0.1]  # y, x, z
    motion[3, EYES] = [0.05, 0.15, 0.0, -0.25]
    found = arkit.angles(motion)
    np.testing.assert_allclose(found[:3, :3], np.diag([0.3, 0.2, -0.1]), atol=1e-6)
    assert found[3, 6:] == pytest.approx([-0.25, 0.0, 0.0], abs=1e-6)
    assert found[3, 3:5] == pytest.approx([0.15, 0.05], abs=1e-3)


def test_each_person_has_a_table_with_values_under_their_names(tmp_path):
    rng = np.random.default_rng(0)
    shapes, motion = rng.random((2, 30, 52)).astype(np.float32), np.zeros((2, 30, 108), np.float32)
    paths = arkit.write_live_link(tmp_path / "take.csv", shapes, motion)
    assert [path.name for path in paths] == ["take_person1.csv", "take_person2.csv"]
    for path, person in zip(paths, shapes, strict=True):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        assert [rows[0]["Timecode"], rows[26]["Timecode"]] == ["00:00:00:00.000", "00:00:01:01.000"]
        for name in ("jawLeft", "jawRight", "mouthLeft", "mouthRight", "tongueOut", "browInnerUp"):
            found = [float(row[name[0].upper() + name[1:]]) for row in rows]
            np.testing.assert_allclose(found, person[:, ARKIT_NAMES.index(name)], atol=1e-7)
    assert arkit.write_live_link(tmp_path / "one.csv", shapes[:1], motion[:1]) == [tmp_path / "one.csv"]


# The columns of a take, as they are published: the app's recordings and the programs that read them.
PUBLISHED = """
EyeBlinkLeft EyeLookDownLeft EyeLookInLeft EyeLookOutLeft EyeLookUpLeft EyeSquintLeft EyeWideLeft
EyeBlinkRight EyeLookDownRight EyeLookInRight EyeLookOutRight EyeLookUpRight EyeSquintRight EyeWideRight
JawForward JawRight JawLeft JawOpen MouthClose MouthFunnel MouthPucker MouthRight MouthLeft
MouthSmileLeft MouthSmileRight MouthFrownLeft MouthFrownRight MouthDimpleLeft MouthDimpleRight
MouthStretchLeft MouthStretchRight MouthRollLower MouthRollUpper MouthShrugLower MouthShrugUpper
MouthPressLeft MouthPressRight MouthLowerDownLeft MouthLowerDownRight MouthUpperUpLeft MouthUpperUpRight
BrowDownLeft BrowDownRight BrowInnerUp BrowOuterUpLeft BrowOuterUpRight CheekPuff CheekSquintLeft CheekSquintRight
NoseSneerLeft NoseSneerRight TongueOut
HeadYaw HeadPitch HeadRoll LeftEyeYaw LeftEyePitch LeftEyeRoll RightEyeYaw RightEyePitch RightEyeRoll
""".split()


def read_take(path, fps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reads a take as its description says: seconds, and values by name."""
    header, *rows = path.read_text().splitlines()
    assert header == ",".join(["Timecode", "BlendShapeCount", *PUBLISHED])
    times, values = [], []
    for row in rows:
        timecode, count, *cells = row.split(",")
        hours, minutes, seconds, frame, part = map(
            int, re.fullmatch(r"(\d\d):([0-5]\d):([0-5]\d):(\d\d)\.(\d{3})", timecode).groups()
        )
        assert frame < fps and int(count) == len(cells) == 61
        times.append(3600 * hours + 60 * minutes + seconds + (frame + part / 1000) / fps)
        values.append([float(cell) for cell in cells])
    table = np.array(values)
    assert (table[:, :52] >= 0).all() and (table[:, :52] <= 1).all() and np.isfinite(table).all()
    return np.array(times), dict(zip(PUBLISHED, table.T, strict=True))


@pytest.mark.parametrize("fps", [25, 30, 60])
def test_a_take_of_any_rate_shows_the_motion_at_its_timecodes(tmp_path, fps):
    """Everything moves steadily, the head through the back, where its angle jumps from pi to -pi."""
    seconds = np.arange(50) / 25
    motion = np.zeros((1, 50, 108), np.float32)
    motion[0, :, JAW] = 0.1 * seconds[:, None]
    axis = np.array([0.3, 0.9, -0.2]) / np.linalg.norm([0.3, 0.9, -0.2])
    motion[0, :, HEAD] = Rotation.from_rotvec((2.5 + seconds)[:, None] * axis).as_rotvec()
    motion[0, :, EYES] = np.outer(seconds, [0.1, -0.2, 0.0, 0.15])
    save_motion(tmp_path / "m.npz", motion, expression_basis="standin", source={})
    words = ["--raw", "--layout", "arkit", "--out_fps", str(fps), "--out", str(tmp_path / "take.csv")]
    assert main(["convert-motion", str(tmp_path / "m.npz"), *words]) == 0
    times, values = read_take(tmp_path / "take.csv", fps)
    np.testing.assert_allclose(times, np.arange(2 * fps) / fps, atol=1e-9)
    shown = np.minimum(times, seconds[-1])  # the last frame is held
    np.testing.assert_allclose(values["JawOpen"], 0.1 * shown / 0.35, atol=1e-6)
    np.testing.assert_allclose(values["EyeLookDownLeft"], 0.1 * shown / 0.5, atol=1e-6)
    np.testing.assert_allclose(values["EyeLookOutRight"], 0, atol=1e-6)
    np.testing.assert_allclose(values["EyeLookInRight"], 0.15 * shown / 0.5, atol=1e-6)
    np.testing.assert_allclose(values["RightEyeYaw"], 0.15 * shown, atol=1e-6)
    turned = Rotation.from_euler("YXZ", np.stack([values["Head" + x] for x in ("Yaw", "Pitch", "Roll")], axis=1))
    apart = turned * Rotation.from_rotvec((2.5 + shown)[:, None] * axis).inv()
    assert apart.magnitude().max() < 1e-5


def test_hours_and_minutes_of_a_long_take_count_on(tmp_path):
    shapes, motion = np.zeros((1, 3661 * 2 + 1, 52), np.float32), np.zeros((1, 3661 * 2 + 1, 108), np.float32)
    arkit.write_live_link(tmp_path / "take.csv", shapes, motion, fps=2)
    times, _ = read_take(tmp_path / "take.csv", 2)
    np.testing.assert_allclose(times, np.arange(len(times)) / 2, atol=1e-9)
