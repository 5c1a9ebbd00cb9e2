"""Mimi: equal to transformers' model in a golden, causal, the same in a stream; and its resampling."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.errors import UserError
from unils_jax.models.mimi import Mimi, MimiConfig, MimiStream, to_24_khz
from unils_jax.nn.params import abstract, merge

pytestmark = pytest.mark.usefixtures("unoptimised")
GOLDEN = Path(__file__).parents[1] / "golden" / "mimi"
BLOCK = 1280  # samples at 16 kHz of a latent


def golden_model(**changes) -> Mimi:
    config, params = load_audio_encoder(str(GOLDEN), "mimi")
    graphdef, _ = abstract(lambda rngs: Mimi(MimiConfig(**vars(config) | changes), rngs=rngs))
    return merge(graphdef, {path.removeprefix("audio_encoder/"): jnp.asarray(x) for path, x in params.items()})


def sound(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.25, shape).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Mimi:
    return golden_model()


def test_frames_latents_and_features_are_the_goldens(model):
    @jax.jit
    def outputs(audio: jax.Array) -> dict[str, jax.Array]:
        frames = model.encode(audio)
        return {"frames": frames, "latents": model.latents(frames), "features": model.project(frames)}

    found = outputs(jnp.asarray(np.load(GOLDEN / "inputs.npz")["audio_i8"].astype(np.float32) / 128))
    for name, values in np.load(GOLDEN / "outputs.npz").items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


def test_a_stream_gives_the_features_of_the_whole_however_the_audio_is_cut(model):
    audio = sound(2, 6 * BLOCK + 500)
    whole = jax.jit(model.__call__)(jnp.asarray(audio))
    stream, start, parts = MimiStream(model, 2), 0, []
    for size in (100, 3 * BLOCK, 1, BLOCK - 1, 6 * BLOCK):
        parts.append(stream.push(audio[:, start : start + size]))
        start += size
    assert [part.shape[1] for part in parts] == [0, 6, 0, 2, 4]  # seven samples after each block's end
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole[:, :12], atol=1e-5)
    assert stream.finish().shape[1] == 0  # the rest is no whole block


def test_later_audio_changes_no_earlier_frame(model):
    audio = sound(1, 4 * BLOCK)
    changed = audio.copy()
    changed[:, 2 * BLOCK + 7 :] = 0  # the resampling looks 7 samples ahead
    frames = jax.jit(lambda audio: model.encode(to_24_khz(audio)))(jnp.asarray(np.concatenate([audio, changed])))
    np.testing.assert_allclose(frames[0, :4], frames[1, :4], atol=1e-6)
    assert np.abs(np.asarray(frames[0] - frames[1])[4]).max() > 1e-4


def test_both_features_are_the_sum_of_the_two_and_last_80_ms_each():
    frames = jnp.asarray(sound(1, 6, 12))
    models = [golden_model(features=kind) for kind in ("both", "semantic", "acoustic", "transformer")]
    both, semantic, acoustic, same = jax.jit(lambda x: [model.project(x) for model in models])(frames)
    np.testing.assert_allclose(both, np.asarray(semantic) + np.asarray(acoustic), atol=1e-6)
    np.testing.assert_array_equal(both[:, ::2], both[:, 1::2])
    np.testing.assert_array_equal(same, frames)
    assert both.shape[1] == 6 and np.abs(np.asarray(semantic) - np.asarray(acoustic)).max() > 0.01


def test_frames_are_counted_and_brought_to_those_that_are_asked_for(model):
    for samples in (3 * BLOCK, 2 * BLOCK + 100):
        audio = jax.ShapeDtypeStruct((1, samples), jnp.float32)
        assert jax.eval_shape(model, audio).shape[1] == model.num_frames(samples)
        assert jax.eval_shape(lambda audio: model.at_frames(audio, 5), audio).shape == (1, 5, 12)
    assert model.num_frames(64_000) == 100


def test_resampling_keeps_tones_in_place():
    """Tones below the cut-off come out as the same tones at 24 kHz."""
    hertz = np.array([[100.0], [3000.0], [6000.0]])
    tones, wanted = (np.sin(2 * np.pi * hertz * np.arange(n) / rate) for n, rate in ((1601, 16e3), (2402, 24e3)))
    found = jax.jit(to_24_khz)(jnp.asarray(tones, jnp.float32))
    assert found.shape == (3, 2402)
    np.testing.assert_allclose(found[:, 50:-50], wanted[:, 50:-50], atol=0.02)


def test_sizes_that_make_no_encoder_are_refused_all_at_once():
    with pytest.raises(UserError, match="depth must be at least 1, got 0; features must be one of both,"):
        MimiConfig(depth=0, features="words")
