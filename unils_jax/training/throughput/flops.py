"""Counts matrix products of a jaxpr, and measures how many a device can do.

One multiply-add is 2 FLOP. Only `dot_general` and convolutions count; taps that fall on a
convolution's padding count, too. XLA's own `cost_analysis` counts a scanned body once; here it
counts as often as it runs.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.typing import DTypeLike
from jaxtyping import PyTree

# JAX's own names of scopes: for what `jax.checkpoint` computes again in the backward pass, and for
# what differentiation adds.
RECOMPUTED = "rematted_computation"
BACKWARD = "transpose"


@dataclass(frozen=True)
class Work:
    """FLOP of one call."""

    by_scope: dict[str, int]  # by path of named scopes, "jvp(prior)/blocks/mlp"

    @property
    def total(self) -> int:
        """Everything that runs."""
        return sum(self.by_scope.values())

    @property
    def recomputed(self) -> int:
        """What rematerialisation computes a second time."""
        return self.within(RECOMPUTED)

    @property
    def model(self) -> int:
        """What the mathematics needs: `total` without the recomputed.

        It is the numerator of model-FLOPs utilisation.
        """
        return self.total - self.recomputed

    @property
    def backward(self) -> int:
        """What gradients add to the forward pass, without the recomputed."""
        return sum(n for path, n in self.by_scope.items() if {BACKWARD, RECOMPUTED} & names(path) == {BACKWARD})

    def within(self, name: str) -> int:
        """Returns the FLOP under the named scope `name` at any depth, forward and backward."""
        return sum(flops for path, flops in self.by_scope.items() if name in names(path))


@lru_cache(maxsize=4096)
def names(path: str) -> frozenset[str]:
    """Splits a path of scopes into names: "transpose(jvp(a))/b" has transpose, jvp, a and b."""
    return frozenset(re.findall(r"[^/()]+", path))


def count(fn: Callable, *args: PyTree, **kwargs: PyTree) -> Work:
    """Counts the work of `fn(*args, **kwargs)`, jitted or not, without running it.

    Arguments are arrays or `jax.ShapeDtypeStruct`s. Raises ValueError where a `while` loop of
    unknown length holds products: no count would be right.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs))


def count_jaxpr(jaxpr: ClosedJaxpr) -> Work:
    """Counts the work of what was traced already; see `count`."""
    counter: Counter[str] = Counter()
    for path, flops in _products(jaxpr.jaxpr, "", 1):
        counter[path] += flops
    return Work(dict(counter))


def _products(jaxpr: Jaxpr, outer: str, times: int) -> Iterator[tuple[str, int]]:
    for eqn in jaxpr.eqns:
        path = f"{outer}/{eqn.source_info.name_stack}"
        name = eqn.primitive.name
        if name == "dot_general":
            yield path, times * _dot_flops(eqn)
        elif name == "conv_general_dilated":
            yield path, times * _conv_flops(eqn)
        elif name == "cond":
            branches = [list(_products(branch.jaxpr, path, times)) for branch in eqn.params["branches"]]
            # Any branch may run: the most expensive one counts.
            yield from max(branches, key=lambda branch: sum(flops for _, flops in branch))
        elif name == "while":
            inner = [*_inner(eqn.params["body_jaxpr"]), *_inner(eqn.params["cond_jaxpr"])]
            if any(flops for part in inner for _, flops in _products(part, path, times)):
                raise ValueError("a while loop of unknown length holds matrix products; write it as a scan")
        else:
            inner_times = times * eqn.params["length"] if name == "scan" else times
            if name == "shard_map":
                # Its body is what one device does. jax 0.11 renamed the parameter.
                axes = eqn.params.get("newly_manual_axes") or eqn.params["manual_axes"]
                inner_times *= math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
            for part in (part for value in eqn.params.values() for part in _inner(value)):
                yield from _products(part, path, inner_times)


def _inner(value: object) -> list[Jaxpr]:
    """Returns the jaxprs in an equation's parameter."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values if isinstance(v, (ClosedJaxpr, Jaxpr))]


def _dot_flops(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    sizes = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes[axis] for axis in contracted)


def _conv_flops(eqn: JaxprEqn) -> int:
    """Counts output values times the kernel's values for one output channel.

    Zeros that dilation puts in do not count.
    """
    kernel = eqn.invars[1].aval.shape
    out_channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    products = math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_channels
    return 2 * products // math.prod(eqn.params["lhs_dilation"])


def matrix_peak(dtype: DTypeLike, size: int | None = None, *, rounds: int = 5) -> float:
    """Measures the default device's FLOP/s in matrix products of `dtype`; the best of the rounds.

    float32 is at the default matmul precision: what the models run at, which on recent GPUs is
    TF32.

    Args:
        dtype: Of the matrices.
        size: Rows and columns; None: 1024 on a CPU, otherwise 8192.
        rounds: Number of measurements.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    chain = 4  # products in one call, so that its overhead does not count
    # The matrix is its own power: nothing overflows or becomes denormal.
    matrix = jnp.full((size, size), 1 / size, dtype)

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=chain)[0]

    multiply(matrix).block_until_ready()
    best = math.inf
    for _ in range(rounds):
        started = time.perf_counter()
        multiply(matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return chain * 2 * size**3 / best
