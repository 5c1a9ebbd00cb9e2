"""Motion as a table: a row a frame, with named columns, as spreadsheets and pandas have it.

A table is read by what its columns say, not by the order of rows and columns. NumPy only.
"""

import csv
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from data_pipelines.resampling import at_our_rate, rate_of_times
from unils_jax.errors import UserError, one_line
from unils_jax.files import atomic_output
from unils_jax.motion import BASES, FPS, channel_names

# Two people for over five hours. A row costs about as much memory as its text.
MAX_ROWS = 1_000_000
MAX_LINE = 1 << 18  # characters
MAX_NUMBER = 1e9  # of a frame or a person
_HEADING = ["person", "frame", "time_s"]
# Names that other programs give to the column of times, and a second in its unit.
_TIMES = {"time_s": 1.0, "time": 1.0, "timestamp": 1.0, "seconds": 1.0, "time_ms": 1e3, "timestamp_ms": 1e3}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

log = logging.getLogger(__name__)


def write_csv(path: str | os.PathLike, motion: Float[np.ndarray, "P T 108"], expression_basis: str) -> None:
    """Writes a table: person (from 1), frame (from 0), its first second, 108 named channels."""
    write_table(path, motion, channel_names(expression_basis))


def write_table(path: str | os.PathLike, values: Float[np.ndarray, "P T C"], names: list[str]) -> None:
    """Writes a row a frame, people one after another.

    Values are float32 in the fewest digits that read back as the same.
    """
    with atomic_output(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_HEADING, *names])
        for p, person in enumerate(values):
            for t, row in enumerate(person.astype(np.float32)):
                writer.writerow([p + 1, t, f"{t / FPS:.2f}", *(np.format_float_scientific(v, trim="-") for v in row)])


def read_csv(path: Path, fps: float | None = None) -> tuple[Float32[np.ndarray, "P T 108"], str]:
    """Reads motion and its expression basis from a table; rows and columns may be in any order.

    Columns are `person`, the 108 channels of a basis, and, where the table has them, `frame` and a
    time in seconds, which order the rows. Delimiters are comma, semicolon (numbers then may have a
    decimal comma), tab and bar; text is UTF-8 or, marked as such, UTF-16. What is not read is said.

    `fps` is the rate of the table, which is resampled to 25; None takes it from the times, which
    must then be 25 a second. Raises UserError, naming file and line, where columns are missing, a
    value is no finite number, frames are missing or double, or people differ in their frames.
    """
    try:
        table = _read_rows(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (UnicodeError, csv.Error) as error:
        what = one_line(error, 120)
        raise UserError(f"{path} is no table in UTF-8 or UTF-16 ({what}); save it as CSV in UTF-8") from None
    if not table.people:
        raise UserError(f"{path} must hold at least one row below its heading; give a table with motion in it")
    people = table.in_order()
    first = people[0]
    lengths = {name: len(person.values) for name, person in zip(table.people, people, strict=True)}
    if len(set(lengths.values())) != 1:
        got = _some([f"{name}: {length}" for name, length in lengths.items()])
        raise UserError(f"{path}: every person must have as many frames, got {got}; mend the table")
    for name, person in zip(table.people, people, strict=True):
        if person.frames and person.frames[0] != first.frames[0]:
            raise UserError(
                f"{path}: every person must begin with the same frame, person {_some([name])} begins with "
                f"{person.frames[0]}, another with {first.frames[0]}; mend the table"
            )
    motion = np.stack([np.stack(person.values) for person in people])
    if not np.isfinite(motion).all():
        raise UserError(f"{path} must hold finite numbers, got NaN or infinity; mend the table")
    rate = _rate(table, people, fps)
    return at_our_rate(motion, rate, str(path)), table.basis


@dataclass
class _Person:
    """The rows of one person: the lines they stand on, and what each says."""

    lines: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)  # empty: the table does not number them
    times: list[float] = field(default_factory=list)  # seconds; empty: the table has none
    values: list[Float32[np.ndarray, " 108"]] = field(default_factory=list)


@dataclass
class _Table:
    """A table as it is written, rows by person."""

    path: Path
    basis: str
    time_name: str  # "": the table has no times
    people: dict[str, _Person]

    def in_order(self) -> list[_Person]:
        """Returns people by number, or as named ones come; rows by frame or time."""
        names = list(self.people)
        if all(_number(name) is not None for name in names):
            names.sort(key=_number)
        self.people = {name: self.people[name] for name in names}
        return [self._sorted(name, person) for name, person in self.people.items()]

    def _sorted(self, name: str, person: _Person) -> _Person:
        keys = person.frames or person.times or person.lines
        order = sorted(range(len(keys)), key=keys.__getitem__)
        fields = (person.lines, person.frames, person.times, person.values)
        ordered = _Person(*([column[i] for i in order] if column else [] for column in fields))
        what = "frame" if person.frames else self.time_name
        ordered_keys = [keys[i] for i in order]
        for i, (key, following) in enumerate(zip(ordered_keys, ordered_keys[1:], strict=False)):
            if key == following:
                raise UserError(
                    f"{self.path}, lines {ordered.lines[i]} and {ordered.lines[i + 1]}: {what} {key} of person "
                    f"{_some([name])} is there twice; keep one of them"
                )
            if person.frames and following != key + 1:
                raise UserError(
                    f"{self.path}: frames {key + 1} to {following - 1} of person {_some([name])} are missing; "
                    "add their rows (interpolated ones, for example), or split the table there"
                )
        return ordered


def _read_rows(path: Path) -> _Table:
    with open(path, "rb") as file:
        encoding = "utf-16" if file.read(2) in _UTF16 else "utf-8-sig"
    with open(path, encoding=encoding) as file:
        lines = _lines(path, file)
        number, text = next(lines, (1, ""))
        delimiter = max(",;\t|", key=text.count)
        if text.startswith("sep="):  # a spreadsheet's line for itself
            delimiter = text[4:5] or ","
            number, text = next(lines, (2, ""))
        heading = [name.strip().lower() for name in _fields(text, delimiter)]
        table, columns = _understood(path, heading)
        for number, text in lines:
            row = _fields(text, delimiter)
            # A decimal comma is no delimiter in a table that has another one.
            row = row if delimiter == "," else [cell.replace(",", ".") for cell in row]
            if number > MAX_ROWS:
                raise UserError(f"{path} has more than {MAX_ROWS} lines; cut the recording into shorter ones")
            try:
                if any(cell.strip() for cell in row[len(heading) :]):
                    raise ValueError("more cells than columns")
                _add_row(table, columns, number, row)
            except (ValueError, IndexError, OverflowError):
                raise UserError(f"{path}, line {number}: not {len(heading)} numbers; mend the table") from None
    return table


def _lines(path: Path, file: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Yields the lines that hold something, with their numbers from 1."""
    number = 0
    while text := file.readline(MAX_LINE):
        number += 1
        if len(text) == MAX_LINE:
            raise UserError(f"{path}, line {number}: over {MAX_LINE} characters, no row of motion; check the file")
        if text.strip(" \t\r\n,;|"):
            yield number, text


def _fields(line: str, delimiter: str) -> list[str]:
    # Line by line: a quotation mark that is never closed must not swallow the rest of the file.
    return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])


def _understood(path: Path, heading: list[str]) -> tuple[_Table, dict[str, list[int]]]:
    """Returns an empty table and where its columns stand: person, frame, time and channels."""
    # The names of the expression channels tell the basis.
    basis = next((b for b in BASES if set(channel_names(b)) <= set(heading)), None)
    if basis is None or "person" not in heading:
        missing = [name for name in ["person", *channel_names("flame")] if name not in heading]
        raise UserError(
            f"{path} must have a column `person` and the 108 channels of a basis in its first line; it lacks "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; see `unils convert-motion`"
        )
    time_name = next((name for name in _TIMES if name in heading), "")
    groups = {
        "person": ["person"],
        "frame": ["frame"] if "frame" in heading else [],
        "time": [time_name] if time_name else [],
        "channels": channel_names(basis),
    }
    used = {name for names in groups.values() for name in names}
    double = sorted(name for name in used if heading.count(name) > 1)
    if double:
        raise UserError(f"{path} has two columns {', '.join(double[:3])}; keep one of them")
    unread = [name for name in heading if name not in used]
    if any(unread):
        log.warning("%s: %d columns are left out: %s", path, len(unread), _some(unread))
    # By name, so that a table whose columns a spreadsheet has moved still reads right.
    columns = {group: [heading.index(name) for name in names] for group, names in groups.items()}
    return _Table(path, basis, time_name, {}), columns


def _add_row(table: _Table, columns: dict[str, list[int]], number: int, row: list[str]) -> None:
    """Adds a row to its person. Raises ValueError or IndexError where a cell is no number."""
    name = row[columns["person"][0]].strip()
    label = _number(name)
    if label is not None and label == round(label) and abs(label) < MAX_NUMBER:
        name = str(int(label))  # pandas writes 1.0 where a column has had holes
    person = table.people.setdefault(name, _Person())
    for column in columns["frame"]:
        frame = float(row[column])
        if not abs(frame) < MAX_NUMBER or frame != int(frame):  # NaN is not below, either
            raise ValueError("a frame is a whole number")
        person.frames.append(int(frame))
    for column in columns["time"]:
        person.times.append(float(row[column]) / _TIMES[table.time_name])
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
        person.values.append(np.array([float(row[c]) for c in columns["channels"]], np.float32))
    person.lines.append(number)


def _rate(table: _Table, people: list[_Person], fps: float | None) -> float:
    """Returns the frames a second of a table: `fps` where it is given, else what its times say.

    Raises UserError where the times say another rate than 25, or differ between people.
    """
    path, first = table.path, people[0]
    if not table.time_name:
        if first.frames and first.frames[0] > 1:
            log.warning("%s begins with frame %d; the motion begins there", path, first.frames[0])
        if not first.frames:
            log.warning("%s has neither frames nor times: its rows are taken in their order", path)
        return fps or FPS
    name = f"{path}: column {table.time_name}"
    try:
        rates = [rate_of_times(np.array(person.times), name) for person in people]
    except UserError as error:
        if fps is None:
            raise
        log.warning("%s; --fps %g is taken instead", error, fps)
        return fps
    rate = rates[0]
    apart = max(float(np.abs(np.subtract(person.times, first.times)).max()) for person in people)
    if apart > 0.5 / rate:
        raise UserError(f"{name} must be the same for all people, but they are up to {apart:.3g} s apart; mend it")
    if first.times[0] > 0.5 / rate:
        log.warning("%s begins at %g s; the motion begins there", name, first.times[0])
    if fps is None and rate != FPS:
        raise UserError(
            f"{name} counts {rate:.6g} frames a second, motion has {FPS:g}; add --fps {rate:.6g} to have it resampled"
        )
    if fps is not None and abs(fps / rate - 1) > 0.01:
        log.warning("%s counts %.6g frames a second; --fps %g is taken instead", name, rate, fps)
    return fps or rate


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _some(names: list[str]) -> str:
    shown = ["".join(c if c.isprintable() else "?" for c in name[:40]) or "(no name)" for name in names[:5]]
    return ", ".join(shown) + (" and others" if len(names) > 5 else "")
