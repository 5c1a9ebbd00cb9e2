"""uv.lock: of today's dependencies, and without an address or a path of anybody's machine."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "uv.lock").read_text()


def test_the_lock_is_of_the_dependencies_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_extra = {"": project["dependencies"], **project["optional-dependencies"]}
    stated = {
        (extra, canonicalize_name(needed.name), frozenset(needed.extras), needed.specifier)
        for extra, texts in by_extra.items()
        for needed in map(Requirement, texts)
    }
    (own,) = (package for package in tomllib.loads(LOCK)["package"] if package["name"] == project["name"])
    locked = {
        (
            (re.findall(r"extra == '(\w+)'", entry.get("marker", "")) or [""])[0],
            entry["name"],
            frozenset(entry.get("extras", ())),
            SpecifierSet(entry.get("specifier", "")),
        )
        for entry in own["metadata"]["requires-dist"]
    }
    assert locked == stated, "run `make lock`"


def test_the_lock_names_no_address_but_the_public_index():
    hosts = set(re.findall(r"\w+://([^/\"]+)", LOCK))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    assert not re.findall(r'"(?:/|file:|\.\./)[^"]*"', LOCK)
