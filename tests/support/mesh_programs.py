"""What compiled programs do on eight simulated devices, in a process of its own: `python mesh_programs.py NAME`.

The program prints what it found as JSON, the test judges it.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

NUM_DEVICES = 8
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={NUM_DEVICES}"


def found_by(name: str) -> dict[str, Any]:
    """What the part `name` of this file found on eight devices."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def convolution() -> dict[str, Any]:
    """FLOP a device of the positional convolution, and how far the mesh is from one device."""
    import jax
    import numpy as np
    from flax import nnx

    from unils_jax.models.wav2vec2 import PositionalConv
    from unils_jax.nn.params import merge, split
    from unils_jax.nn.stack import FLOAT32
    from unils_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, param_shardings, replicated

    mesh = make_mesh(MeshConfig(2, 4))
    graphdef, params = split(PositionalConv(64, 16, 4, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).standard_normal((16, 20, 64), np.float32)
    laid = {path: param_shardings(mesh, {f"a/{path}": value})[f"a/{path}"] for path, value in params.items()}
    on_mesh = jax.device_put(params, laid), jax.device_put(x, batch_sharding(mesh))

    def program(compute):
        def run(params, x):
            loss = lambda params, x: (merge(graphdef, params)(x, compute) ** 2).sum()  # noqa: E731
            return merge(graphdef, params)(x, compute), jax.grad(loss)(params, x)

        return jax.jit(run)

    alone, alone_grads = program(FLOAT32)(params, x)
    out, grads = program(replace(FLOAT32, rows=batch_sharding(mesh)))(*on_mesh)
    grads = jax.device_put(grads, replicated(mesh))
    flops = lambda compute, *args: program(compute).lower(*args).compile().cost_analysis()["flops"]  # noqa: E731
    return {
        "error": float(np.abs(np.asarray(out) - np.asarray(alone)).max()),
        "gradient_error": max(
            float(np.abs(np.asarray(grads[path]) - g).max() / np.abs(g).max()) for path, g in alone_grads.items()
        ),
        "flops": flops(replace(FLOAT32, rows=batch_sharding(mesh)), *on_mesh),
        "flops_of_the_compiler_s_own_cut": flops(FLOAT32, *on_mesh),
        "flops_of_one_device": flops(FLOAT32, params, x),
    }


def dialogue() -> dict[str, Any]:
    """The collectives of the dialogue's step, cut over data and fsdp."""
    from bench_models import tiny_run

    from unils_jax.benchmarks.train import compile_step
    from unils_jax.nn.params import abstract
    from unils_jax.systems.base import Objective
    from unils_jax.systems.registry import system_of_config
    from unils_jax.training import sharding

    sharding.MIN_CUT_SIZE = 64
    run = tiny_run("dialogue")
    run = replace(run, data=replace(run.data, batch_size=NUM_DEVICES), mesh=sharding.MeshConfig(2, 4))
    _, shapes = abstract(system_of_config(run.model).builder(run.model))
    hlo = compile_step(run, Objective()).program.as_text()
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(", hlo)
    return {
        "parameters": sorted({tuple(sorted(shape.shape)) for shape in shapes.values()}),
        "gathered": sorted({tuple(sorted(map(int, dims.split(",")))) for dims in gathered if dims}),
        "all_to_all": len(re.findall(r" all-to-all(?:-start)?\(", hlo)),
    }


if __name__ == "__main__":
    print(json.dumps({"convolution": convolution, "dialogue": dialogue}[sys.argv[1]]()))
