"""The paper's six models with random weights: exported, loaded by PyTorch, its numbers against ours."""

import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import recorded_chunks
from flax import nnx
from tiny_models import jitted, random_motion

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.torch_keys import to_torch
from unils_jax.config import load_config
from unils_jax.inference.conversations import Sampling, decode, decode_prior
from unils_jax.models.codec import Codec
from unils_jax.models.quantizer import full_features, next_scale_inputs, quantize, scale_slices
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import split
from unils_jax.training.config import run_config

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")

from unils_jax.benchmarks import torch_model as torch_model  # noqa: E402
from unils_jax.benchmarks import torch_runs  # noqa: E402
from unils_jax.benchmarks.torch_encoder import build_encoder, load_strictly  # noqa: E402

pytestmark = pytest.mark.slow
MANIFEST = json.loads(gzip.decompress((Path(__file__).parents[1] / "support" / "manifest.json.gz").read_bytes()))
RELATIVE = 1e-5  # of logits and motion, relative to their largest entry
SURE_GAP = 1e-4  # greedy bits are equal wherever the two logits of a bit differ by more


def random_checkpoint(name: str) -> tuple[Checkpoint, UniLS]:
    """Fresh weights of the paper's sizes; the audio encoder, 315 M values, with `dialogue` only."""
    config = load_config(name)
    config.data.store = "data"
    run = run_config(config.to_dict())
    merged = replace(run.model, lora=None)
    model = UniLS(merged if name == "dialogue" else replace(merged, wav2vec2=None), rngs=nnx.Rngs(3))
    return Checkpoint(merged, split(model)[1], "flame", {"checkpoint": name, "step": 0}, run=run.to_dict()), model


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def assert_relative(actual: torch.Tensor, expected: jax.Array) -> None:
    expected = np.asarray(expected)
    assert np.abs(actual.numpy() - expected).max() <= RELATIVE * np.abs(expected).max()


@pytest.mark.parametrize("name", [name for name in MANIFEST if name != "audio_encoder"])
@torch.no_grad()
def test_the_file_has_the_released_keys_and_the_torch_reference_agrees(name, tmp_path):
    checkpoint, model = random_checkpoint(name)
    exported = export(checkpoint, tmp_path / "x.pt")
    assert {key: list(array.shape) for key, array in exported.state.items()} == MANIFEST[name]["state_dict"]
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    assert {key: list(value.shape) for key, value in saved["model"].items()} == MANIFEST[name]["state_dict"]
    assert all(value.is_contiguous() and value.dtype == torch.float32 for value in saved["model"].values())
    assert saved["meta_cfg"]["MODEL"]["VAE_CONFIG"]["V_PATCH_NUMS"] == list(checkpoint.config.codec.scales)
    reference = torch_model.load_torch_reference(tmp_path / "x.pt")
    if name.startswith("codec"):
        compare_codecs(model.codec, reference)
    else:
        compare_logits(model, reference)
    if name in ("prior", "dialogue"):
        compare_decodes(checkpoint, model, reference)


def compare_codecs(codec: Codec, reference: torch_model.TorchReferenceCodec) -> None:
    """Latents, then the bits of one latent and the motion of one feature, so that no near-tie of a bit decides."""
    motion = random_motion(2, 100)
    latent = jitted(codec, Codec.encode, motion)
    assert_relative(reference.encoder(tensor(motion) / (1 + 1e-8)), latent)
    quantized = quantize(latent, codec.scales)
    bits = torch_model.quantize(tensor(latent), codec.scales).bits
    np.testing.assert_array_equal(bits, quantized.bits)
    features = full_features(quantized.bits, codec.scales)
    assert_relative(torch_model.full_features(bits, codec.scales), features)
    assert_relative(reference.decode(tensor(features)), jitted(codec, Codec.decode, features))


def compare_logits(model: UniLS, reference: torch_model.TorchReferenceGenerator) -> None:
    """Teacher-forced logits of random conditions and bits."""
    scales, rng = model.codec.scales, np.random.default_rng(0)
    bits = [jnp.asarray(rng.integers(0, 2, (2, sum(scales), 32))) for _ in range(3)]
    conditions = [full_features(bits[0], scales), full_features(bits[1], scales), next_scale_inputs(bits[2], scales)]
    if model.prior.has_audio:
        conditions += [jnp.asarray(rng.normal(size=(2, 199, 1024)), jnp.float32) for _ in range(2)]
    ours = jitted(model.prior, lambda prior, *conditions: prior(*conditions), *conditions)
    logits = reference(*map(tensor, conditions))
    assert_relative(logits, ours)
    sure = np.abs(np.asarray(ours[..., 1] - ours[..., 0])) > SURE_GAP
    greedy, reference_greedy = np.asarray(ours[..., 1] > ours[..., 0]), (logits[..., 1] > logits[..., 0]).numpy()
    np.testing.assert_array_equal(greedy[sure], reference_greedy[sure])
    assert sure.mean() > 0.99


def compare_decodes(checkpoint: Checkpoint, model: UniLS, reference: torch_model.TorchReferenceGenerator) -> None:
    """One window, greedily: bits are equal up to the first scale with a bit that is not sure, where the ways part."""
    with recorded_chunks() as calls:
        if model.audio_encoder is None:
            style = np.asarray(random_motion(1, 100))
            decode_prior(model, style, 1, sampling=Sampling(tau=0.0))
            decoded = torch_runs.decode(reference, style=tensor(style), num_chunks=1, tau=0.0)
        else:
            audio = np.random.default_rng(0).normal(0, 0.1, (2, 64_000)).astype(np.float32)
            reference.audio_encoder = encoder_reference(checkpoint)
            assert_relative(
                reference.audio_encoder(tensor(audio)), jitted(model.audio_encoder, lambda m, x: m(x), audio)
            )
            decode(model, *audio, sampling=Sampling(tau=0.0))
            decoded = torch_runs.decode(reference, tensor(audio), tau=0.0)
    bits, logits, motion = (np.asarray(getattr(calls[0].chunk, name)[0, :1]) for name in ("bits", "logits", "motion"))
    sure = np.abs(logits[..., 1] - logits[..., 0]) > SURE_GAP
    for tokens in scale_slices(model.codec.scales):
        of_scale = sure[:, tokens]
        np.testing.assert_array_equal(decoded.bits.numpy()[:, tokens][of_scale], bits[:, tokens][of_scale])
        if not of_scale.all():
            return
    np.testing.assert_allclose(decoded.motion.numpy(), motion, atol=1e-4)


def encoder_reference(checkpoint: Checkpoint) -> torch.nn.Module:
    """The PyTorch reference of a checkpoint's own audio encoder."""
    sizes = asdict(checkpoint.config.wav2vec2)
    names = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "intermediate_size": "hidden_dim",
        "conv_dim": "conv_dims",
        "conv_kernel": "conv_kernels",
        "conv_stride": "conv_strides",
        "num_conv_pos_embeddings": "pos_conv_kernel",
        "num_conv_pos_embedding_groups": "pos_conv_groups",
        "layer_norm_eps": "norm_eps",
    }
    reference = build_encoder({theirs: sizes[ours] for theirs, ours in names.items()})
    params = {path: value for path, value in checkpoint.params.items() if path.startswith("audio_encoder/")}
    load_strictly(reference, to_torch(params, "audio_encoder"), "random weights")
    return reference.eval()
