"""Configs: a Python file's ConfigDict, then overrides, frozen dataclasses, JSON in a checkpoint."""

import ast
import difflib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin

from unils_jax.errors import UserError

T = TypeVar("T")  # a dataclass of settings

_PACKAGE = Path(__file__).parent
# In the wheel the configs are package data; in a checkout they lie next to the package.
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_path(name_or_file: str) -> Path:
    """Returns the file of a config, given a path to a .py file or the bare name of one of ours."""
    if name_or_file.endswith(".py"):
        path = Path(name_or_file)
        if not path.is_file():
            raise UserError(f"config file {path} does not exist")
        return path
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in CONFIG_FOLDERS
        for path in folder.rglob("*.py")
    }
    if name_or_file in files:
        return files[name_or_file]
    # Names that were flat once: smoke_codec is smoke/codec, and NAME may be baselines/NAME.
    renamed = [name for name in files if name_or_file in (name.replace("/", "_", 1), name.removeprefix("baselines/"))]
    hint = f"; it is {renamed[0]!r} now" if renamed else f"; known are {', '.join(sorted(files))}"
    raise UserError(f"no config named {name_or_file!r}{hint}, or give a path to a .py file")


def load_config(name_or_file: str) -> object:
    """Returns the ConfigDict that the file's `get_config()` returns.

    The file is the user's Python code and is executed. Raises UserError where there is no such
    file, where it fails (an unknown key, say), and where it returns no config.
    """
    path = config_path(name_or_file)
    spec = importlib.util.spec_from_file_location(f"unils_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"config file {path} fails with {type(error).__name__}: {text}; mend it") from error
    if not hasattr(config, "to_dict"):
        raise UserError(f"config file {path} must define get_config() that returns an ml_collections.ConfigDict")
    return config


def override(config: object, assignments: list[str], unset: Mapping[str, object] | None = None) -> None:
    """Applies `a.b=value` in place.

    `unset` are settings that the config leaves at their defaults. Raises UserError for an unknown
    key, with the nearest known one, and for a value of a wrong type.
    """
    known = {**(unset or {}), **leaves(config)}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--config.{name} needs a value: --config.{name}=VALUE")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise UserError(f"unknown config key {name!r}{hint}")
        old = known[name]
        value = _parse(text)
        # One number, or one for each of several: `from_dict` knows which settings take both.
        numbers = isinstance(old, float) or (isinstance(old, tuple) and float in map(type, old))
        if numbers and type(value) is int:
            value = float(value)
        if isinstance(old, str) and not isinstance(value, str):
            value = text
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)
        alike = type(value) is type(old) or (numbers and type(value) in (float, tuple))
        if old is not None and value is not None and not alike:
            raise UserError(f"config key {name} is {type(old).__name__} (now {old!r}), got {text!r}")
        *groups, last = name.split(".")
        node = config
        with config.unlocked(), config.ignore_type():
            for group in groups:
                if group not in node:
                    node[group] = {}
                node = node[group]
            node[last] = value


def unset_settings(
    kind: type, values: Mapping[str, object], prefix: str = "", *, types: Mapping[str, type] | None = None
) -> dict[str, object]:
    """Lists the defaults of a dataclass's settings that `values` lack, by their dotted names.

    `types` are those of fields whose own annotation does not tell them. A group that is None is
    left out: whether a model has a part is the file's to say.
    """
    unset = {}
    for field in fields(kind):
        kinds = (types or {}).get(field.name, field.type)
        groups = [option for option in getattr(kinds, "__args__", (kinds,)) if is_dataclass(option)]
        held = values.get(field.name, field.default)
        if not groups and field.name not in values and field.default is not MISSING:
            unset[f"{prefix}{field.name}"] = field.default
        elif groups and held is not None:
            inside = held if isinstance(held, Mapping) else {}
            unset |= unset_settings(groups[0], inside, f"{prefix}{field.name}.")
    return unset


def leaves(config: object, prefix: str = "") -> dict[str, object]:
    """Lists the settings of a ConfigDict, or of nested mappings, by their dotted names."""
    found = {}
    for key, value in config.items():
        nested = hasattr(value, "items")
        found |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _parse(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def from_dict(
    kind: type[T], values: Mapping[str, object], where: str = "config", *, types: Mapping[str, type] | None = None
) -> T:
    """Builds the frozen dataclass `kind` from plain values, in which lists stand for tuples.

    `types` are those of fields whose own annotation does not tell them. Unknown and missing names
    and values of a wrong type are collected in one UserError.
    """
    known = {field.name: field for field in fields(kind)}
    problems = [f"{where} has no setting {name!r}{_near(name, known)}" for name in values if name not in known]
    needed = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    problems += [f"{where} lacks {name!r}" for name in needed if name not in values]
    chosen = {}
    for name, value in values.items():
        try:
            if name in known:
                chosen[name] = _value((types or {}).get(name, known[name].type), value, f"{where}.{name}")
        except UserError as error:
            problems.append(str(error))
    try:
        if not problems:
            return kind(**chosen)
    except TypeError as error:
        problems.append(f"{where}: {error}")
    raise UserError("; ".join(problems))


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _value(kind: object, value: object, where: str) -> object:
    options = kind.__args__ if isinstance(kind, UnionType) else (kind,)
    nested = [option for option in options if is_dataclass(option)]
    if nested and hasattr(value, "items"):
        return from_dict(nested[0], dict(value.items()), where)
    if isinstance(value, list):
        value = tuple(value)
    if type(value) is int and float in options and abs(value) < 1 << 1000:  # larger ones are no float
        value = float(value)
    # Tuples are of one type of element, tuple[int, ...].
    allowed = {item for option in options for item in get_args(option)}
    if type(value) is tuple and float in allowed:
        value = tuple(float(x) if type(x) is int and abs(x) < 1 << 1000 else x for x in value)
    elements = {type(item) for item in value} if type(value) is tuple else set()
    if type(value) not in [get_origin(option) or option for option in options] or not elements <= allowed:
        wanted = "a group of settings" if nested else kind.__name__ if isinstance(kind, type) else str(kind)
        raise UserError(f"{where} must be {wanted}, got {value!r}")
    return value


def described(settings: object, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Yields the dotted name, the value and the comment of every setting of a dataclass."""
    comments = field_comments(type(settings))
    for field in fields(settings):
        name, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if is_dataclass(value):
            yield from described(value, f"{name}.")
        else:
            yield name, value, comments.get(field.name, "")


def field_comments(kind: type) -> dict[str, str]:
    """Returns the comment of each field of a dataclass that is written next to it or above it.

    A comment above several fields is of the first of them.
    """
    lines = inspect.getsource(kind).splitlines()
    comments = {}
    for node in ast.parse(inspect.cleandoc("\n".join(lines))).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        above, first = [], node.lineno - 1
        while lines[first - 1].lstrip().startswith("#"):
            first -= 1
            above.insert(0, lines[first].strip().removeprefix("# "))
        behind = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
        comments[node.target.id] = " ".join(filter(None, (*above, behind)))
    return comments
