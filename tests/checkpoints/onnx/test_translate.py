"""JAX's operations in ONNX: the runtime computes what JAX computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")

import onnxruntime

from unils_jax.checkpoints.onnx.graph import Graph
from unils_jax.checkpoints.onnx.translate import translate


def both(function, *arrays: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """What JAX and the runtime give, and the number of nodes."""
    traced, graph = jax.make_jaxpr(function)(*arrays), Graph()
    inputs = [graph.add_input(f"x{i}", x.shape, x.dtype.name) for i, x in enumerate(arrays)]
    for i, (tensor, aval) in enumerate(zip(translate(graph, traced, inputs), traced.out_avals, strict=True)):
        graph.add_output(f"y{i}", tensor, aval.shape)
    model = graph.model("test", {"a": "b"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {f"x{i}": x for i, x in enumerate(arrays)})
    return jax.tree.leaves(jax.jit(function)(*arrays)), found, len(model.graph.node)


def running_sum(x):
    return jax.lax.scan(lambda total, row: (total + row, (total * row, row[0])), jnp.zeros(x.shape[1]), x)


X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
FUNCTIONS = {
    "a layer": lambda x: jax.nn.gelu(x @ jnp.asarray(X.T) + 1.0, approximate=False),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "norm": lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5),
    "comparisons": lambda x: (x > 0, (x >= 0.5) | (x < -1), jnp.isfinite(x / 0.0), x != x[::-1], x <= 0.1),
    "choices": lambda x: (jnp.where(x > 0, x, -x), jnp.where(x > 0, x < 1, x > -1), jnp.clip(x, -0.3, 0.4)),
    "powers": lambda x: (x**2, x**3, jnp.abs(x) ** 0.5, jnp.exp(-x), jnp.log(jnp.abs(x)), jnp.sqrt(abs(x))),
    "a batch of products": lambda x: jnp.einsum("bij,bkj->bik", x.reshape(2, 2, 6), x.reshape(2, 2, 6)),
    "two summed axes": lambda x: jnp.einsum("abc,bcd->ad", x.reshape(2, 2, 6), jnp.asarray(X.reshape(2, 6, 2))),
    "shapes": lambda x: (x.T.reshape(3, 8), jnp.stack([x, 2 * x], -1), jnp.tile(x, (2, 1)), jnp.split(x, 2, axis=1)),
    "rows and columns": lambda x: (list(x), jnp.unstack(x, axis=1)),
    "slices": lambda x: (x[1:3, ::2], x[:, -1], x[::-1], jax.lax.dynamic_slice(x, (1, 2), (2, 3))),
    "joined": lambda x: jnp.concatenate([x[:0], x, jnp.broadcast_to(x[:1], (2, 6))]),
    "padded": lambda x: (jnp.pad(x, ((1, 2), (0, 1))), jnp.pad(x, ((0, 0), (2, 0)), mode="edge")),
    "sums": lambda x: (x.sum((0, 1)), x.max(0), x.min(1, keepdims=True)),
    "taken": lambda x: x[:, np.array([[0, 2], [5, 5]])],
    "put": lambda x: (x.at[1:3].set(7.0), x.at[:, 2].add(x[:, 0])),
    "sorted": lambda x: jnp.sort(x, axis=1),
    "a spectrum": lambda x: jnp.abs(jnp.fft.rfft(x)),
    "a convolution": lambda x: jax.lax.conv_general_dilated(
        x.reshape(1, 6, 4), jnp.asarray(X[:3, :4].reshape(3, 2, 2)), (2,), [(1, 2)],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2,
    ),
    "a scan": running_sum,
    "a call": jax.jit(partial(jnp.add, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_runtime_computes_what_jax_computes(name):
    expected, found, _ = both(FUNCTIONS[name], X)
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(theirs, ours, rtol=2e-6, atol=2e-6)


def test_what_depends_on_constants_alone_and_what_nobody_reads_is_not_in_the_graph():
    def function(x):
        _ = jnp.exp(x) @ x.T
        return x + jnp.sin(jnp.arange(6.0))[None]

    *_, nodes = both(function, X)
    assert nodes == 2, "the sum, and the output's name"


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(NotImplementedError, match="cumsum"):
        both(lambda x: jnp.cumsum(x, axis=0), X)
    with pytest.raises(NotImplementedError, match="places that depend on the input"):
        both(lambda x: jax.lax.dynamic_slice(x, (x[0, 0].astype(jnp.int32), 0), (1, 6)), X)
