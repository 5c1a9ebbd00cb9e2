"""The loaders of a run: training batches of this process, and validation batches."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from data_pipelines.loader import make_loader
from data_pipelines.mixture import parse_stores
from data_pipelines.speech_loader import make_speech_loader, parse_sets
from data_pipelines.store.reader import Store
from unils_jax.errors import UserError
from unils_jax.systems.base import Stage, window_of
from unils_jax.training.config import RunConfig
from unils_jax.training.loop import Data
from unils_jax.training.sharding import process_batch_size, process_rows

Validation = Callable[[], Iterator[dict[str, np.ndarray]]]

log = logging.getLogger(__name__)


def make_data(config: RunConfig, stage: Stage, mesh: Mesh | AbstractMesh) -> tuple[Data, Validation]:
    """Makes the loader of the stage's view, and a function that starts the validation batches anew.

    Raises UserError where the batch does not divide over the devices, and where the data's
    expression basis is not the config's.
    """
    process_batch_size(config.data.batch_size, mesh, config.train.accumulate_steps)
    if stage.windows == "speech":
        return _speech_data(config, stage, mesh)
    data = config.data
    stores = parse_stores(data.store, data.stores)
    options: dict[str, Any] = {"view": stage.windows, "batch_size": data.batch_size, "centre_head": data.centre_head}
    options |= {"max_bad_records": data.max_bad_records, "window": window_of(config.model), **_share(config, mesh)}
    options["features"] = config.audio_features
    loader = make_loader(stores, "train", seed=config.seed, num_workers=data.num_workers, **options)
    check_basis(config, loader.mixture.expression_basis)
    with_val = [pair for pair, store in zip(stores, loader.mixture.stores, strict=True) if len(store.lengths("val"))]
    if not with_val:
        return loader, _no_validation(stores)
    held_out = make_loader(with_val, "val", seed=0, **options)
    return loader, lambda: islice(iter(held_out), config.eval_batches)


def _no_validation(stores: Sequence[tuple[str, float]]) -> Validation:
    """Returns no validation batches, and says so: a set of one recording has none to hold out."""
    named = ", ".join(path for path, _ in stores)
    log.warning("%s: the val split is empty, so this run writes no validation loss", named)
    return lambda: iter(())


def _share(config: RunConfig, mesh: Mesh | AbstractMesh) -> dict[str, Any]:
    """Returns which rows of each batch are this process's: all, in a dry run without devices."""
    if isinstance(mesh, AbstractMesh):
        return {"process_index": 0, "process_count": 1}
    rows = process_rows(mesh, config.data.batch_size)
    return {"process_index": jax.process_index(), "process_count": jax.process_count(), "rows": rows}


def check_basis(config: RunConfig, expression_basis: str) -> None:
    """Raises UserError where the data's expression basis is not the one that the config expects."""
    if expression_basis != config.expression_basis:
        where = config.data.store or ", ".join(config.data.stores)
        raise UserError(
            f"{where} holds motion of the {expression_basis!r} basis, the config expects "
            f"{config.expression_basis!r}; set --config.expression_basis={expression_basis} or use another store"
        )


def _speech_data(config: RunConfig, stage: Stage, mesh: Mesh | AbstractMesh) -> tuple[Data, Validation]:
    data = config.data
    settings: dict[str, Any] = {"batch_size": data.batch_size, "clip_step_s": data.clip_step_s}
    settings |= _share(config, mesh)
    settings |= {} if stage.view_settings is None else stage.view_settings(config)
    sets, stores = parse_sets(data.sets), store_weights(config)
    loader = make_speech_loader(sets, stores, "train", seed=config.seed, **settings)
    if not sets and not any(len(Store(path).lengths("val")) for path, _ in stores):
        return loader, _no_validation(stores)
    held_out = make_speech_loader(sets, stores, "val", seed=0, **settings)
    return loader, lambda: islice(iter(held_out), config.eval_batches)


def store_weights(config: RunConfig) -> list[tuple[str, float]]:
    """Returns the stores of a run of speech clips and their weights, none where it has sets alone.

    Raises UserError where they hold motion of another basis.
    """
    data = config.data
    stores = parse_stores(data.store, data.stores) if data.store or data.stores else []
    for path, _ in stores:
        basis = Store(path).expression_basis
        if basis != config.expression_basis:
            raise UserError(f"{path} holds motion of the {basis!r} basis; set --config.expression_basis={basis}")
    return stores
