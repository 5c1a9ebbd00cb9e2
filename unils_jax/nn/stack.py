"""Runs a stack of blocks: unrolled or as one scanned body, with or without recomputation."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

# What stays of a block for its backward pass besides the input: nothing, the results of all
# products, or those of products with weights, moved to the host's memory.
REMAT_POLICIES = {
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


@dataclass(frozen=True)
class Compute:
    """How a stack of blocks is computed; beyond rounding, only `dtype` changes results."""

    # Of activations and of the weights as they are used. Softmax, norms, quantiser and losses are
    # float32 whatever it says.
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # keeps a block's input only and computes it again in the backward pass
    # Compiles one block and loops over stacked weights; drop-path, LoRA and drawn values stay the
    # same.
    scan_layers: bool = False
    remat_policy: str = "nothing_saveable"  # what remat keeps besides, a key of REMAT_POLICIES
    # How the leading axis of activations lies on the devices of a mesh. None: one device.
    rows: NamedSharding | None = None

    def in_float32(self) -> "Compute":
        """Returns float32 on the same devices, for a part whose results must not change."""
        return Compute(rows=self.rows)

    def exact(self) -> contextlib.AbstractContextManager:
        """Returns a context in which float32 products are float32 on every device.

        By default a TPU rounds their operands to bfloat16 and a GPU to TF32.
        """
        if jnp.dtype(self.dtype) != jnp.float32:
            return contextlib.nullcontext()
        return jax.default_matmul_precision("highest")

    def checkpoint(self, function: Callable, **options: bool) -> Callable:
        """Returns the function, recomputed in the backward pass where `remat` says so."""
        if not self.remat:
            return function
        return jax.checkpoint(function, policy=REMAT_POLICIES[self.remat_policy], **options)

    def keep_rows(self, x: Array) -> Array:
        """Leaves `x` cut along its rows.

        Left to itself, the compiler follows parameters that are cut over `fsdp` and moves
        activations instead of weights.
        """
        if self.rows is None or x.shape[0] % self.rows.mesh.size:
            return x
        return jax.lax.with_sharding_constraint(x, self.rows)

    def by_rows(self, function: Callable[..., Array], x: Array, *whole: Array) -> Array:
        """Returns `function(x, *whole)`, which every device computes for the rows that it holds."""
        if self.rows is None or x.shape[0] % self.rows.mesh.size:
            return function(x, *whole)
        specs = (self.rows.spec, *[PartitionSpec()] * len(whole))
        mapped = jax.shard_map(function, mesh=self.rows.mesh, in_specs=specs, out_specs=self.rows.spec)
        return mapped(x, *whole)


FLOAT32 = Compute()


def run_blocks(
    blocks: Sequence[nnx.Module], x: Array, call: Callable[..., Array], values: Sequence[tuple], compute: Compute
) -> Array:
    """Computes `x = call(block, x, *values)` for block after block.

    Scanned blocks must have one structure; what differs between them, other than weights, must be
    in `values`.

    Args:
        blocks: The modules, in order.
        x: Input of the first one.
        call: Applies one block.
        values: For each block a tuple of arrays, numbers or Nones.
        compute: Whether blocks are scanned or recomputed, and where rows lie.
    """
    x = compute.keep_rows(x)
    if compute.scan_layers and len(blocks) > 1:
        return _scan(blocks, x, call, values, compute)
    for block, of_block in zip(blocks, values, strict=True):
        run = functools.partial(lambda block, of_block, x: call(block, x, *of_block), block, of_block)
        x = compute.keep_rows(compute.checkpoint(run)(x))
    return x


def _scan(
    blocks: Sequence[nnx.Module], x: Array, call: Callable[..., Array], values: Sequence[tuple], compute: Compute
) -> Array:
    graphdef = nnx.split(blocks[0])[0]
    of_blocks = [(nnx.split(block)[1], of_block) for block, of_block in zip(blocks, values, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *of_blocks)

    def body(x: Array, of_block: PyTree) -> tuple[Array, None]:
        weights, own_values = of_block
        return compute.keep_rows(call(nnx.merge(graphdef, weights), x, *own_values)), None

    # Inside a scan nothing can merge the recomputation with the first computation: a barrier
    # against it would only cost.
    return jax.lax.scan(compute.checkpoint(body, prevent_cse=False), x, stacked)[0]
