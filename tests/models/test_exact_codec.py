"""Products around the codec are float32 on every device, whatever the rest is computed in."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from tiny_models import CONFIGS, random_motion, tiny_model

from unils_jax.inference.program import StepInputs, decode_chunk, make_program
from unils_jax.inference.sampling import Sampling, make_controls
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import abstract, merge, split
from unils_jax.nn.stack import Compute
from unils_jax.systems.base import Objective
from unils_jax.systems.registry import STAGES

EXACT = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr: Jaxpr, outer: str = "") -> Iterator[tuple[str, JaxprEqn]]:
    """Every product with its path of named scopes."""
    for eqn in jaxpr.eqns:
        path = f"{outer}/{eqn.source_info.name_stack}"
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield path, eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: isinstance(v, (ClosedJaxpr, Jaxpr))):
            if isinstance(value, (ClosedJaxpr, Jaxpr)):
                yield from products(value.jaxpr if isinstance(value, ClosedJaxpr) else value, path)


def precisions(function, *arguments) -> tuple[set, set]:
    """Precisions of float32 products inside the codec's two transformers, and of all others."""
    with jax.default_matmul_precision("default"):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    inside, outside = set(), set()
    for path, eqn in products(jaxpr):
        if eqn.invars[0].aval.dtype == jnp.float32:
            (inside if "codec_" in path else outside).add(eqn.params["precision"])
    return inside, outside


def loss_gradients(stage: str, dtype: str):
    model = tiny_model(stage)
    graphdef, params = split(model)
    lead = (2, 2) if stage == "dialogue" else (2,)
    batch = {name: random_motion(*lead, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}
    if stage == "dialogue":
        batch["audio"] = jnp.zeros((*lead, 64_000))
    objective = Objective(compute=Compute(jnp.dtype(dtype)))

    def loss(params):
        return STAGES[stage].loss(merge(graphdef, params), batch, None, objective, None)[0]

    return jax.grad(loss), params


@pytest.mark.parametrize(("stage", "dtype"), [("codec", "float32"), ("dialogue", "bfloat16"), ("prior", "float32")])
def test_training_computes_the_codec_forward_and_backward_in_float32(stage, dtype):
    inside, outside = precisions(*loss_gradients(stage, dtype))
    assert inside == {EXACT}
    # The rest follows the default: else the test would see nothing.
    assert stage == "codec" or any(precision != EXACT for precision in outside)


def test_a_codec_that_trains_in_bfloat16_asks_for_nothing_more():
    function, params = loss_gradients("codec", "bfloat16")
    with jax.default_matmul_precision("default"):
        found = products(jax.make_jaxpr(function)(params).jaxpr)
        rounded = {eqn.params["precision"] for path, eqn in found if eqn.invars[0].aval.dtype == jnp.bfloat16}
    assert rounded and EXACT not in rounded


def test_decoding_computes_codec_and_head_in_float32():
    model = tiny_model("merged")
    program = make_program(model, people=2, dtype="bfloat16")
    features = jnp.zeros((1, 2, 100, CONFIGS["merged"].codec.code_dim))
    audio = np.zeros((1, 2, 64_000), np.float32)
    inputs = StepInputs(audio, features, features, features, make_controls([Sampling()], [0], [0], len(program.scales)))
    graphdef, _ = abstract(lambda rngs: UniLS(CONFIGS["merged"], rngs=rngs))

    def decode(params, inputs):
        return decode_chunk(merge(graphdef, params), program.constants, inputs, guided=True, dtype="bfloat16")

    with jax.default_matmul_precision("default"):
        found = list(products(jax.make_jaxpr(decode)(program.params, inputs).jaxpr))
    exact = [path for path, eqn in found if eqn.params["precision"] == EXACT]
    assert {part for path in exact for part in ("codec_encoder", "codec_decoder", "head") if part in path} == {
        "codec_encoder", "codec_decoder", "head",
    }  # fmt: skip
    assert not [
        path for path, eqn in found if eqn.params["precision"] != EXACT and ("codec_" in path or path.endswith("/head"))
    ]
    assert len(exact) < len(found)
