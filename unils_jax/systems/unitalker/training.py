"""What `unils train` does for UniTalker alone: its data, what the model takes of them and of a parent, its spaces."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.mixture import parse_stores
from data_pipelines.speech_loader import SpeechLoader, make_speech_loader, parse_sets
from data_pipelines.store.reader import Store
from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset
from unils_jax.models.unils import ModelConfig
from unils_jax.motion import MOTION_KIND
from unils_jax.nn.params import Params
from unils_jax.systems.unitalker.annotations import (
    BLENDSHAPES,
    FLAME_PARAMETERS,
    VERTEX_LISTS,
    Space,
    load_spaces,
    motion_space,
)
from unils_jax.systems.unitalker.model import UniTalkerConfig
from unils_jax.training.checkpoint import has_checkpoint
from unils_jax.training.config import RunConfig
from unils_jax.training.sharding import init_sharded, process_batch_size

IDENTITIES = "decoder/identity_embed"


def inherit(config: RunConfig, workdir: Path, parent: str | None) -> tuple[RunConfig, Checkpoint | None]:
    """The config with the sizes of the model that the run goes on with, and the parent's checkpoint where it begins.

    A workdir's own model comes first, then the parent's, of which rates and dropout are the config's.
    """
    ours = config.model.unitalker
    if ours is None:
        raise UserError("the unitalker stage needs model.unitalker; see configs/unitalker.py")
    if has_checkpoint(workdir):
        saved = _saved_model(workdir / "config.json")
        return (config if saved is None or ours.kinds else replace(config, model=saved)), None
    if parent is None:
        return config, None
    checkpoint = load(parent, stage="unitalker")
    sizes = replace(checkpoint.config.unitalker, rates=ours.rates, dropout=ours.dropout)
    return replace(config, model=ModelConfig(codec=None, unitalker=sizes)), checkpoint


def _saved_model(path: Path) -> ModelConfig | None:
    try:
        return from_dict(ModelConfig, json.loads(path.read_text())["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # check_workdir tells of it


def make_speech_data(config: RunConfig, mesh: Any) -> tuple[SpeechLoader, Callable[[], Any]]:
    """As `make_data`, of sets and stores."""
    data = config.data
    process_batch_size(data.batch_size, mesh, config.train.accumulate_steps)
    settings = {
        "batch_size": data.batch_size,
        "clip_step_s": data.clip_step_s,
        "normalize": config.model.unitalker.wav2vec2 is not None,
        "as_pivot": config.talker.as_pivot,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    sets, stores = parse_sets(data.sets), store_weights(config)
    loader = make_speech_loader(sets, stores, "train", seed=config.seed, **settings)
    held_out = make_speech_loader(sets, stores, "val", seed=0, **settings)
    return loader, lambda: islice(iter(held_out), config.eval_batches)


def store_weights(config: RunConfig) -> list[tuple[str, float]]:
    """The stores of a run, none where it has sets alone. Raises UserError where they hold motion of another basis."""
    data = config.data
    stores = parse_stores(data.store, data.stores) if data.store or data.stores else []
    for path, _ in stores:
        basis = Store(path).expression_basis
        if basis != config.expression_basis:
            raise UserError(f"{path} holds motion of the {basis!r} basis; set --config.expression_basis={basis}")
    return stores


def settle(config: RunConfig, data: SpeechLoader, parent: Checkpoint | None) -> RunConfig:
    """The config with a head for every kind of the data, and a row for each of their subjects.

    Kinds that the model has already stay as they are, but for a PCA that the parent's file leaves out. Raises UserError
    where the data's numbers do not fit them.
    """
    ours = config.model.unitalker
    sizes = dict(zip(ours.kinds, zip(ours.dims, ours.components, strict=True), strict=True))
    for kind, dim in data.kinds.items():
        rows = len(data.pca[kind][0]) if config.talker.use_pca and kind in data.pca else 0
        if rows and parent is not None and f"pca/{kind}/mean" not in parent.params and sizes.get(kind, (0, 0))[1]:
            sizes[kind] = (sizes[kind][0], rows)
        if sizes.setdefault(kind, (dim, rows))[0] != dim:
            raise UserError(f"the data have {dim} numbers a frame of {kind}, the model {sizes[kind][0]}; rename one")
    rows = ours.num_identities
    if not rows or not config.talker.as_pivot:
        rows = data.num_identities
    dims, components = zip(*sizes.values(), strict=True)
    model = replace(ours, kinds=tuple(sizes), dims=dims, components=components, num_identities=rows)
    return replace(config, model=ModelConfig(codec=None, unitalker=model))


def fresh_talker(
    config: RunConfig, mesh: Any, shapes: Params, data: SpeechLoader, parent: Checkpoint | None, resumes: bool
) -> Callable[[], Params]:
    """As `make_fresh`: the parent's parameters, the data's PCA, the published encoder, fresh ones.

    With another number of identities than the parent's, every row becomes its last one, known subjects' too: the
    release's rule. Heads that the parent lacks begin at zero. Raises UserError where a kind's PCA is nowhere.
    """
    model = config.model.unitalker
    given = {} if resumes else _inherited(shapes, parent) | _bases(model, data, parent)
    if not (resumes or parent) and config.audio_encoder:
        given |= _published(config)

    def fresh() -> Params:
        missing = [path for path in shapes if path not in given]
        pattern = "|".join(path.replace(".", r"\.") for path in missing)
        return init_sharded(mesh, config.model.build, config.seed, pattern) | given

    return fresh


def _inherited(shapes: Params, parent: Checkpoint | None) -> Params:
    if parent is None:
        return {}
    params = {path: np.asarray(value) for path, value in parent.params.items() if not path.startswith("pca/")}
    table, wanted = params[IDENTITIES], shapes[IDENTITIES].shape
    if table.shape != wanted:
        params[IDENTITIES] = np.repeat(table[-1:], wanted[0], axis=0)
    return {path: value for path, value in params.items() if path in shapes}


def _bases(model: UniTalkerConfig, data: SpeechLoader, parent: Checkpoint | None) -> Params:
    """Components and means of every kind with a PCA, the parent's before the data's."""
    given: Params = {}
    for kind, components in zip(model.kinds, model.components, strict=True):
        names = [f"pca/{kind}/{name}" for name in ("components", "mean")]
        if not components:
            continue
        if parent is not None and names[0] in parent.params:
            given |= {name: np.asarray(parent.params[name]) for name in names}
        elif kind in data.pca:
            given |= dict(zip(names, data.pca[kind], strict=True))
        else:
            raise UserError(f"{kind} has a PCA of {components} components, but its set has no pca.npz; put it there")
    return given


def _published(config: RunConfig) -> Params:
    family = "wav2vec2" if config.model.unitalker.wavlm is None else "wavlm"
    encoder, params = load_audio_encoder(config.audio_encoder, family)
    if encoder != config.model.unitalker.audio_encoder:
        raise UserError(f"{config.audio_encoder} has other sizes than the config's audio encoder: {encoder}")
    return {path.replace("audio_encoder/", "speech_encoder/", 1): value for path, value in params.items()}


def spaces_of(config: RunConfig, head: FlameAsset | None) -> dict[str, Space]:
    """The spaces of the model's kinds, as far as the config names assets: `talker.resources` for the release's kinds,
    `head` for our motion and for FLAME parameters."""
    kinds = config.model.unitalker.kinds
    spaces = {MOTION_KIND: motion_space(head)} if head is not None and MOTION_KIND in kinds else {}
    flame = config.head if config.head != "standin" else ""
    return spaces | released_spaces(kinds, config.talker.resources, flame)


def released_spaces(kinds: tuple[str, ...], resources: str, flame: str) -> dict[str, Space]:
    """The spaces of those kinds that the release has assets for, in the folder `resources`; of FLAME parameters with
    the model file `flame`. None where the folder's name is empty."""
    if not resources:
        return {}
    known = tuple(kind for kind in kinds if kind in {*VERTEX_LISTS, *BLENDSHAPES})
    if FLAME_PARAMETERS in kinds and flame:
        known += (FLAME_PARAMETERS,)
    return load_spaces(Path(resources), known, Path(flame) if flame else None)
