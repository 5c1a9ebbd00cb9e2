"""LoRA as surgery on an untouched model.

A Linear gains two thin factors; its kernel and bias stay where they were.
"""

import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from unils_jax.nn.layers import Linear, dropout
from unils_jax.nn.params import Params


class LoRALinear(Linear):
    """`Linear(x) + alpha/rank * dropout(x) @ lora_a @ lora_b`.

    Dropout acts only where a key is given.
    """

    def __init__(self, base: Linear, *, rank: int, alpha: float, dropout_rate: float, rngs: nnx.Rngs):
        self.kernel, self.bias = base.kernel, base.bias
        in_dim, out_dim = base.kernel.shape
        bound = in_dim**-0.5
        self.lora_a = nnx.Param(jax.random.uniform(rngs.params(), (in_dim, rank), jnp.float32, -bound, bound))
        # Zero: the adapted layer starts as the base layer is.
        self.lora_b = nnx.Param(jnp.zeros((rank, out_dim)))
        self.scale = alpha / rank
        self.dropout_rate = dropout_rate

    def __call__(self, x: Float[Array, "*B I"], key: Key[Array, " b"] | None = None) -> Float[Array, "*B O"]:
        """Applies the layer; `key` turns dropout of the low-rank branch on."""
        low_rank = (
            dropout(x, self.dropout_rate, key) @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype)
        )
        return Linear.__call__(self, x) + self.scale * low_rank


def add_lora(
    model: nnx.Module, pattern: str, *, rank: int, alpha: float, dropout_rate: float, rngs: nnx.Rngs
) -> list[str]:
    """Replaces every Linear whose path matches `pattern`, in place; returns their paths.

    Args:
        model: The model to change.
        pattern: Regular expression that a path ("blocks/0/mlp/up") must match in full.
        rank: Width of the factors.
        alpha: The low-rank product is scaled by alpha / rank.
        dropout_rate: Of the input of the low-rank branch.
        rngs: Draws the first factor; the second one is zero.
    """
    found = [
        path
        for path, node in nnx.iter_modules(model)
        if isinstance(node, Linear) and re.fullmatch(pattern, "/".join(map(str, path)))
    ]
    # Collected before any change: the walk must not meet the new layers, which are Linears too.
    for path in found:
        parent = model
        for part in path[:-1]:
            parent = parent[part] if isinstance(part, int) else getattr(parent, part)
        base = getattr(parent, path[-1])
        lora = LoRALinear(base, rank=rank, alpha=alpha, dropout_rate=dropout_rate, rngs=rngs)
        setattr(parent, path[-1], lora)
    return ["/".join(map(str, path)) for path in found]


def merge_lora(params: Params, scale: float) -> Params:
    """Returns parameters with `kernel + scale * lora_a @ lora_b` as kernels, without factors."""
    merged = {path: value for path, value in params.items() if not path.endswith(("/lora_a", "/lora_b"))}
    for path, lora_a in params.items():
        if path.endswith("/lora_a"):
            layer = path.removesuffix("/lora_a")
            delta = jnp.matmul(lora_a, params[f"{layer}/lora_b"], precision="highest")
            merged[f"{layer}/kernel"] = params[f"{layer}/kernel"] + scale * delta
    return merged
