"""The chain of a token's bits: what it adds in training, where it starts, and its files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIGS, SCALES, jitted, random_motion, tiny_model

from unils_jax.checkpoints.adapters import base_hash
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.loading import load
from unils_jax.inference.conversations import Sampling, decode_prior
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import split
from unils_jax.systems.unils.system import PRIOR, generator_logits
from unils_jax.training.sharding import param_shardings

CHAINED, PLAIN = CONFIGS["chained"], CONFIGS["prior"]


def batch() -> dict[str, jax.Array]:
    return {name: random_motion(2, 100, seed=i) for i, name in enumerate(("motion", "prev", "style"))}


def checkpoint() -> Checkpoint:
    params = {path: np.asarray(value) for path, value in split(tiny_model("chained"))[1].items()}
    return Checkpoint(CHAINED, params, "flame", {"checkpoint": "tiny"})


def test_a_bit_hangs_on_those_before_it_in_its_token_alone():
    model = tiny_model("chained")
    logits, bits = jnp.zeros((1, sum(SCALES), 8, 2)), jnp.zeros((1, sum(SCALES), 8), bool)
    one = jitted(model, lambda model, bits: model.prior.chained(logits, bits), bits)
    other = jitted(model, lambda model, bits: model.prior.chained(logits, bits), bits.at[0, 2, 3].set(True))
    changed = np.argwhere(np.asarray(one != other))
    assert {(token, which) for _, token, _, which in changed} == {(2, 1)}
    assert {bit for _, _, bit, _ in changed} == {4, 5, 6, 7}
    chain = np.asarray(model.prior.bit_chain[...])[1]  # token 2 is of the second scale
    np.testing.assert_allclose((other - one)[0, 2, 4:, 1], 2 * chain[4:, 3], rtol=1e-5)


def test_a_new_chain_is_zero_trains_and_changes_no_other_start():
    chained, plain = (split(UniLS(config, rngs=nnx.Rngs(0)))[1] for config in (CHAINED, PLAIN))
    assert set(chained) - set(plain) == {"prior/bit_chain"} and not chained["prior/bit_chain"].any()
    assert all(np.array_equal(chained[path], plain[path]) for path in plain)
    assert "prior/bit_chain" in PRIOR.split(chained)[0]


def test_every_device_holds_the_whole_chain():
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "fsdp"))
    chain = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    assert param_shardings(mesh, {"prior/bit_chain": chain})["prior/bit_chain"].is_fully_replicated


def test_a_base_without_a_chain_keeps_its_hash_and_one_with_it_has_another():
    params = split(tiny_model("prior"))[1]
    assert base_hash(PLAIN, params) != base_hash(CHAINED, params | {"prior/bit_chain": np.zeros((3, 8, 8))})
    assert base_hash(PLAIN, params) == base_hash(replace(PLAIN, prior=replace(PLAIN.prior, bit_chain=False)), params)


def test_a_file_keeps_the_chain_and_the_torch_reference_decodes_by_it(tmp_path):
    export(checkpoint(), tmp_path / "x.safetensors")
    again = load(tmp_path / "x.safetensors")
    assert again.config == CHAINED
    np.testing.assert_array_equal(again.params["prior/bit_chain"], checkpoint().params["prior/bit_chain"])
    assert "bits of a token depend on each other" in (tmp_path / "x.safetensors.md").read_text()
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
    from unils_jax.benchmarks import torch_runs
    from unils_jax.benchmarks.torch_model import load_torch_reference

    reference = load_torch_reference(tmp_path / "x.safetensors")
    tensors = {name: torch.tensor(np.array(value)) for name, value in batch().items()}
    ours, _ = jitted(tiny_model("chained"), generator_logits, batch())
    with torch.no_grad():
        logits, _ = reference.teacher_forced(tensors)
        decoded = torch_runs.decode(reference, style=tensors["style"][:1], num_chunks=1, tau=0.0)
    assert np.abs(logits.numpy() - ours).max() < 1e-5 * np.abs(ours).max()
    motion = decode_prior(tiny_model("chained"), np.asarray(batch()["style"][:1]), 1, sampling=Sampling(tau=0.0))
    np.testing.assert_allclose(motion, decoded.motion, atol=1e-4)
