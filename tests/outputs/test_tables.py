"""Tables as spreadsheets, pandas and other programs leave them."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unils_jax.errors import UserError
from unils_jax.motion import channel_names
from unils_jax.outputs import tables

Rows = list[list[str]]


@pytest.fixture(scope="module")
def motion() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 13, 108)).astype(np.float32)


@pytest.fixture
def rows(tmp_path, motion) -> Rows:
    """The cells of a table of three people, its heading first."""
    tables.write_csv(tmp_path / "written.csv", motion, "flame")
    with open(tmp_path / "written.csv", newline="") as file:
        return list(csv.reader(file))


def save(path: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8", newline: str = "\n") -> Path:
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter, lineterminator=newline).writerows(rows)
    return path


def change(rows: Rows, **columns: Callable[[str], str]) -> Rows:
    """The table with each cell of a column put through a function."""
    places = {rows[0].index(name): function for name, function in columns.items()}
    return [rows[0], *([places.get(i, str)(cell) for i, cell in enumerate(row)] for row in rows[1:])]


def without(rows: Rows, *names: str) -> Rows:
    places = [i for i, name in enumerate(rows[0]) if name not in names]
    return [[row[i] for i in places] for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_rows_and_columns_may_stand_in_any_order(tmp_path, motion, rows, seed):
    rng = np.random.default_rng(seed)
    columns = rng.permutation(len(rows[0]))
    mixed = [rows[0], *(rows[1 + i] for i in rng.permutation(len(rows) - 1))]
    path = save(tmp_path / "m.csv", [[row[i] for i in columns] for row in mixed])
    assert np.array_equal(tables.read_csv(path)[0], motion)
    path = save(tmp_path / "m.csv", without(mixed, "frame"))
    assert np.array_equal(tables.read_csv(path)[0], motion), "ordered by time"


def test_people_are_ordered_by_number_or_as_they_come_where_they_have_names(tmp_path, motion, rows, caplog):
    tens = change(rows, person=lambda p: {"1": "2", "2": "10", "3": "9"}[p])
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", tens))[0], motion[[0, 2, 1]])
    names = change(rows, person=lambda p: {"1": "Zoe", "2": "Ada", "3": "Mia"}[p])
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", names))[0], motion)
    floats = change(rows, person=lambda p: f"{p}.0", frame=lambda f: f"{f}.0")
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", floats))[0], motion)
    assert not caplog.records


@pytest.mark.parametrize(
    ("delimiter", "encoding", "newline"),
    [
        (",", "utf-8-sig", "\r\n"),
        (";", "utf-8", "\n"),
        (";", "utf-8-sig", "\r\n"),
        ("\t", "utf-16", "\r\n"),
        ("|", "utf-8", "\r"),
    ],
)
def test_marks_delimiters_and_line_ends_of_spreadsheets_are_understood(
    tmp_path, motion, rows, delimiter, encoding, newline
):
    path = save(tmp_path / "m.csv", rows, delimiter, encoding, newline)
    assert np.array_equal(tables.read_csv(path)[0], motion)
    if delimiter != ",":
        commas = [rows[0], *([cell.replace(".", ",") for cell in row] for row in rows[1:])]
        path = save(tmp_path / "m.csv", [*commas, [""] * 5, []], delimiter, encoding, newline)
        assert np.array_equal(tables.read_csv(path)[0], motion), "decimal commas and empty rows"


def test_a_line_for_the_spreadsheet_itself_and_capitals_are_passed_over(tmp_path, motion, rows):
    path = save(
        tmp_path / "m.csv", [[name.title() if i < 3 else f" {name} " for i, name in enumerate(rows[0])], *rows[1:]]
    )
    path.write_text("sep=,\n" + path.read_text())
    assert np.array_equal(tables.read_csv(path)[0], motion)


def test_columns_that_are_not_read_are_told(tmp_path, motion, rows, caplog):
    wider = [[*row, "confidence" if i == 0 else "0.5"] for i, row in enumerate(rows)]
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", wider))[0], motion)
    assert "1 columns are left out: confidence" in caplog.text


@pytest.mark.parametrize(("fps", "frames"), [(24, 13), (30, 11), (50, 6), (60, 5)])
def test_times_of_another_rate_need_the_flag_and_are_resampled_with_it(tmp_path, motion, rows, caplog, fps, frames):
    where = rows[0].index("frame")
    timed = [rows[0], *([*row[:2], f"{int(row[where]) / fps:.4f}", *row[3:]] for row in rows[1:])]
    path = save(tmp_path / "m.csv", timed)
    with pytest.raises(UserError, match=f"time_s counts {fps} frames a second.*--fps {fps}"):
        tables.read_csv(path)
    found = tables.read_csv(path, float(fps))[0]
    assert found.shape[1] == round(13 * 25 / fps) and np.array_equal(found[:, 0], motion[:, 0])
    assert f"{fps} frames a second and is resampled" in caplog.text
    milliseconds = [
        ["person", "frame", "timestamp_ms", *rows[0][3:]],
        *change(timed, time_s=lambda t: f"{float(t):.3f}e3")[1:],
    ]
    with pytest.raises(UserError, match=f"timestamp_ms counts {fps} frames a second"):
        tables.read_csv(save(tmp_path / "m.csv", milliseconds))


def test_the_flag_counts_more_than_times_which_is_told(tmp_path, motion, rows, caplog):
    path = save(tmp_path / "m.csv", rows)
    assert tables.read_csv(path, 50.0)[0].shape[1] == 6
    assert "counts 25 frames a second; --fps 50 is taken instead" in caplog.text
    uneven = change(rows, time_s=lambda t: str(float(t) + (t > "0.2") * 0.2))
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", uneven), 25.0)[0], motion)
    assert "not evenly spaced" in caplog.text
    with pytest.raises(UserError, match="not evenly spaced: frames of 0.04 s as a rule, 0.24 s after 0.16 s"):
        tables.read_csv(tmp_path / "m.csv")


def test_a_later_beginning_is_told_and_frames_may_count_from_one(tmp_path, motion, rows, caplog):
    from_one = change(without(rows, "time_s"), frame=lambda f: str(int(f) + 1))
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", from_one))[0], motion) and not caplog.records
    late = change(rows, frame=lambda f: str(int(f) + 75), time_s=lambda t: f"{float(t) + 3:.2f}")
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", late))[0], motion)
    assert "begins at 3 s" in caplog.text
    bare = without(rows, "time_s", "frame")
    assert np.array_equal(tables.read_csv(save(tmp_path / "m.csv", bare))[0], motion)
    assert "neither frames nor times" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:5] + rows[8:], "frames 4 to 6 of person 1 are missing"),
        (lambda rows: [row for row in rows if row[1] not in ("4", "9")], "frames 4 to 4 of person 1 are missing"),
        (lambda rows: [*rows, rows[20]], "lines 21 and 41: frame 6 of person 2 is there twice"),
        (
            lambda rows: [row for row in rows if row[:2] not in (["2", "0"], ["1", "12"], ["3", "12"])],
            "begin with the same",
        ),
        (lambda rows: [*rows[:4], [*rows[4][:7], "1.5.2", *rows[4][8:]], *rows[5:]], "line 5: not 111 numbers"),
        (lambda rows: [*rows[:4], [*rows[4][:7], "", *rows[4][8:]], *rows[5:]], "line 5: not 111 numbers"),
        (lambda rows: [*rows[:4], [*rows[4], "7"], *rows[5:]], "line 5: not 111 numbers"),
        (lambda rows: [[*rows[0], "jaw"], *([*row, "0"] for row in rows[1:])], "two columns jaw"),
        (lambda rows: change(rows, frame=lambda f: f"{f}.5"), "line 2"),
        (lambda rows: change(rows, frame=lambda f: "nan"), "line 2"),
        (lambda rows: change(rows, frame=lambda f: "inf"), "line 2"),
        (lambda rows: change(rows, frame=lambda f: f"1e{f}00"), "line 3"),
        (lambda rows: rows[:1], "at least one row"),
        (lambda rows: change(rows, head_x=lambda v: "1e39"), "finite"),
        (lambda rows: change(rows, time_s=lambda t: "0"), "must grow"),
        (lambda rows: [["x" * 140_000]], "no table"),
        (lambda rows: [["x" * 100_000, "y" * 100_000, "z" * 100_000]], "over 262144 characters"),
        (lambda rows: without(rows, "person"), "lacks person"),
    ],
)
def test_damage_is_one_line_with_the_place(tmp_path, rows, damage, message):
    path = save(tmp_path / "m.csv", damage(rows))
    with pytest.raises(UserError, match=message) as error:
        tables.read_csv(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_people_whose_times_differ_are_refused(tmp_path, rows):
    late = [rows[0], *([*row[:2], f"{float(row[2]) + (row[0] == '2') * 0.5:.2f}", *row[3:]] for row in rows[1:])]
    with pytest.raises(UserError, match="same for all people, but they are up to 0.5 s apart"):
        tables.read_csv(save(tmp_path / "m.csv", late))


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"person,\xe9\n", b"\x00\x01\x02" * 50, b"\xff\xfe" + b"\xd8" * 40]
)
def test_what_is_no_text_is_one_line(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UserError, match="m.csv") as error:
        tables.read_csv(tmp_path / "m.csv")
    assert "\n" not in str(error.value)


def test_a_folder_or_a_file_that_cannot_be_opened_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="cannot read"):
            tables.read_csv(path)


def test_names_of_channels_tell_the_basis(tmp_path, motion):
    tables.write_csv(tmp_path / "m.csv", motion, "standin")
    assert tables.read_csv(tmp_path / "m.csv")[1] == "standin"
    assert channel_names("standin")[0] in (tmp_path / "m.csv").read_text()
