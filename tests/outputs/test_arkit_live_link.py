import csv

import numpy as np
import pytest

from unils_jax.motion import EYES, HEAD
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
