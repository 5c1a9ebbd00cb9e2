"""The persons of recordings, from a table: their names, and splits that keep a person together."""

import csv
from collections.abc import Sequence
from pathlib import Path

from unils_jax.errors import UserError, one_line
from unils_jax.files import read_lines

PEOPLE_FILE = "people.csv"
_COLUMNS = (("person",), ("person1", "person2"))


def read_people_table(folder: Path) -> dict[str, tuple[str, ...]]:
    """Reads `people.csv`: the persons of each recording by its name; {} where there is no table.

    Columns are `name` and `person`, or `name`, `person1` and `person2`. Raises UserError for other
    ones.
    """
    path = folder / PEOPLE_FILE
    if not path.is_file():
        return {}
    try:
        lines = read_lines(path)
        # Spreadsheets of many countries write semicolons, because theirs is the decimal comma.
        rows = list(csv.DictReader(lines, delimiter=max(",;\t", key=lines[0].count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table that can be read ({one_line(error, 80)}); get a fresh copy") from None
    held = set(rows[0]) if rows else set()
    columns = next((names for names in reversed(_COLUMNS) if {"name", *names} <= held), None)
    if columns is None:
        raise UserError(f"{path} must have the columns name and person, or name, person1 and person2; add them")
    return {str(row["name"]): tuple((row[name] or "").strip() for name in columns) for row in rows}


def group_by_person(names: Sequence[str], people: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Returns a group for each recording; those that share a person, if over others, have the same.

    A recording without a person is a group by itself. A group is named by its first recording.
    """
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    first_of: dict[str, str] = {}
    for name in sorted(names):
        for person in filter(None, people.get(name, ())):
            first = find(first_of.setdefault(person, name))
            mine = find(name)
            leader[max(first, mine)] = min(first, mine)
    return {name: find(name) for name in names}
