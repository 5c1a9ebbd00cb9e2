"""Mimi's encoder against transformers' PyTorch model with random weights, at two sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.models.mimi import Mimi
from unils_jax.nn.params import abstract, merge

pytestmark = pytest.mark.slow

SIZES = {
    # Two residual blocks before each stride (the second dilated), a window shorter than the audio.
    "tiny": {
        "upsampling_ratios": [40, 24],
        "hidden_size": 12,
        "num_filters": 2,
        "num_residual_layers": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vector_quantization_hidden_dimension": 6,
        "codebook_dim": 6,
        "sliding_window": 5,
        "upsample_groups": 12,
        "layer_scale_initial_scale": 0.5,
    },
    "published": {},
}


def random_mimi(size: str, folder: str):
    """A model with features of about one, saved as transformers does."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install '.[torch]'")
    torch.manual_seed(0)
    config = transformers.MimiConfig(codebook_size=16, num_quantizers=2, **SIZES[size])
    model = transformers.MimiModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "conv" in name and name.endswith("weight"):
                parameter.mul_(0.6)
    model.save_pretrained(folder)
    return model


def torch_outputs(model, audio: np.ndarray) -> dict[str, np.ndarray]:
    """The transformer's frames, the latents, and the release's features of them."""
    import torch  # noqa: PLC0415 (an optional extra)

    with torch.no_grad():
        embedded = model.encoder.encoder_seanet(torch.tensor(audio)[:, None])
        frames = model.encoder.encoder_transformer(embedded.transpose(1, 2)).last_hidden_state
        latents = model.encoder.downsample(frames.transpose(1, 2))
        whole = model.encoder(torch.tensor(audio)[:, None]).latents
        assert torch.equal(whole, latents)
        quantizer = model.quantizer
        halves = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        projected = sum(half.output_proj(half.input_proj(latents)) for half in halves)
        features = torch.nn.functional.interpolate(projected, scale_factor=2, mode="nearest")
    swapped = {"latents": latents, "features": features}
    return {"frames": frames.numpy(), **{name: x.transpose(1, 2).numpy() for name, x in swapped.items()}}


def outputs(model: Mimi, audio: jax.Array) -> dict[str, jax.Array]:
    frames = model.encode(audio)
    return {"frames": frames, "latents": model.latents(frames), "features": model.project(frames)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_samples", [1920 * 6, 1920 * 3 + 333])
def test_frames_latents_and_features_are_those_of_transformers(size, num_samples, tmp_path):
    theirs = random_mimi(size, str(tmp_path))
    config, params = load_audio_encoder(str(tmp_path), "mimi")
    graphdef, _ = abstract(lambda rngs: Mimi(config, rngs=rngs))
    ours = merge(graphdef, {path.removeprefix("audio_encoder/"): jnp.asarray(x) for path, x in params.items()})
    audio = np.random.default_rng(0).normal(0, 0.25, (2, num_samples)).astype(np.float32)
    expected = torch_outputs(theirs, audio)
    found = jax.jit(lambda audio: outputs(ours, audio))(jnp.asarray(audio))
    for name, values in expected.items():
        assert np.abs(values).max() > 0.1
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
