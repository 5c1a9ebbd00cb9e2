"""How a stack of blocks is run: in which dtype, what is kept for the backward pass, unrolled or as one scanned body."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


@dataclass(frozen=True)
class Compute:
    """`dtype` is that of activations and of the weights as they are used; softmax, norms, quantiser and losses are
    float32 whatever it says. `remat` keeps a block's input only and computes the block again in the backward pass.
    `scan_layers` compiles one block and loops over stacked weights; drop-path, LoRA and drawn values stay the same."""

    dtype: Any = jnp.float32
    remat: bool = False
    scan_layers: bool = False


FLOAT32 = Compute()


def run_blocks(
    blocks: Sequence[nnx.Module], x: Array, call: Callable[..., Array], values: Sequence[tuple], compute: Compute
) -> Array:
    """`x = call(block, x, *values)` for block after block; `values` holds a tuple of arrays, numbers or Nones a block.

    Scanned blocks must be of one structure; what differs between them beside their weights stands in `values`.
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

    def body(x: Array, of_block: Any) -> tuple[Array, None]:
        weights, own_values = of_block
        return call(nnx.merge(graphdef, weights), x, *own_values), None

    # Inside a scan nothing can merge the recomputation with the first computation: the barrier would only cost.
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if remat else body, x, stacked)[0]
