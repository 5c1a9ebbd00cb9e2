"""LoRA apart from its base against the goldens: logits, gradients, what trains, and the merged weights."""

import numpy as np
import pytest

from parity.compare import LAYER, MODEL, assert_close, assert_gradients_match, assert_relative, run_pass
from unils_jax.checkpoints.torch_keys import key_of, to_paths
from unils_jax.nn.lora import LoRALinear, merge_lora
from unils_jax.nn.params import split
from unils_jax.systems.unils.system import DIALOGUE


@pytest.fixture(scope="module")
def case(golden):
    return golden("loragen_peft")


@pytest.fixture(scope="module")
def clean(lora_model, pair_batch):
    return run_pass(DIALOGUE, lora_model, pair_batch)


def test_logits_with_adapters_match(case, clean):
    assert_close(clean.logits.reshape(case.outputs["logits"].shape), case.outputs["logits"], MODEL)


def test_cross_entropy_with_adapters_matches(case, clean):
    assert_relative(clean.loss, case.outputs["ce_loss"], LAYER)


def test_gradients_of_adapters_and_cross_attentions_match(case, clean):
    assert_gradients_match(clean.grads, "dialogue", case.outputs)


def test_exactly_the_released_parameters_train(case, lora_model):
    trainable, _ = DIALOGUE.split(split(lora_model)[1])
    keys = {key_of(path, "dialogue")[0] for path in trainable}
    assert keys == {name.replace(".modules_to_save.default", "") for name in case.config["trainable"]}


def test_exactly_the_released_layers_are_adapted(case, lora_model):
    paths = [path for path in split(lora_model)[1] if path.endswith("/lora_a")]
    layers = {key_of(path, "dialogue")[0].removesuffix(".lora_A.default.weight") for path in paths}
    assert layers == set(case.config["targets"])


def test_the_scale_is_alpha_over_rank(case, lora_model):
    assert isinstance(lora_model.prior.head, LoRALinear)
    assert lora_model.prior.head.scale == case.config["lora"]["scaling"]


def test_merged_adapters_give_the_released_weights(golden, lora_model):
    merged = merge_lora(split(lora_model)[1], lora_model.prior.head.scale)
    expected = to_paths(golden("loragen").weights, "dialogue")
    merged = {path: value for path, value in merged.items() if not path.startswith("audio_encoder/")}
    assert set(merged) == set(expected)
    for path, value in expected.items():
        assert_close(merged[path], value, LAYER)
    changed = [path for path in expected if path.endswith("/kernel") and path.startswith("prior/")]
    assert any(not np.array_equal(split(lora_model)[1][path], expected[path]) for path in changed)
