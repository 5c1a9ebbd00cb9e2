"""The ear: its size, how far it listens, and that it does not hear how loud a recording is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import jitted

from unils_jax.errors import UserError
from unils_jax.models.ear import Ear, EarConfig
from unils_jax.models.logmel import MIN_RANGE_DB, LogMel, LogMelConfig, log_mel
from unils_jax.models.unils import UniLSConfig
from unils_jax.motion import channel_names


def speech(seconds: float = 4.0, noise: float = 1e-3) -> np.ndarray:
    """Half a second of a rich sound every second, over quiet noise."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    sound = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    return (0.05 * sound * (time % 1 < 0.5) + noise * np.random.default_rng(0).normal(size=time.size)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def ear() -> Ear:
    return Ear(EarConfig(), rngs=nnx.Rngs(0))


def test_it_has_115_thousand_weights_and_the_frames_of_wav2vec2(ear):
    assert sum(value.size for value in jax.tree.leaves(nnx.state(ear, nnx.Param))) == 114_436
    assert jitted(ear, Ear.__call__, jnp.zeros((2, 64_000))).shape == (2, 199, EarConfig().feature_dim) == (2, 199, 60)
    assert jax.eval_shape(lambda audio: ear.at_frames(audio, 100), jnp.zeros((2, 64_000))).shape == (2, 100, 60)


def test_it_predicts_jaw_press_pucker_and_stretch_of_the_stand_in(ear):
    names = channel_names("standin")
    assert [names[i] for i in EarConfig().channels] == ["jaw", "lip_press", "lip_pucker", "lip_stretch"]
    motion = np.random.default_rng(0).normal(size=(2, 3, 108)).astype(np.float32)
    ear.channel_mean[...], ear.channel_std[...] = jnp.array([1.0, 2, 3, 4]), jnp.array([2.0, 2, 2, 2])
    expected = (motion[..., [103, 14, 2, 3]] - [1, 2, 3, 4]) / 2
    np.testing.assert_allclose(ear.standardized(jnp.asarray(motion)), expected, rtol=1e-6)


@pytest.mark.parametrize("sizes", [{}, {"context_frames": 2, "blocks": 3}])
def test_an_articulator_depends_on_the_sound_within_its_reach(sizes):
    config = EarConfig(normalize_level=False, **sizes)
    reach, ear = config.reach_frames, Ear(config, rngs=nnx.Rngs(0))
    audio = np.random.default_rng(0).normal(0, 0.1, (1, 32_000)).astype(np.float32)
    changed = audio.copy()
    changed[:, 16_000:16_020] += 1.0  # in the frames 49 and 50 alone
    first, second = jitted(ear, lambda ear, audio: ear.articulators(audio, 99), jnp.concatenate([audio, changed]))
    difference = np.abs(first - second).max(-1)
    assert reach == (8 if sizes else 9)
    assert set(np.flatnonzero(difference > 1e-6)) == set(range(49 - reach, 50 + reach + 1))


def test_features_are_articulators_and_coarse_bands_with_their_neighbours():
    config = EarConfig()
    ear = Ear(config, rngs=nnx.Rngs(0))
    audio = jnp.asarray(speech())[None]
    features, heard, frames = jitted(
        ear, lambda ear, x: (ear(x), ear.articulators(x, 199), log_mel(x, 40, normalize_level=True)), audio
    )
    features, frames = features.reshape(1, 199, 5, 12), frames.reshape(1, 199, 8, 5).mean(-1)
    np.testing.assert_allclose(features[:, :, 2, :4], heard, atol=1e-5)
    np.testing.assert_allclose(features[:, :, 2, 4:], frames, atol=1e-5)
    np.testing.assert_allclose(features[:, 2:, 0], features[:, :-2, 2], atol=1e-6)


@pytest.mark.parametrize("gain_db", [-30.0, -10.0, 10.0])
def test_the_level_of_a_recording_changes_no_feature(ear, gain_db):
    audio = speech()[None]
    both = jnp.concatenate([audio, audio * np.float32(10 ** (gain_db / 20))])
    plain, level = (LogMel(LogMelConfig(normalize_level=on)) for on in (False, True))
    for encoder in (ear, level):
        first, second = jitted(encoder, type(encoder).__call__, both)
        np.testing.assert_allclose(first, second, atol=1e-4)
    first, second = jitted(plain, LogMel.__call__, both)
    assert np.abs(first - second).max() > 0.1


def test_noise_alone_is_not_lifted_to_the_level_of_speech():
    noise = 1e-3 * np.random.default_rng(0).normal(size=(1, 64_000)).astype(np.float32)
    heard = log_mel(jnp.asarray(noise), 40, normalize_level=True)
    spoken = log_mel(jnp.asarray(speech())[None], 40, normalize_level=True)
    powers = [float(jnp.exp(4 * frames - 9).mean()) for frames in (spoken[:, 5:20], heard)]
    assert 10 * np.log10(powers[0] / powers[1]) > MIN_RANGE_DB - 5


def test_silence_stays_silence():
    for level in (0.0, 1e-6):
        quiet = level * np.random.default_rng(0).normal(size=(1, 64_000)).astype(np.float32)
        heard = log_mel(jnp.asarray(quiet), 40, normalize_level=True)
        assert jnp.isfinite(heard).all() and heard.max() < -1.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mels": 10, "coarse_bands": 4}, "num_mels must be a multiple of coarse_bands 4, got 10"),
        ({"width": 0}, "width and coarse_bands must be at least 1"),
        ({"blocks": -1}, "its contexts and blocks not negative"),
        ({"channels": (103, 108)}, r"channels must be of the 108 channels of motion, got \(103, 108\)"),
        ({"channels": ()}, "ear.channels must be"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(UserError, match=message):
        UniLSConfig(ear=EarConfig(**change))


def test_a_model_has_one_audio_encoder():
    with pytest.raises(UserError, match="give logmel or ear, not both"):
        UniLSConfig(logmel=LogMelConfig(), ear=EarConfig())
