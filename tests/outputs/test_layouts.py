import csv

import numpy as np
import pytest
from pt_writer import write_pt

from unils_jax.errors import UserError
from unils_jax.motion import EYES, JAW, channel_names, to_56_channels
from unils_jax.outputs import layouts, tables


@pytest.fixture(scope="module")
def motion() -> np.ndarray:
    """Two people, 7 frames, every channel of another value, some of them awkward to print."""
    motion = np.random.default_rng(0).standard_normal((2, 7, 108)).astype(np.float32)
    motion[0, 0, :3] = [1e-30, 3.4e38, -0.1]
    return motion


@pytest.mark.parametrize("basis", ["flame", "standin"])
def test_a_table_reads_back_bit_for_bit_with_its_basis(tmp_path, motion, basis):
    path = tmp_path / "m.csv"
    tables.write_csv(path, motion, basis)
    again, named = tables.read_csv(path)
    assert np.array_equal(again, motion) and again.dtype == np.float32 and named == basis


def test_a_table_has_a_row_a_frame_and_named_columns(tmp_path, motion):
    tables.write_csv(tmp_path / "m.csv", motion, "standin")
    with open(tmp_path / "m.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 and list(rows[0]) == ["person", "frame", "time_s", *channel_names("standin")]
    last = rows[-1]
    assert (last["person"], last["frame"], last["time_s"]) == ("2", "6", "0.24")
    assert np.float32(last["jaw"]) == motion[1, 6, 103] and np.float32(last["smile_left"]) == motion[1, 6, 0]


def test_columns_may_stand_in_any_order(tmp_path, motion):
    tables.write_csv(tmp_path / "m.csv", motion, "flame")
    with open(tmp_path / "m.csv", newline="") as file:
        rows = [row[::-1] for row in csv.reader(file)]
    with open(tmp_path / "turned.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert np.array_equal(tables.read_csv(tmp_path / "turned.csv")[0], motion)


def test_dualtalk_keeps_its_channels_bit_for_bit_and_zeroes_the_others(tmp_path, motion):
    paths = layouts.write_dualtalk(tmp_path / "talk.npz", motion)
    assert [path.name for path in paths] == ["talk_speaker1.npz", "talk_speaker2.npz"]
    with np.load(paths[1]) as arrays:
        assert arrays["exp"].shape == (7, 50) and arrays["pose"].shape == (7, 6)
        assert np.array_equal(arrays["pose"][:, :3], motion[1, :, 100:103])
        assert np.array_equal(arrays["pose"][:, 3:4], motion[1, :, JAW])
    again = layouts.read_dualtalk(paths)
    kept = [*range(50), *range(100, 104)]
    assert np.array_equal(again[..., kept], motion[..., kept])
    assert not np.delete(again, kept, axis=-1).any()
    assert np.array_equal(to_56_channels(again[1]), to_56_channels(motion[1])), "the 56 of the metrics"


def test_artalk_keeps_all_but_the_eyes_bit_for_bit(tmp_path, motion):
    layouts.write_artalk(tmp_path / "a.npz", motion)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["motion"].shape == (2, 7, 106) and arrays["fps"] == 25.0
    again = layouts.read_artalk([tmp_path / "a.npz"])
    assert np.array_equal(again[..., :104], motion[..., :104]) and not again[..., EYES].any()
    np.savez(tmp_path / "one.npz", motion=layouts.to_artalk(motion[0]))
    assert np.array_equal(layouts.read_artalk([tmp_path / "one.npz"]), again[:1])


@pytest.mark.parametrize("people", [1, 2])
def test_artalk_comes_as_array_or_tensor_at_any_rate(tmp_path, motion, caplog, people):
    channels = np.stack([layouts.to_artalk(person) for person in motion[:people]])
    channels[..., 104] = 0.25
    channels = channels[0] if people == 1 else channels
    expected = np.concatenate([motion[:people, :, :104], np.zeros((people, 7, 4), np.float32)], 2)
    np.save(tmp_path / "a.npy", channels)
    write_pt(tmp_path / "tensor.pt", channels)
    write_pt(tmp_path / "named.pth", {"name": "clip", "motions": channels, "fps": 25})
    write_pt(tmp_path / "one.pt", {"clip": channels})
    for name in ("a.npy", "tensor.pt", "named.pth", "one.pt"):
        caplog.clear()
        assert np.array_equal(layouts.read_artalk([tmp_path / name]), expected), name
        assert "left out are the jaw's second and third component (up to 0.25)" in caplog.text
    write_pt(tmp_path / "fast.pt", {"motion": channels, "fps": 50})
    np.savez(tmp_path / "fast.npz", motion=channels, fps=50)
    for name, fps in (("fast.pt", None), ("fast.npz", None), ("a.npy", 50.0)):
        found = layouts.read_artalk([tmp_path / name], fps)
        assert np.array_equal(found[:, :3], expected[:, :6:2]), name
    assert np.array_equal(layouts.read_artalk([tmp_path / "fast.npz"], 25.0), expected)
    assert "says 50 frames a second; --fps 25 is taken instead" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.zeros((3, 106)), "b": np.zeros((3, 106))}, "must hold a tensor"),
        ({}, "must hold a tensor"),
        ({"motion": "text"}, "must be tensors"),
        ("text", "must be tensors"),
        (np.zeros((3, 105)), r"got \[3, 105\]"),
        (np.zeros((3, 106), np.int64), "int64"),
        ({"motion": np.zeros((3, 106)), "fps": 0.0}, "fps must be 1 to 1000"),
    ],
)
def test_a_pt_without_motion_is_refused_in_one_line(tmp_path, content, message):
    write_pt(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match=message) as error:
        layouts.read_artalk([tmp_path / "x.pt"])
    assert "x.pt" in str(error.value) and "\n" not in str(error.value)


def test_broken_files_are_named_in_one_error(tmp_path, motion):
    table = tmp_path / "m.csv"
    tables.write_csv(table, motion, "flame")
    text = table.read_text().splitlines()
    for lines, message in (
        ([text[0].replace("jaw", "chin"), *text[1:]], "lacks jaw"),
        ([*text[:3], text[3].replace("e", "x"), *text[4:]], "line 4"),
        ([*text[:2], text[2][:40], *text[3:]], "line 3"),
        (text[:-1], "as many frames"),
        ([*text[:-1], text[-1].rpartition(",")[0] + ",nan"], "finite"),
        ([], "108 channels"),
        (text[:1], "as many frames|at least"),
    ):
        table.write_text("\n".join(lines))
        with pytest.raises(UserError, match=message) as error:
            tables.read_csv(table)
        assert str(table) in str(error.value)
    np.savez(tmp_path / "a.npz", exp=np.zeros((4, 50)), pose=np.zeros((3, 6)), motion=np.zeros((4, 100)))
    for read in (lambda path: layouts.read_dualtalk([path]), lambda path: layouts.read_artalk([path])):
        for path in (tmp_path / "a.npz", tmp_path / "none.npz", table):
            with pytest.raises(UserError, match=path.name):
                read(path)
