"""The releases' names in ours and ours in theirs, by the one table.

Our parameters are a flat dict, path -> array: `codec/encoder/blocks/0/self_attn/to_qkv/kernel`.
Every `kernel` and LoRA factor is torch's `weight` with its axes reversed (linear [out, in] -> [in,
out], convolution [out, in, width] -> [width, in, out]); everything else keeps its shape. The table
is read in both directions; no torch needed.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np

from unils_jax.errors import UserError
from unils_jax.systems.torch_layout import ENCODER_ALIASES, ENCODER_ROWS, Row, TorchLayout

ENCODER = "audio_encoder"  # the table of an audio encoder alone
UNKNOWN = "unknown/"  # the paths of keys that are not in the table
MAX_NAMED = 10
MAX_NAME_LENGTH = 160

log = logging.getLogger(__name__)
Item = TypeVar("Item")
# `module.` only before a key: a model may have a part of that name. `_orig_mod` names no part.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")

# What fine-tuned and pre-training files of wav2vec2 hold in addition to the encoder; of Mimi's
# quantisers the projections alone are read.
IGNORED_HEADS = ("lm_head.", "project_hid.", "project_q.", "quantizer.", "projector.", "classifier.", "layer_weights")


@dataclass(frozen=True)
class _Rule:
    key: str
    path: str
    reversed_axes: bool
    key_pattern: re.Pattern
    path_pattern: re.Pattern


def _layouts() -> dict[str, TorchLayout]:
    """Returns the layout of each kind of model; the first one's where several systems have it."""
    from unils_jax.systems.registry import SYSTEMS  # noqa: PLC0415 (importing the readers starts no JAX)

    layouts: dict[str, TorchLayout] = {}
    for system in SYSTEMS.values():
        for stage in system.layout.rows:
            layouts.setdefault(stage, system.layout)
    return layouts


def _rows(stage: str) -> tuple[Row, ...]:
    layouts = _layouts()
    if stage == ENCODER:
        return ENCODER_ROWS
    if stage not in layouts:
        raise ValueError(f"stage must be one of {(*layouts, ENCODER)}, got {stage!r}")
    return layouts[stage].rows[stage]


@cache
def _rules(stage: str) -> tuple[_Rule, ...]:
    return tuple(
        _Rule(key + key_end, path + path_end, flip, _pattern(key + key_end), _pattern(path + path_end))
        for key, path, kind in _rows(stage)
        for key_end, path_end, flip in kind
    )


def _aliases(stage: str) -> tuple[tuple[str, str], ...]:
    if stage == ENCODER:
        return ENCODER_ALIASES
    layout = _layouts().get(stage)
    return () if layout is None else layout.aliases.get(stage, ())


def _derived(stage: str) -> tuple[str, ...]:
    layout = _layouts().get(stage)
    return () if layout is None else layout.derived


def _pattern(template: str) -> re.Pattern:
    number = r"(?P<number>0|[1-9][0-9]{0,3})"
    pattern = re.sub(r"\\\{(2i\\\+1|2i|i)\\\}", lambda _: number, re.escape(template))
    return re.compile(pattern.replace(r"\{name\}", "(?P<name>[^./]+)"))


def _index(template: str, match: re.Match) -> int | None:
    """Returns the block's number.

    It is -1 where the template counts none, None where the number has the wrong parity.
    """
    if "number" not in match.groupdict():
        return -1
    number = int(match["number"])
    if "{i}" in template:
        return number
    return number // 2 if number % 2 == ("{2i+1}" in template) else None


def _fill(template: str, index: int, match: re.Match) -> str:
    template = template.replace("{name}", match.groupdict().get("name", ""))
    numbers = {"{i}": index, "{2i}": 2 * index, "{2i+1}": 2 * index + 1}
    for mark, number in numbers.items():
        template = template.replace(mark, str(number))
    return template


@lru_cache(maxsize=8192)
def path_of(key: str, stage: str) -> tuple[str, bool] | None:
    """Returns our path of torch's `key` and whether the axes are reversed.

    None where the table does not know the key.
    """
    for pattern, name in _aliases(stage):
        key = re.sub(pattern, name, key)
    for rule in _rules(stage):
        match = rule.key_pattern.fullmatch(key)
        index = _index(rule.key, match) if match else None
        if index is not None:
            return _fill(rule.path, index, match), rule.reversed_axes
    return None


@lru_cache(maxsize=8192)
def key_of(path: str, stage: str) -> tuple[str, bool] | None:
    """Returns torch's key of our `path` and whether the axes are reversed.

    None where the table does not know the path.
    """
    for rule in _rules(stage):
        match = rule.path_pattern.fullmatch(path)
        if match:
            return _fill(rule.key, _index(rule.path, match), match), rule.reversed_axes
    return None


def is_ignored(key: str, stage: str) -> bool:
    """Returns True for keys that no parameter is read from.

    Those are `IGNORED_HEADS`, which other uses of wav2vec2 put on the encoder, and what a system's
    own files hold twice or use for nothing.
    """
    if stage == ENCODER:
        bare = key.removeprefix("wav2vec2.").removeprefix("wavlm.")
        return bare.startswith(IGNORED_HEADS) and path_of(key, stage) is None
    return key.endswith(_derived(stage))


def unwrapped(state: Mapping[str, Item]) -> Mapping[str, Item]:
    """Returns a state dict without the prefixes of PyTorch's wrappers, and logs which.

    They are `module.` (DistributedDataParallel, DataParallel), `_orig_mod.` (torch.compile, also
    inside a key where a part of the model was compiled), and any other that all keys share and
    without which the tables know them (the name that a trainer gave the model). Raises UserError
    where two keys become one.
    """
    state = _without_outer(state)
    prefixes = {prefix for key in state for prefix in _WRAPPERS.findall(key)}
    if not prefixes:
        return state
    plain: dict[str, Item] = {}
    for key, item in state.items():
        name = without_wrappers(key)
        if name in plain:
            raise UserError(f"{_some([name])} is in the file with and without a wrapper's prefix; keep one of them")
        plain[name] = item
    log.warning(
        "keys are read without %s, which PyTorch's wrappers put before a model's own keys (%d of %d keys)",
        " and ".join(sorted(prefixes)),
        sum(key not in plain for key in state),
        len(state),
    )
    return plain


def _without_outer(state: Mapping[str, Item]) -> Mapping[str, Item]:
    """Leaves away a prefix that all keys share, like `model.`, where the tables know the rest."""
    shared = os.path.commonprefix(list(state)).split(".")[:-1]
    if not shared or any(map(_in_tables, state)):
        return state
    for count in range(1, len(shared) + 1):
        prefix = ".".join(shared[:count]) + "."
        plain = {key.removeprefix(prefix): item for key, item in state.items()}
        if 2 * sum(map(_in_tables, plain)) > len(plain):
            log.warning("keys are read without %s, which all %d keys of the file begin with", prefix, len(plain))
            return plain
    return state


def _in_tables(key: str) -> bool:
    key = without_wrappers(key)
    return any(path_of(key, stage) is not None for stage in (*_layouts(), ENCODER))


def without_wrappers(key: str) -> str:
    """Returns a key as the model names it, without the prefixes of PyTorch's wrappers."""
    return _WRAPPERS.sub("", key)


def to_paths(state: Mapping[str, np.ndarray], stage: str) -> dict[str, np.ndarray]:
    """Returns our flat parameters from a torch state dict.

    Kernels are views with reversed axes, nothing is copied. `stage` is a kind of model, or
    "audio_encoder"; the codec's keys are bare in a codec's file and under `base_codec.` in the
    others. Keys that the table does not know are kept under `unknown/<key>`, where `check_params`
    finds and names them. Raises UserError where two keys name one parameter (a weight norm in both
    namings, say).
    """
    params, origin = {}, {}
    for key, array in unwrapped(state).items():
        if is_ignored(key, stage):
            continue
        path, reversed_axes = path_of(key, stage) or (UNKNOWN + key, False)
        if path in params:
            raise UserError(f"{origin[path]} and {key} name the same parameter {path}; keep one of them in the file")
        params[path], origin[path] = array.T if reversed_axes else array, key
    return params


def torch_views(params: Mapping[str, Any], stage: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (torch key, array in torch's layout) for every parameter, without copying.

    Raises ValueError for paths that the stage's table does not know: the caller chooses what to
    write.
    """
    unknown = [path for path in params if key_of(path, stage) is None]
    if unknown:
        raise ValueError(f"no torch key for {_some(unknown)} in stage {stage}")
    for path, value in params.items():
        key, reversed_axes = key_of(path, stage)
        yield key, np.asarray(value).T if reversed_axes else np.asarray(value)


def to_torch(params: Mapping[str, Any], stage: str) -> dict[str, np.ndarray]:
    """Returns the torch state dict of our flat parameters, each array C-contiguous.

    The parameters are NumPy or JAX arrays. It is the inverse of `to_paths`, bit for bit; where
    torch has several names for one parameter the newest is written.
    """
    return {key: np.asarray(view, order="C") for key, view in torch_views(params, stage)}


def check_params(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], source: str) -> None:
    """Raises one UserError that names every missing, unexpected and misshapen parameter.

    At most ten names of each sort, torch's keys, are spelt out, with the count of all.

    Args:
        expected: Path -> shape in our layout.
        found: Path -> anything with a shape, as `to_paths` returns it.
        source: The file's name for the message.
    """
    if found.keys() == expected.keys() and all(tuple(found[p].shape) == tuple(s) for p, s in expected.items()):
        return
    stage = _stage_of(expected)
    missing = [_torch_name(path, stage) for path in expected if path not in found]
    unexpected = [_torch_name(path, stage) for path in found if path not in expected]
    misshapen = [
        f"{_torch_name(path, stage)} is {_torch_shape(path, found[path].shape, stage)}, "
        f"must be {_torch_shape(path, shape, stage)}"
        for path, shape in expected.items()
        if path in found and tuple(found[path].shape) != tuple(shape)
    ]
    sorts = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{len(names)} {sort}: {_some(names)}" for sort, names in sorts if names]
    if problems:
        raise UserError(
            f"{source} does not fit the model its config describes; keys " + "; ".join(problems) + ". "
            "Use the weights and the config of one and the same model"
        )


def _some(names: list[str]) -> str:
    names = ["".join(c if c.isprintable() else "?" for c in name[:MAX_NAME_LENGTH]) for name in names]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _stage_of(paths: Iterable[str]) -> str:
    """Returns the kind of model whose table knows the most of the paths, the first of several."""
    paths = list(paths)
    return max(_layouts(), key=lambda stage: sum(key_of(path, stage) is not None for path in paths))


def _known(path: str, stage: str) -> tuple[str, bool] | None:
    return key_of(path, ENCODER if path.startswith("audio_encoder/") else stage)


def _torch_name(path: str, stage: str) -> str:
    known = _known(path, stage)
    return known[0] if known else path.removeprefix(UNKNOWN)


def _torch_shape(path: str, shape: tuple[int, ...], stage: str) -> list[int]:
    known = _known(path, stage)
    return list(reversed(shape)) if known and known[1] else list(shape)
