"""Runs a stack of blocks: unrolled or as one scanned body, with or without recomputation."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import PyTree


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
        compute: Whether blocks are scanned or recomputed.
    """
    if compute.scan_layers and len(blocks) > 1:
        return _scan(blocks, x, call, values, compute.remat)
    for block, of_block in zip(blocks, values, strict=True):
        run = functools.partial(lambda block, of_block, x: call(block, x, *of_block), block, of_block)
        x = (jax.checkpoint(run) if compute.remat else run)(x)
    return x


def _scan(
    blocks: Sequence[nnx.Module], x: Array, call: Callable[..., Array], values: Sequence[tuple], remat: bool
) -> Array:
    graphdef = nnx.split(blocks[0])[0]
    of_blocks = [(nnx.split(block)[1], of_block) for block, of_block in zip(blocks, values, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *of_blocks)

    def body(x: Array, of_block: PyTree) -> tuple[Array, None]:
        weights, own_values = of_block
        return call(nnx.merge(graphdef, weights), x, *own_values), None

    # Inside a scan nothing can merge the recomputation with the first computation: a barrier
    # against it would only cost.
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if remat else body, x, stacked)[0]
