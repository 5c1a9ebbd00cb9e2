"""The log-mel front end: as many frames as wav2vec2, finite on silence, tones in their bands."""

import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax.models.logmel import LogMel, LogMelConfig, mel_matrix


def tone(frequency: float, samples: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / 16_000)).astype(np.float32)


def test_four_seconds_give_the_199_frames_of_wav2vec2():
    assert LogMel(LogMelConfig())(jnp.zeros((2, 64_000))).shape == (2, 199, LogMelConfig().feature_dim)


def test_silence_is_finite_and_the_lowest_of_all():
    features = LogMel(LogMelConfig())
    silent, loud = features(jnp.zeros((1, 16_000))), features(jnp.asarray(tone(440.0))[None])
    assert jnp.isfinite(silent).all()
    assert silent.max() <= loud.min() + 1e-6


@pytest.mark.parametrize("frequency", [150.0, 440.0, 2000.0, 6000.0])
def test_a_tone_is_loudest_in_the_band_about_it(frequency):
    features = LogMel(LogMelConfig(num_mels=20, context_frames=0))(jnp.asarray(tone(frequency))[None])
    mel_edges = np.linspace(*(2595 * np.log10(1 + np.array([50.0, 8000.0]) / 700)), 22)
    edges = 700 * (10 ** (mel_edges / 2595) - 1)
    band = int(features[0, 20].argmax())
    # A frequency step is 40 Hz: a tone may fall to a neighbour of a band that is narrower.
    assert edges[band] - 40 <= frequency <= edges[band + 2] + 40


@pytest.mark.parametrize("num_mels", [6, 40, 80])
def test_every_band_averages_some_frequencies(num_mels):
    matrix = mel_matrix(num_mels)
    assert matrix.shape == (201, num_mels)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(0), 1, rtol=1e-5)


def test_a_frame_carries_its_neighbours():
    audio = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (1, 16_000)), jnp.float32)
    alone = LogMel(LogMelConfig(num_mels=10, context_frames=0))(audio)
    wide = LogMel(LogMelConfig(num_mels=10, context_frames=2))(audio).reshape(1, -1, 5, 10)
    np.testing.assert_allclose(wide[:, :, 2], alone, atol=1e-6)
    np.testing.assert_allclose(wide[:, 2:, 0], alone[:, :-2], atol=1e-6)
    np.testing.assert_allclose(wide[:, 0, 0], alone[:, 0], atol=1e-6)  # the edge is repeated
