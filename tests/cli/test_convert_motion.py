import csv

import numpy as np
import pytest

from unils_jax.cli.main import main
from unils_jax.face.standin import standin_asset
from unils_jax.motion import STANDIN_SHAPES, load_motion, save_motion


@pytest.fixture
def file(tmp_path):
    motion = np.random.default_rng(0).standard_normal((2, 5, 108)).astype(np.float32)
    save_motion(tmp_path / "m.npz", motion, expression_basis="standin", source={"seed": 3})
    return tmp_path / "m.npz"


def convert(*words) -> int:
    return main(["convert-motion", *map(str, words)])


def test_a_motion_file_goes_through_a_table_and_back_unchanged(tmp_path, file, capsys):
    assert convert(file, "--raw", "--out", tmp_path / "m.csv") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'm.csv'}: 2 x 5 frames\n"
    assert convert(tmp_path / "m.csv", "--out", tmp_path / "back.npz") == 0
    before, after = load_motion(file), load_motion(tmp_path / "back.npz")
    assert np.array_equal(before.motion, after.motion) and after.expression_basis == "standin"
    assert after.source == {"converted_from": ["m.csv"], "layout": "unils"}


def test_the_layouts_of_others_go_both_ways(tmp_path, file, caplog):
    assert convert(file, "--raw", "--out", tmp_path / "talk.npz", "--layout", "dualtalk") == 0
    assert "expression 50 to 99" in caplog.text and "eyes" in caplog.text and "standin basis" in caplog.text
    people = [tmp_path / f"talk_speaker{p}.npz" for p in (1, 2)]
    assert convert(*people, "--from", "dualtalk", "--basis", "standin", "--out", tmp_path / "back.npz") == 0
    assert convert(file, "--raw", "--out", tmp_path / "art.npz", "--layout", "artalk") == 0
    assert convert(tmp_path / "art.npz", "--from", "artalk", "--out", tmp_path / "back2.npz") == 0
    motion = load_motion(file).motion
    dualtalk, artalk = load_motion(tmp_path / "back.npz"), load_motion(tmp_path / "back2.npz")
    assert np.array_equal(dualtalk.motion[..., :50], motion[..., :50])
    assert np.array_equal(artalk.motion[..., :104], motion[..., :104])
    assert (dualtalk.expression_basis, artalk.expression_basis) == ("standin", "flame")


def test_arkit_is_live_links_table_a_person_by_name_or_by_fit(tmp_path, file, capsys):
    assert convert(file, "--out", tmp_path / "a.csv", "--layout", "arkit") == 0
    asset, index = standin_asset(), list(STANDIN_SHAPES).index("smile_left")
    shape = asset.expression_basis[None, :, :, index] * STANDIN_SHAPES["smile_left"]
    np.savez(tmp_path / "basis.npz", names=np.array(["mouthSmileLeft"]), shapes=shape)
    words = ("--out", tmp_path / "b.csv", "--layout", "arkit", "--arkit_basis", tmp_path / "basis.npz")
    assert convert(file, *words) == 0
    assert "mm remain" in capsys.readouterr().out
    for name in ("a_person1.csv", "a_person2.csv", "b_person1.csv", "b_person2.csv"):
        with open(tmp_path / name, newline="") as table:
            rows = list(csv.reader(table))
        assert len(rows) == 1 + 5 and len(rows[0]) == 2 + 61
        assert rows[0][:3] == ["Timecode", "BlendShapeCount", "EyeBlinkLeft"] and rows[1][1] == "61"
        values = np.array([row[2:] for row in rows[1:]], float)
        assert values[:, :52].min() >= 0 and values[:, :52].max() <= 1 and values[:, :52].any()
        assert values[:, 52:].any(), "head and eyes"


def test_arkits_cuts_are_told_and_one_person_is_one_file(tmp_path, caplog):
    motion = np.zeros((1, 3, 108), np.float32)
    motion[0, 1, 103], motion[0, 2, 100:103] = 0.7, [0.4, 0.0, 0.0]
    save_motion(tmp_path / "m.npz", motion, expression_basis="standin", source={})
    assert convert(tmp_path / "m.npz", "--raw", "--out", tmp_path / "a.csv", "--layout", "arkit") == 0
    assert "1 of them are cut there, jawOpen at 2" in caplog.text
    with open(tmp_path / "a.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [float(row["HeadPitch"]) for row in rows] == pytest.approx([0, 0, 0.4], abs=1e-6)
    assert [float(row["JawOpen"]) for row in rows] == [0, 1, 0]


def test_the_flag_for_the_rate_counts_for_every_kind_of_file(tmp_path, capsys, caplog):
    motion = np.random.default_rng(0).standard_normal((1, 60, 108)).astype(np.float32)
    save_motion(tmp_path / "m.npz", motion, expression_basis="flame", source={})
    np.savez(tmp_path / "d.npz", exp=motion[0, :, :50], pose=motion[0, :, 98:104])
    np.save(tmp_path / "a.npy", motion[0, :, :106])
    assert convert(tmp_path / "m.npz", "--out", tmp_path / "m.csv") == 0
    for words in (("m.npz",), ("m.csv",), ("d.npz", "--from", "dualtalk"), ("a.npy", "--from", "artalk")):
        words = (tmp_path / words[0], *words[1:], "--fps", "30", "--out", tmp_path / "out.npz")
        assert convert(*words) == 0
        assert load_motion(tmp_path / "out.npz").motion.shape == (1, 50, 108)
    capsys.readouterr()
    assert convert(tmp_path / "m.npz", "--fps", "0", "--out", tmp_path / "x.npz") == 2
    assert "--fps must be 1 to 1000 frames a second, got 0" in capsys.readouterr().err


def test_a_motion_file_of_another_rate_is_resampled(tmp_path, caplog):
    motion = np.random.default_rng(0).standard_normal((2, 48, 108)).astype(np.float32)
    save_motion(tmp_path / "m.npz", motion, expression_basis="standin", source={})
    with np.load(tmp_path / "m.npz") as arrays:
        np.savez(tmp_path / "fast.npz", **{**arrays, "fps": np.float64(50)})
    assert convert(tmp_path / "fast.npz", "--raw", "--out", tmp_path / "out.npz") == 0
    assert np.array_equal(load_motion(tmp_path / "out.npz").motion, motion[:, ::2])
    assert "50 frames a second and is resampled to 25" in caplog.text


def test_a_glb_is_written(tmp_path, file, capsys):
    assert convert(file, "--out", tmp_path / "m.glb") == 0
    assert (tmp_path / "m.glb").read_bytes()[:4] == b"glTF"
    assert convert(file, "--out", tmp_path / "a.glb", "--layout", "arkit") == 0
    assert b'"targetNames":["eyeBlinkLeft"' in (tmp_path / "a.glb").read_bytes()
    assert capsys.readouterr().out.endswith("a.glb (by name): 2 x 5 frames\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.npz", "--out", "m.csv"), "does not exist"),
        (("m.npz", "--out", "m.txt"), "must end in .csv or .npz or .glb"),
        (("m.npz", "--out", "m.csv", "--layout", "dualtalk"), "must end in .npz"),
        (("m.npz", "m.npz", "--out", "m.csv"), "2 files were given"),
        (("m.npz", "--out", "m.csv", "--arkit_basis", "b.npz"), "--layout arkit"),
        (("m.npz", "--out", "m.csv", "--out_fps", "60"), "--layout arkit"),
        (("m.npz", "--out", "m.csv", "--layout", "arkit", "--out_fps", "101"), "1 to 100"),
        (("m.npz", "--out", "m.glb", "--layout", "arkit", "--out_fps", "60"), "arkit's .csv"),
        (("m.npz", "--out", "m.glb", "--layout", "arkit", "--arkit_basis", "b.npz"), "ARKit shapes of its own"),
        (("m.npz", "--out", "m.glb", "--layout", "arkit", "--flame", "f.pkl"), "--flame is the head of"),
        (("m.npz", "--out", "m.csv", "--flame", "f.pkl"), "--flame"),
        (("m.npz", "--out", "m.glb", "--embed_flame"), "--flame"),
        (("m.npz", "--out", "b.npz", "--from", "dualtalk"), "exp"),
        (("m.npz", "--out", "b.npz", "--from", "artalk"), "106"),
        (("flame.npz", "--out", "a.csv", "--layout", "arkit"), "--arkit_basis"),
        (("flame.npz", "--out", "a.csv", "--layout", "arkit", "--arkit_basis", "m.npz"), "give --flame"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, file, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    save_motion("flame.npz", np.zeros((1, 2, 108), np.float32), expression_basis="flame", source={})
    before = sorted(tmp_path.iterdir())
    assert convert(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("unils: error: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
