"""One of two processes with two devices each, on a mesh in which their devices alternate.

Started by `test_hosts.py` as `python interleaved_hosts.py PORT PROCESS STORE OUT`; it writes what every row of a global
batch is and which random number it draws.
"""

import os
import sys
from pathlib import Path

BATCH = 8


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, Mesh

    from data_pipelines.loader import make_loader
    from unils_jax.training.distributed import join
    from unils_jax.training.sharding import batch_sharding, global_batch, process_rows, replicated

    port, process, store, out = sys.argv[1:]
    # Two devices in a process and collectives that start out of order would wait for each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    join(f"127.0.0.1:{port}", int(process), 2)
    first, second = (jax.local_devices(process_index=i) for i in (0, 1))
    grid = np.array([[first[0]], [second[0]], [first[1]], [second[1]]])
    mesh = Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = process_rows(mesh, BATCH)
    share = {"process_index": jax.process_index(), "process_count": 2, "rows": rows}
    loaded = next(iter(make_loader(store, "train", view="solo", batch_size=BATCH, seed=3, **share)))
    batch = global_batch(mesh, {"motion": loaded["motion"], "record": loaded["record"]})

    def of_rows(batch: dict, key: jax.Array) -> dict:
        batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
        drawn = jax.vmap(jax.random.uniform)(jax.random.split(key, BATCH))
        return {"motion": batch["motion"].sum((1, 2)), "record": batch["record"], "drawn": drawn}

    key = jax.jit(lambda: jax.random.key(0), out_shardings=replicated(mesh))()
    found = jax.jit(of_rows, out_shardings=replicated(mesh))(batch, key)
    multihost_utils.sync_global_devices("done")
    if jax.process_index() == 0:
        found = {name: np.asarray(value.addressable_data(0)) for name, value in found.items()}
        np.savez(Path(out), rows=rows, **found)


if __name__ == "__main__":
    main()
