"""The averaged model while it trains: validation loss, and whatever the caller's probe measures."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from unils_jax.nn.params import Params
from unils_jax.systems.base import Metrics, Objective
from unils_jax.training.config import RunConfig, stage_of
from unils_jax.training.metrics import MetricsLog
from unils_jax.training.sharding import global_batch, replicated
from unils_jax.training.step import make_eval_step

HostBatch = dict[str, np.ndarray]
Probe = Callable[[int, Params], dict[str, float]]


class Evaluation:
    """Writes rows of the splits `val` and `free` where they are due.

    `batches()` starts the same validation batches anew. `probe(step, params)` is given all parameters as host arrays,
    the trained ones averaged; every process calls it, with the same ones. Both come every so many steps as the config
    says, and after the last.
    """

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        graphdef: nnx.GraphDef,
        objective: Objective,
        batches: Callable[[], Iterator[HostBatch]],
        probe: Probe | None,
    ):
        self.config, self.mesh, self.batches = config, mesh, batches
        self.probe = probe if config.probe_every else None
        self._evaluate = make_eval_step(stage_of(config), graphdef, objective, mesh=mesh)
        self._whole = jax.jit(lambda params: params, out_shardings=replicated(mesh))

    def is_due(self, step: int) -> bool:
        """Whether anything is to be looked at after this step."""
        return self._validates(step) or self._probes(step)

    def _validates(self, step: int) -> bool:
        return step % self.config.eval_every == 0 or step == self.config.num_steps

    def _probes(self, step: int) -> bool:
        return self.probe is not None and (step % self.config.probe_every == 0 or step == self.config.num_steps)

    def write(self, step: int, ema: Params, frozen: Params, host_frozen: Params, metrics_log: MetricsLog) -> None:
        """Evaluates what is due. `frozen` are the parameters that the step uses, `host_frozen` the same in float32."""
        if self._validates(step):
            rows = (self._evaluate(ema, frozen, device_batch(self.mesh, batch)) for batch in self.batches())
            metrics_log.write(step, "val", mean_metrics(rows))
        if self._probes(step):
            metrics_log.write(step, "free", self.probe(step, host_frozen | jax.device_get(self._whole(ema))))


def device_batch(mesh: Mesh, batch: HostBatch) -> dict[str, jax.Array]:
    """The global batch of which this process holds its part; record ids stay on the host."""
    return global_batch(mesh, {name: array for name, array in batch.items() if name != "record"})


def mean_metrics(metrics: Iterator[Metrics]) -> dict[str, float]:
    """The mean of every metric over the equally large batches that have it."""
    rows = [jax.device_get(row) for row in metrics]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
