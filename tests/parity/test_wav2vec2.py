"""The audio encoder against the goldens: normalisation, convolutions, projection, positions, features."""

import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_models import jitted

from parity.compare import LAYER, MODEL, assert_close
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config, normalize_audio


@pytest.fixture(scope="module")
def encoder(dialogue_model):
    return dialogue_model.audio_encoder


@pytest.fixture(scope="module")
def stages(encoder, pair_batch):
    """The first person's audio of every pair, after each part of the encoder's front."""

    def run(encoder, audio):
        normalised = normalize_audio(audio)
        x = normalised[..., None]
        for conv in encoder.convs:
            x = conv(x)
        projected = encoder.feature_proj(encoder.feature_norm(x))
        return {"norm": normalised, "conv": x, "proj": projected, "posconv": encoder.pos_conv(projected)}

    return jitted(encoder, run, pair_batch["audio"][:, 0])


def test_convolutions_keep_their_own_epsilon_whatever_the_config_says():
    config = Wav2Vec2Config(width=8, depth=0, num_heads=1, conv_dims=(8,) * 7, pos_conv_groups=2, norm_eps=0.1)
    encoder = Wav2Vec2(config, rngs=nnx.Rngs(0))
    assert {conv.norm.eps for conv in encoder.convs} == {1e-5}
    assert encoder.feature_norm.eps == encoder.final_norm.eps == 0.1


def leading(x: jnp.ndarray, shape: tuple[int, ...]) -> jnp.ndarray:
    return x[tuple(slice(size) for size in shape)]


def test_normalised_audio_matches(golden, stages):
    expected = golden("loragen").outputs["w2v_norm_audio0_first2000"]
    assert_close(leading(stages["norm"], expected.shape), expected, LAYER)


@pytest.mark.parametrize("name", ["conv", "proj", "posconv"])
def test_output_of_a_part_matches(golden, stages, name):
    expected = golden("loragen").outputs[f"w2v_{name}_spk0_first40"]
    assert_close(leading(stages[name], expected.shape), expected, LAYER)


@pytest.mark.parametrize("person", [0, 1])
def test_features_of_a_person_match(golden, encoder, pair_batch, person):
    expected = golden("loragen").outputs[f"w2v_feat_spk{person}"]
    assert_close(
        jitted(encoder, lambda encoder, audio: encoder(audio), pair_batch["audio"][:, person]), expected, MODEL
    )


@pytest.mark.parametrize("person", [0, 1])
def test_features_of_every_chunk_of_a_decode_match(golden, encoder, person):
    case = golden("loragen_decode")
    expected = case.outputs[f"audio_feat_spk{person}"]
    audio = jnp.asarray(case.inputs["audio_i8"][0, person].astype("float32") / 128)
    window = golden("loragen").inputs["audio_i8"].shape[-1]
    chunks = jnp.pad(audio, (0, len(expected) * window - len(audio))).reshape(len(expected), window)
    assert_close(jitted(encoder, Wav2Vec2.__call__, chunks), expected, MODEL)
