"""Eight simulated devices against one: the same updates of a stage, in a process of its own.

`run` writes a case and starts this file on it; the program prints what it found as JSON, the test judges it.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

NUM_DEVICES, NUM_UPDATES, RATE = 8, 5, 1e-3
# Of gradients, relative to the tensor's largest entry; of weights after the last update; and how far each must get.
GRADIENTS, WEIGHTS, MOVED = 1e-5, 1e-4, 1e-3
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={NUM_DEVICES}"


def bytes_per_device(tree: Any) -> int:
    """Counts the bytes that the tree's arrays take on one device.

    Shapes with shardings count as the arrays that they describe.
    """
    import jax

    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def run(
    folder: Path, config: Any, params: dict, batch: dict, meshes: list[tuple[int, int, int]], **options: Any
) -> dict:
    """What `measure` finds for every (data, fsdp, accumulate_steps). `options`: `head`, the stand-in's for the codec;
    `min_cut_size`; `slices` that the devices are taken for; `quick`, half the compile time for slower programs."""
    for name, arrays in (("params", params), ("batch", batch)):
        save_file({path: np.ascontiguousarray(value) for path, value in arrays.items()}, folder / f"{name}.safetensors")
    case = {"config": asdict(config), "meshes": meshes, **options}
    (folder / "case.json").write_text(json.dumps(case))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    done = subprocess.run(
        [sys.executable, __file__, folder], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_alike(found: dict) -> None:
    """One device and the mesh learn the same, and the mesh keeps its layout without compiling again."""
    assert found["gradient_error"] <= GRADIENTS, found
    assert found["weight_error"] <= WEIGHTS, found
    assert found["least_moved"] > MOVED, found
    assert found["frozen_kept"] and found["layout_kept"] and found["born_alike"], found
    assert found["compiled"] == 1, found


def main(folder: Path) -> None:
    """The program: one device first, then every mesh against it."""
    import jax

    from unils_jax.config import from_dict
    from unils_jax.face.standin import standin_asset
    from unils_jax.models.unils import UniLS, UniLSConfig
    from unils_jax.nn.params import abstract
    from unils_jax.systems.base import Objective
    from unils_jax.systems.registry import STAGES
    from unils_jax.training import sharding
    from unils_jax.training.optimizer import OptimizerConfig

    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    case = json.loads((folder / "case.json").read_text())
    if case.get("quick"):
        jax.config.update("jax_disable_most_optimizations", True)
    sharding.MIN_CUT_SIZE = case.get("min_cut_size", sharding.MIN_CUT_SIZE)
    config = from_dict(UniLSConfig, case["config"])
    params, batch = (load_file(folder / f"{name}.safetensors") for name in ("params", "batch"))
    graphdef, _ = abstract(lambda rngs: UniLS(config, rngs=rngs))
    objective = Objective(head=standin_asset() if case.get("head") else None)
    optimizer = OptimizerConfig(learning_rate=RATE, warmup_steps=0, decay_steps=1 << 30)
    stage = STAGES[config.stage]
    one = updates(stage, graphdef, objective, optimizer, params, batch, None)
    found = {}
    for data, fsdp, accumulate_steps in case["meshes"]:
        mesh = sharding.make_mesh(sharding.MeshConfig(data, fsdp, case.get("slices", 0)))
        many = updates(stage, graphdef, objective, optimizer, params, batch, mesh, accumulate_steps)
        found[f"{data},{fsdp},{accumulate_steps}"] = measure(one, many, stage.split(params)[0]) | {
            "born_alike": born_alike(mesh, config, stage.trainable),
        }
    print(json.dumps(found))


def updates(stage, graphdef, objective, optimizer, params, batch, mesh, accumulate_steps: int = 1) -> dict[str, Any]:
    """Gradients of the first update, weights after the last, and how the state lay."""
    import jax
    import jax.numpy as jnp

    from unils_jax.training.sharding import global_batch, replicated, shard_params, shardings
    from unils_jax.training.step import init_state, make_train_step

    trainable, frozen = stage.split(params)
    key = jax.random.key(0)
    if mesh is None:
        trainable, frozen = (jax.tree.map(jnp.asarray, part) for part in (trainable, frozen))
    else:
        trainable, frozen = shard_params(mesh, trainable), shard_params(mesh, frozen)
        batch, key = global_batch(mesh, batch), jax.device_put(key, replicated(mesh))
    state = init_state(trainable, optimizer, mesh=mesh)
    size = bytes_per_device(state)
    step = make_train_step(stage, graphdef, objective, optimizer, accumulate_steps=accumulate_steps, mesh=mesh)
    for i in range(NUM_UPDATES):
        state, metrics = step(state, frozen, batch, key)
        if i == 0:  # Adam's first mean is a tenth of the clipped gradient
            grads, norm = jax.tree.map(np.asarray, state.opt_state[0].mu), float(metrics["grad_norm"])
    kept = mesh is None or all(
        jax.tree.leaves(jax.tree.map(lambda x, to: x.sharding == to, state, shardings(mesh, state)))
    )
    return {
        "grads": {path: 10 * value * max(norm, 1.0) for path, value in grads.items()},
        "params": {path: np.asarray(value) for path, value in state.params.items()},
        "frozen_kept": all(np.array_equal(value, params[path]) for path, value in frozen.items()),
        "layout_kept": kept,
        "compiled": step._cache_size(),
        "bytes": size,
    }


def measure(one: dict[str, Any], many: dict[str, Any], before: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest errors over all tensors (gradients relative to the tensor's largest entry) and the least movement."""
    relative = {
        path: float(np.abs(many["grads"][path] - grad).max() / max(np.abs(grad).max(), 1e-30))
        for path, grad in one["grads"].items()
    }
    worst = max(relative, key=relative.get)
    errors = [np.abs(many["params"][path] - value).max() for path, value in one["params"].items()]
    moved = [np.abs(many["params"][path] - value).max() for path, value in before.items()]
    kept = {name: many[name] for name in ("frozen_kept", "layout_kept", "compiled", "bytes")}
    return {
        "gradient_error": relative[worst],
        "worst_gradient": worst,
        "weight_error": float(max(errors)),
        "least_moved": float(min(moved)),
        "one_device_bytes": one["bytes"],
        **kept,
    }


def born_alike(mesh, config, pattern: str) -> bool:
    """Whether parameters that are drawn where they lie have the values that one device draws."""
    import jax

    from unils_jax.models.unils import UniLS
    from unils_jax.training.sharding import init_sharded, param_shardings

    def build(rngs):
        return UniLS(config, rngs=rngs)

    born = init_sharded(mesh, build, 3, pattern)
    alone = init_sharded(jax.make_mesh((1, 1), mesh.axis_names, devices=jax.devices()[:1]), build, 3, pattern)
    laid = param_shardings(mesh, born)
    return born.keys() == alone.keys() and all(
        np.array_equal(value, alone[path]) and value.sharding == laid[path] for path, value in born.items()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
