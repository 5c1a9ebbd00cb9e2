"""Adapters apart from their base: what the dialogue stage learnt, in a separate file.

The base is a prior with its codec, named by a hash of its weights and sizes; many adapters (a style
or a language each) share one. An adapter file is a .safetensors with peft's names, LoRA factors and
audio cross-attentions, and the vectors added to the audio; its metadata hold the rest. Everything
goes by paths of parameters.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unils_jax.checkpoints.torch_files import read_tensors
from unils_jax.checkpoints.torch_keys import check_params, to_paths, to_torch
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.files import atomic_output
from unils_jax.inference.sampling import DEFAULT_SAMPLING, Sampling
from unils_jax.models.ear import EarConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.mimi import MimiConfig
from unils_jax.models.unils import LoRAConfig, UniLS, UniLSConfig
from unils_jax.motion import AUDIO_CONDITIONS, BASES
from unils_jax.nn.params import Params, abstract
from unils_jax.systems.unils.meta_cfg import MAX_SIZE

PATHS = re.compile(r"prior/((.*/)?lora_[ab]|blocks/\d+/((own|other)_)?audio_attn/.*|((own|other)_)?audio_embed)|ear/.*")
METADATA = "unils_adapter"
# Fields of the prior that say what audio it attends to; a base has none of them.
AUDIO_FIELDS = ("audio_dim", "audio_condition", "past_audio_frames", "lookahead_frames")


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter file says in addition to its weights."""

    name: str
    base: str  # `base_hash` of what it was trained on
    expression_basis: str  # of the motion, one of `BASES`
    audio_dim: int  # width of the audio features that it attends to
    lora: LoRAConfig
    logmel: LogMelConfig | None = None  # the front end; None: a published audio encoder
    audio_condition: str = "pair"  # one of `AUDIO_CONDITIONS`
    ear: EarConfig | None = None  # the ear, whose weights the adapter holds; None: another encoder
    mimi: MimiConfig | None = None  # the published encoder where it is a Mimi; None: a wav2vec2, or none
    # Frames of audio before and after a window that it attends to, see `PriorConfig`.
    past_audio_frames: int = 0
    lookahead_frames: int = 0
    sampling: Sampling = Sampling()  # how bits of the dialogue are drawn where a decode does not say


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read or is to be written."""

    info: AdapterInfo
    params: Params  # all that the dialogue has and its base lacks, by path


def split_adapter(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """Splits a dialogue's unmerged parameters into (base, adapter).

    The audio encoder is in neither.
    """
    base = {p: v for p, v in params.items() if not PATHS.fullmatch(p) and not p.startswith("audio_encoder/")}
    return base, {path: value for path, value in params.items() if PATHS.fullmatch(path)}


def base_hash(config: UniLSConfig, params: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a base.

    It covers the sizes of codec and prior and every weight but the adapter's. Training a dialogue
    leaves its base as it was, so a prior and every dialogue trained from it have one hash.
    """
    prior = asdict(config.prior.without_audio())
    for name in ("audio_condition", "past_audio_frames", "lookahead_frames"):
        del prior[name]  # says nothing of a base
    if prior["context_windows"] == 1:
        del prior["context_windows"]  # adapters that were written before know no other
    if not prior["bit_chain"]:
        del prior["bit_chain"]  # as before there were chains, so that hashes of then still name their base
    sizes = {"codec": asdict(config.codec), "prior": prior}
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    base, _ = split_adapter(params)
    for path in sorted(base):
        array = np.ascontiguousarray(base[path], np.float32)
        digest.update(f"{path} {array.shape}\n".encode())
        digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()


def save_adapter(
    path: str | os.PathLike,
    config: UniLSConfig,
    params: Mapping[str, Any],
    expression_basis: str,
    name: str,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Adapter:
    """Writes the adapter of a dialogue with unmerged parameters.

    The file is read back and compared before it appears. Raises UserError where the parameters hold
    no adapter, and where writing fails.
    """
    if not isinstance(config, UniLSConfig) or config.lora is None or config.stage != "dialogue":
        raise UserError(
            "the checkpoint holds no adapter apart from its base: adapters are written from a workdir of the dialogue "
            "stage; in a .pt or .safetensors they are merged"
        )
    prior, base = config.prior, base_hash(config, params)
    encoder = {"logmel": config.logmel, "ear": config.ear, "mimi": config.mimi}
    audio = {name: getattr(prior, name) for name in AUDIO_FIELDS}
    info = AdapterInfo(name, base, expression_basis, lora=config.lora, **encoder, **audio, sampling=sampling)
    adapter = Adapter(info, {path: np.asarray(value) for path, value in split_adapter(params)[1].items()})
    tensors = {
        re.sub(r"(audio_attn)\.", r"\1.modules_to_save.default.", key): np.ascontiguousarray(array, np.float32)
        for key, array in sorted(to_torch(adapter.params, "dialogue").items())
    }
    try:
        with atomic_output(path) as partial:
            partial.write_bytes(save(tensors, metadata={METADATA: json.dumps(asdict(info))}))
            again = read_adapter(partial)
            same = again.info == info and set(again.params) == set(adapter.params)
            if not same or any(again.params[p].tobytes() != v.tobytes() for p, v in adapter.params.items()):
                raise OSError("it does not read back as it was written")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; check the disk or choose another folder") from None
    return adapter


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Reads an adapter file.

    Raises UserError where it is missing, damaged, or no adapter of this project.
    """
    path = Path(path)
    tensors = read_tensors(path)
    try:
        with safe_open(path, framework="np") as file:
            values = json.loads((file.metadata() or {})[METADATA])
        if not isinstance(values, dict):
            raise ValueError("it must hold a dict")
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError):
        raise UserError(
            f"{path} is no adapter with its base named in the metadata; write one with `unils export --adapter FILE`"
        ) from None
    info = from_dict(AdapterInfo, values, f"{path}: adapter")
    problems = []
    if info.expression_basis not in BASES:
        problems.append(f"expression_basis must be one of {', '.join(BASES)}, got {info.expression_basis!r:.40}")
    if not (1 <= info.audio_dim <= MAX_SIZE and 1 <= info.lora.rank <= MAX_SIZE and math.isfinite(info.lora.alpha)):
        problems.append(f"audio_dim and rank must be from 1 to {MAX_SIZE} and alpha finite")
    if not (0 <= info.past_audio_frames <= MAX_SIZE and 0 <= info.lookahead_frames <= MAX_SIZE):
        problems.append(f"past_audio_frames and lookahead_frames must be from 0 to {MAX_SIZE}")
    if info.audio_condition not in AUDIO_CONDITIONS:
        problems.append(
            f"audio_condition must be one of {', '.join(AUDIO_CONDITIONS)}, got {info.audio_condition!r:.40}"
        )
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}; use the file as it was written")
    return Adapter(info, to_paths(tensors, "dialogue"))


def apply_adapter(config: UniLSConfig, params: Params, adapter: Adapter, source: str) -> tuple[UniLSConfig, Params]:
    """Builds the dialogue of a base and an adapter, not merged.

    The base is a prior, or a dialogue, whose present adapter is dropped. Raises UserError where the
    adapter was trained on another base and where a key is missing or misshapen; `source` names the
    adapter in the message.
    """
    if not isinstance(config, UniLSConfig) or config.prior is None:
        raise UserError(
            f"adapter {source} needs a prior as its base, the checkpoint is a {config.stage}; give the prior"
        )
    found = base_hash(config, params)
    if found != adapter.info.base:
        raise UserError(
            f"adapter {source} was trained on another base ({adapter.info.base[:12]!r}; this is {found[:12]!r}); give "
            "the prior that it was trained from, or its own dialogue workdir"
        )
    prior = replace(config.prior, **{name: getattr(adapter.info, name) for name in AUDIO_FIELDS})
    info = adapter.info
    config = UniLSConfig(config.codec, prior, logmel=info.logmel, lora=info.lora, ear=info.ear, mimi=info.mimi)
    params = split_adapter(params)[0] | adapter.params
    _, shapes = abstract(lambda rngs: UniLS(config, rngs=rngs))
    expected = {p: tuple(shape.shape) for p, shape in shapes.items() if not p.startswith("audio_encoder/")}
    check_params(expected, params, source)
    return config, {path: np.asarray(value, np.float32) for path, value in params.items()}


def find_adapter(checkpoint: Path, name_or_file: str | os.PathLike) -> Path:
    """Finds the file of an adapter, which is given as a .safetensors or by its name.

    A name is looked up in the folder `adapters` of a workdir, or next to a checkpoint file. Raises
    UserError that lists the known names.
    """
    path = Path(name_or_file)
    if path.suffix == ".safetensors":
        return path
    folder = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "adapters"
    named = folder / f"{name_or_file}.safetensors"
    if named.is_file():
        return named
    known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
    raise UserError(
        f"no adapter named {str(name_or_file)!r} in {folder} (known: {known}); give a name or a .safetensors"
    )
