"""Strict numerics for every test, and the one way to the goldens."""

import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The older way from fusions to machine code: half the compile time, of which tests have more than of anything else.
# Later releases no longer have it, and XLA aborts at a flag that it does not know.
os.environ.setdefault(
    "XLA_FLAGS",
    ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + "--xla_cpu_parallel_codegen_split_count=1",
)

import jax
import numpy as np
import pytest
from ray_nodes import nodes  # noqa: F401 (fixture)
from safetensors.numpy import load_file
from tiny_runs import compile_cache, release, tiny_runs, tiny_store, unoptimised  # noqa: F401 (fixtures)

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDENS = Path(os.environ.get("UNILS_GOLDENS", Path(__file__).parent / "golden"))


@dataclass(frozen=True)
class Golden:
    """One case of the goldens: float16 inputs are cast to float32 (exact)."""

    folder: Path
    config: dict
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


@cache
def read_golden(case: str) -> Golden:
    folder = GOLDENS / case

    def arrays(name: str) -> dict[str, np.ndarray]:
        path = folder / name
        return dict(np.load(path, allow_pickle=False)) if path.exists() else {}

    weights = folder / "weights.safetensors"
    inputs = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays("inputs.npz").items()}
    return Golden(
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        inputs=inputs,
        outputs=arrays("outputs.npz"),
        weights=dict(load_file(weights)) if weights.exists() else {},
    )


@pytest.fixture(scope="session")
def golden():
    return read_golden
