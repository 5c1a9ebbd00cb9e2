"""Trains the three stages in float32 and in bfloat16 from the same seeds, batches and noise.

At the size of the smoke configs, three seeds, on a store of `unils data synth` (an hour and a
half on two cores):

    python -m unils_jax.benchmarks.precision_runs data/synthetic report.json
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.loader import make_loader
from data_pipelines.store.reader import Store
from unils_jax.config import load_config
from unils_jax.face.standin import standin_asset
from unils_jax.inference.sampling import DTYPES
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import Params, abstract, split
from unils_jax.systems.unils.system import CODEC, DIALOGUE, PRIOR
from unils_jax.training.config import RunConfig, make_objective, run_config
from unils_jax.training.step import hold_frozen, init_state, make_eval_step, make_train_step


def with_dtype(values: dict[str, Any], dtype: str, seed: int) -> RunConfig:
    """Returns the config at this precision and seed."""
    return run_config({**values, "seed": seed, "train": {**values["train"], "compute_dtype": dtype}})


class Precision:
    """Compiled steps of one stage in one precision, for any number of seeds."""

    def __init__(self, values: dict[str, Any], dtype: str):
        self.values, self.dtype = values, dtype
        config = with_dtype(values, dtype, 0)
        self.stage = {stage.name: stage for stage in (CODEC, PRIOR, DIALOGUE)}[config.stage]
        # One compilation serves all seeds: a seed changes weights and batches, not shapes.
        head = standin_asset() if config.head else None
        objective = make_objective(config, head)
        graphdef, _ = abstract(lambda rngs: UniLS(config.model, rngs=rngs))
        self.step = make_train_step(self.stage, graphdef, objective, config.optimizer)
        self.evaluate = make_eval_step(self.stage, graphdef, objective)

    def train(self, seed: int, parent: Params) -> tuple[float, Params]:
        """Trains from a parent's weights; returns the validation loss and all weights, averaged.

        The loss is that of the averaged weights after the last step.
        """
        config = with_dtype(self.values, self.dtype, seed)
        store = config.data.store
        params = split(UniLS(config.model, rngs=nnx.Rngs(seed)))[1]
        mean, std = Store(store).statistics()
        statistics = {"codec/motion_mean": jnp.asarray(mean), "codec/motion_std": jnp.asarray(std)}
        trainable, frozen = self.stage.split({**params, **statistics, **parent})
        state, held = init_state(trainable, config.optimizer), hold_frozen(frozen, self.dtype)
        view = {"view": self.stage.windows, "batch_size": config.data.batch_size, "window": config.model.window}
        key = jax.random.key(seed)
        for batch in islice(iter(make_loader(store, "train", seed=seed, **view)), config.num_steps):
            state, metrics = self.step(state, held, batch, key)
        assert metrics["finite"] == 1
        batches = islice(iter(make_loader(store, "val", seed=0, **view)), config.eval_batches)
        # Validation batches have one seed: every run is measured on the same ones.
        losses = [float(self.evaluate(state.ema, held, batch)["loss"]) for batch in batches]
        return float(np.mean(losses)), {**frozen, **state.ema}


def compare(
    stages: dict[str, dict[str, Any]], seeds: tuple[int, ...], report: Path | None = None
) -> dict[str, dict[str, list[float]]]:
    """Returns validation losses by stage and precision, one a seed.

    Both precisions start from the parent that was trained in float32. `report` is written after
    every stage.
    """
    losses: dict[str, dict[str, list[float]]] = {}
    parents: list[Params] = [{} for _ in seeds]
    for name, values in stages.items():
        runs = {}
        for dtype in DTYPES:
            precision = Precision(values, dtype)
            runs[dtype] = [precision.train(seed, parent) for seed, parent in zip(seeds, parents, strict=True)]
        losses[name] = {dtype: [loss for loss, _ in runs[dtype]] for dtype in DTYPES}
        # Both precisions of the next stage start alike, so that only its own precision differs.
        parents = [weights for _, weights in runs["float32"]]
        if report is not None:
            report.write_text(json.dumps(losses, indent=1))
    return losses


def smoke_configs(store: Path | str, **changes: int) -> dict[str, dict[str, Any]]:
    """Returns the values of the three smoke configs on this store, `changes` made in each."""
    configs = {}
    for stage in (CODEC.name, PRIOR.name, DIALOGUE.name):
        config = load_config(f"smoke/{stage}")
        config.data.store = str(store)
        config.update(changes)
        configs[stage] = config.to_dict()
    return configs


if __name__ == "__main__":
    compare(smoke_configs(sys.argv[1]), (0, 1, 2), Path(sys.argv[2]))
