"""Walks through JAX's trace of a function and builds the ONNX graph of it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from unils_jax.checkpoints.onnx.graph import Graph, Tensor, constant
from unils_jax.checkpoints.onnx.operations import LAZY, STRICT, absolute


def translate(graph: Graph, traced: ClosedJaxpr, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Adds a traced function to the graph and returns its outputs.

    What depends on constants alone is computed here. Calls are opened and scans are unrolled, so
    that a graph has neither functions nor loops. Raises NotImplementedError, naming the operation,
    for one that has no rule.
    """
    return _run(graph, traced.jaxpr, [constant(np.asarray(c)) for c in traced.consts], inputs)


def _run(graph: Graph, jaxpr: Jaxpr, consts: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: object) -> Tensor:
        return constant(np.asarray(variable.val)) if isinstance(variable, Literal) else known[variable]

    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _apply(graph, eqn, [read(variable) for variable in eqn.invars]), strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _apply(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    name = eqn.primitive.name
    if name == "scan":
        return _unroll(graph, eqn, inputs)
    inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
    if isinstance(inner, ClosedJaxpr):
        return translate(graph, inner, inputs)
    if isinstance(inner, Jaxpr):
        return _run(graph, inner, [], inputs)
    if all(x.constant is not None for x in inputs) and name != "broadcast_in_dim":
        return _fold(eqn, inputs)
    if name == "abs" and inputs[0].dtype == "complex64":
        return [absolute(graph, inputs[0])]
    if name in LAZY:
        return LAZY[name](graph, eqn, inputs)
    if name not in STRICT:
        raise NotImplementedError(name)
    full = [graph.full(x, variable.aval.shape) for x, variable in zip(inputs, eqn.invars, strict=True)]
    return STRICT[name](graph, eqn, full)


def _fold(eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    arrays = [np.broadcast_to(x.constant, v.aval.shape) for x, v in zip(inputs, eqn.invars, strict=True)]
    found = eqn.primitive.bind(*map(jax.numpy.asarray, arrays), **eqn.params)
    return [constant(np.asarray(x)) for x in (found if eqn.primitive.multiple_results else [found])]


def _unroll(graph: Graph, eqn: JaxprEqn, inputs: list[Tensor]) -> list[Tensor]:
    p, body = eqn.params, eqn.params["jaxpr"]
    # JAX's releases say differently which inputs are constants, carry and rows. In all of them the
    # body's rows have one axis less than what the scan takes and returns.
    last = _unsliced(eqn.invars, body.jaxpr.invars)
    first = last - _unsliced(eqn.outvars, body.jaxpr.outvars)
    fixed, carry, length = inputs[:first], inputs[first:last], p["length"]
    shapes = [variable.aval.shape for variable in eqn.invars[last:]]
    columns = [_rows(graph, graph.full(x, shape)) for x, shape in zip(inputs[last:], shapes, strict=True)]
    results: list[list[Tensor]] = [[]] * length
    for i in reversed(range(length)) if p["reverse"] else range(length):
        out = translate(graph, body, [*fixed, *carry, *(column[i] for column in columns)])
        carry, results[i] = out[: len(carry)], out[len(carry) :]
    stacked = [
        _stacked(graph, [result[k] for result in results], variable.aval.shape)
        for k, variable in enumerate(eqn.outvars[len(carry) :])
    ]
    return [*carry, *stacked]


def _unsliced(outer: Sequence[Var], inner: Sequence[Var | Literal]) -> int:
    """Counts the values that a scan and its body have alike, which come first."""
    return sum(o.aval.ndim == i.aval.ndim for o, i in zip(outer, inner, strict=True))


def _rows(graph: Graph, x: Tensor) -> list[Tensor]:
    if x.constant is not None:
        return [constant(row) for row in x.constant]
    return [graph.reshape(row, x.shape[1:]) for row in graph.split(x, 0, [1] * x.shape[0])]


def _stacked(graph: Graph, rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    rows = [graph.reshape(graph.full(row, shape[1:]), (1, *shape[1:])) for row in rows]
    return graph.node("Concat", rows, shape, rows[0].dtype, axis=0)
