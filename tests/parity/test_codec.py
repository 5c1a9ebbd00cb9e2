"""The codec against the goldens: every stage of the way, losses, gradients and five updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flame_golden import golden_flame_asset
from tiny_models import jitted

from parity.compare import LAYER, MODEL, TABLE, assert_bits_equal, assert_close, assert_gradients_match, assert_relative
from parity.updates import assert_recorded, assert_trained_weights_match, run_updates
from unils_jax.face.flame_file import flame_regions
from unils_jax.models.codec import Codec
from unils_jax.models.codec_losses import CodecLossWeights
from unils_jax.models.quantizer import full_features, next_scale_inputs, scale_slices
from unils_jax.nn.attention import rotary_table
from unils_jax.nn.params import merge, split
from unils_jax.systems.base import Objective
from unils_jax.systems.unils.system import CODEC

# The release's name of every loss term and ours.
TERMS = {
    "vq": "vq",
    "exp": "motion",
    "pose": "pose",
    "head_vel": "velocity",
    "head_smooth": "smooth",
    "mesh": "mesh",
    "lips": "lips",
}
WEIGHTS = {
    "vq": "VQ",
    "motion": "EXP",
    "pose": "POSE",
    "velocity": "HEAD_VEL",
    "smooth": "HEAD_SMOOTH",
    "mesh": "MESH",
    "lips": "LIPS",
}


@pytest.fixture(scope="module")
def codec(codec_model):
    return codec_model.codec


@pytest.fixture(scope="module")
def motion(golden):
    return jnp.asarray(golden("codec").inputs["motion"])


@pytest.fixture(scope="module")
def quantized(codec, motion):
    return jitted(codec, Codec.quantize, motion)


@pytest.fixture(scope="module")
def noisy(golden, codec, motion):
    return jitted(codec, Codec.quantize, motion, golden("codec").inputs["flip_masks"])


@pytest.fixture(scope="module")
def losses_and_gradients(golden, codec_model, codec_head, motion):
    """(metrics, gradients of the total) with the golden's loss weights and its own list of lip vertices."""
    graphdef, params = split(codec_model)
    trainable, frozen = CODEC.split(params)

    def loss(trainable):
        return CODEC.loss(
            merge(graphdef, {**frozen, **trainable}), {"motion": motion}, None, objective(golden, codec_head)
        )

    grads, metrics = jax.jit(jax.grad(loss, has_aux=True))(trainable)
    return metrics, grads


def objective(golden, head) -> Objective:
    released = golden("codec").config["loss_weights"]
    return Objective(CodecLossWeights(**{name: released[f"{key}_WEIGHT"] for name, key in WEIGHTS.items()}), head=head)


def test_normalised_input_matches(golden, codec, motion):
    expected = golden("codec").outputs["norm_in_first10"]
    assert_close(codec.normalize(motion)[:, : expected.shape[1]], expected, TABLE)


def test_input_mapping_matches(golden, codec, motion):
    mapped = jax.nn.leaky_relu(codec.encoder.inp(codec.normalize(motion)), 0.2)
    assert_close(mapped, golden("codec").outputs["enc_inp_mapping"], LAYER)


def test_first_attention_matches(golden, codec):
    outputs = golden("codec").outputs
    x = jnp.asarray(outputs["enc_inp_mapping"])
    rotary = rotary_table(np.arange(x.shape[1]), codec.encoder.head_dim)
    assert_close(codec.encoder.blocks[0].self_attn(x, rotary), outputs["enc_attn0"], LAYER)


def test_latent_matches(golden, codec, motion):
    assert_close(jitted(codec, Codec.encode, motion), golden("codec").outputs["enc_out"], MODEL)


def test_bits_are_equal(golden, quantized):
    assert_bits_equal(quantized.bits, golden("codec").outputs["bits"])


def test_straight_through_features_match(golden, quantized):
    assert_close(quantized.features, golden("codec").outputs["quantized_ste"], LAYER)


def test_features_from_bits_match(golden, codec):
    outputs = golden("codec").outputs
    assert_close(full_features(jnp.asarray(outputs["bits"]), codec.scales), outputs["feat_from_bits"], TABLE)


def test_quantiser_loss_of_every_scale_matches(golden, quantized):
    outputs = golden("codec").outputs
    assert_close(quantized.losses, outputs["vq_loss_per_scale"], LAYER)
    assert_close(quantized.losses.mean(), outputs["vq_loss_mean"], LAYER)


def test_motion_decoded_from_bits_matches(golden, codec):
    outputs = golden("codec").outputs
    expected = outputs["decoded_from_bits_first20"]
    decoded = jitted(codec, Codec.decode, full_features(jnp.asarray(outputs["bits"]), codec.scales))
    assert_close(decoded[:, : expected.shape[1]], expected, MODEL)


def test_reconstruction_matches(golden, codec, motion):
    assert_close(jitted(codec, Codec.__call__, motion)[0], golden("codec").outputs["pred_motion"], MODEL)


def test_zero_motion_gives_equal_bits_and_features(golden, codec, motion):
    outputs, zero = golden("codec").outputs, jnp.zeros_like(motion[:1])
    assert_bits_equal(jitted(codec, Codec.quantize, zero).bits, outputs["zero_motion_bits"])
    assert_close(jitted(codec, Codec.features, zero), outputs["zero_motion_feat"], TABLE)


def test_a_long_sequence_is_coded_piece_by_piece(golden, codec):
    case = golden("codec")
    long = jnp.asarray(case.inputs["motion_long"])
    assert long.shape[1] % codec.scales[-1] != 0
    assert_close(jitted(codec, Codec.reconstruct, long), case.outputs["long_pred"], MODEL)


def test_next_scale_inputs_match(golden, codec):
    outputs = golden("codec").outputs
    inputs = next_scale_inputs(jnp.asarray(outputs["bits"]), codec.scales)
    assert_close(inputs, outputs["accum_next"], TABLE)


def test_next_scale_inputs_of_the_first_scales_match(golden, codec):
    outputs = golden("codec").outputs
    bits = jnp.asarray(outputs["bits"])
    for index, tokens in enumerate(scale_slices(codec.scales)[:-1]):
        inputs = next_scale_inputs(bits[:, : tokens.stop], codec.scales)
        assert_close(inputs, outputs[f"accum_next_pidx{index}"], TABLE)


def test_targets_along_the_flipped_path_are_equal(golden, noisy):
    assert_bits_equal(noisy.bits, golden("codec").outputs["flip_real_bits"])


def test_flipped_bits_are_equal(golden, noisy):
    assert_bits_equal(noisy.flipped_bits, golden("codec").outputs["flip_flipped_bits"])


def test_inputs_of_flipped_bits_match(golden, codec, noisy):
    inputs = next_scale_inputs(noisy.flipped_bits, codec.scales)
    assert_close(inputs, golden("codec").outputs["flip_accum_next"], TABLE)


@pytest.mark.parametrize("term", TERMS)
def test_weighted_loss_term_matches(golden, losses_and_gradients, term):
    expected = golden("codec").outputs[f"loss_synidx.{term}_loss"]
    assert_relative(losses_and_gradients[0][TERMS[term]], expected, LAYER)


def test_total_loss_matches(golden, losses_and_gradients):
    outputs = golden("codec").outputs
    assert_relative(losses_and_gradients[0]["loss"], outputs["total_loss"], LAYER)
    assert_relative(outputs["total_loss"], sum(outputs[f"loss_synidx.{term}_loss"] for term in TERMS), TABLE)


def test_loss_terms_with_the_published_lip_vertices_match(golden, codec_model, motion):
    head = golden_flame_asset(golden, lips=flame_regions()["lips"])
    chosen = objective(golden, head)
    metrics = jitted(codec_model, lambda model, motion: CODEC.loss(model, {"motion": motion}, None, chosen)[1], motion)
    for term, name in TERMS.items():
        assert_relative(metrics[name], golden("codec").outputs[f"loss_officialidx.{term}_loss"], LAYER)


def test_all_gradients_match(golden, losses_and_gradients):
    assert_gradients_match(losses_and_gradients[1], "codec", golden("codec").outputs)


@pytest.fixture(scope="module")
def training(golden, codec_model, codec_head):
    batch = {"motion": golden("codec").inputs["motion"]}
    return run_updates(CODEC, codec_model, objective(golden, codec_head), batch, golden("codec").outputs)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "learning_rate"])
def test_five_updates_record_the_same(golden, training, name):
    assert_recorded(training, golden("codec").outputs, name)


def test_weights_after_five_updates_match(golden, training):
    assert_trained_weights_match(training, golden("codec").outputs, "codec")
