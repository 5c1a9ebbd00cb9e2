"""`unils bench gpu-smoke`: the whole path from data to motion once, on a GPU, in minutes."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.synthetic import dataset
from unils_jax.checkpoints.loading import load
from unils_jax.config import load_config
from unils_jax.errors import UserError, install_hint, one_line
from unils_jax.inference.conversations import decode
from unils_jax.training.run import train

NUM_STEPS = 3
STAGES = ("ear", "codec", "prior", "dialogue")

log = logging.getLogger(__name__)


def gpu_smoke(out: Path, configs: Mapping[str, ConfigDict] | None = None, *, allow_cpu: bool = False) -> str:
    """Makes data, trains each stage three steps from those before, decodes with the last one.

    `configs` are by stage (default: the smoke configs). Returns one line that says what ran, where
    and how long. Raises UserError where there is no GPU and where `out` holds anything;
    RuntimeError where a result is not finite.
    """
    started = time.perf_counter()
    device = find_device(allow_cpu)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty, and a smoke test starts from nothing; remove it or name another --out")
    log.info(dataset.write(out / "data", 3, minutes=0.2))
    losses, parent = {}, None
    for stage in STAGES:
        config = configs[stage] if configs else load_config(f"smoke/{stage}")
        config.update({"num_steps": NUM_STEPS, "log_every": 1, "eval_batches": 1, "checkpoint_every": NUM_STEPS})
        config.data.update({"store": str(out / "data"), "num_workers": 0})
        if config.model.get("ear") and stage == "dialogue":
            config.audio_encoder = str(out / "ear")
        metrics = train(config.to_dict(), out / stage, parent=parent)
        losses[stage] = metrics["train/loss"]
        parent = None if stage == "ear" else str(out / stage)
    model = load(out / "dialogue").model
    motion = decode(model, *np.random.default_rng(0).standard_normal((2, 80_000), np.float32) / 10)
    broken = [name for name, loss in losses.items() if not np.isfinite(loss)]
    broken += [] if np.isfinite(motion).all() else ["decode"]
    if broken:
        raise RuntimeError(f"not finite on {device.device_kind} with jax {jax.__version__}: {', '.join(broken)}")
    shown = ", ".join(f"{name} loss {loss:.3f}" for name, loss in losses.items())
    shape = " x ".join(map(str, motion.shape))
    return f"gpu-smoke passed on {device.device_kind} in {time.perf_counter() - started:.0f} s: {shown}, motion {shape}"


def find_device(allow_cpu: bool) -> jax.Device:
    """Returns the first device.

    Raises UserError, saying what to do, where it is a CPU and that is not allowed.
    """
    try:
        device = jax.devices()[0]
    except RuntimeError as error:  # JAX_PLATFORMS names one that is not there, or the driver does not fit
        text = one_line(error, 300)
        raise UserError(f"JAX finds no device ({text}); check the driver, or unset JAX_PLATFORMS") from None
    if device.platform == "cpu" and not allow_cpu:
        raise UserError(
            "JAX sees no GPU, only a CPU; on a machine with one check `nvidia-smi` and "
            f"{install_hint('cuda')}, or run on the CPU with --allow_cpu"
        )
    return device
