"""The PyTorch reference beyond the goldens: sizes, strict loading, training mode, sampling, both people."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pt_writer import call, write_pt
from safetensors.numpy import save_file
from tiny_runs import meta_cfg

import unils_jax.inference.conversations
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.inference.sampling import Sampling, nucleus_probability

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
torch.set_num_threads(1)  # the models are tiny and the other cores are busy with other tests

from unils_jax.benchmarks.torch_encoder import build_encoder, load_encoder  # noqa: E402
from unils_jax.benchmarks.torch_model import (  # noqa: E402
    TorchReferenceGenerator,
    build_torch_reference,
    load_torch_reference,
    rotary_table,
)
from unils_jax.benchmarks.torch_runs import LoRALinear, add_lora, decode, make_optimizer, sample_noise, train_step  # noqa: E402

SUPPORT = Path(__file__).parents[1] / "support"
MANIFEST = json.loads(gzip.decompress((SUPPORT / "manifest.json.gz").read_bytes()))
META_CFG = json.loads((SUPPORT / "meta_cfg.json").read_text())


@pytest.fixture(scope="module")
def dialogue(release):
    return load_torch_reference(release.dialogue, release.encoder)


@pytest.fixture(scope="module")
def audio(golden):
    """Two tracks of 237 frames, [2, N]."""
    return golden("loragen_decode").inputs["audio_i8"][0].astype(np.float32) / 128


@pytest.fixture
def fresh(release):
    """A prior with fresh weights."""
    torch.manual_seed(0)
    return build_torch_reference(json.loads(json.dumps(meta_cfg_of(release.prior))))


def meta_cfg_of(path: Path) -> dict:
    return load(path).meta_cfg


def solo_batch(people: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(people, 100, 108).cumsum(1) / 4 for name in ("motion", "prev", "style")}


@pytest.mark.parametrize("name", META_CFG)
def test_every_released_model_has_exactly_the_released_keys_and_shapes(name):
    with torch.device("meta"):
        reference = build_torch_reference(META_CFG[name], 1024 if name.startswith("dialogue") else None)
    assert {key: list(value.shape) for key, value in reference.state_dict().items()} == MANIFEST[name]["state_dict"]


def test_lora_names_and_counts_are_peft_s():
    with torch.device("meta"):
        reference = build_torch_reference(META_CFG["dialogue"], 1024)
        add_lora(reference)
    trained = {name: p.numel() for name, p in reference.named_parameters() if p.requires_grad}
    assert sum(size for name, size in trained.items() if "lora_" in name) == 2_132_992
    assert sum(trained.values()) == 27_380_736
    adapted = {name.removesuffix(".lora_A.default.weight") for name in trained if "lora_A" in name}
    layers = ("self_attn.to_qkv", "self_attn.to_out", "ffn.1", "ffn.3")
    blocks = {f"attn_blocks.attn_blocks.{index}.{layer}" for index in range(8) for layer in layers}
    assert adapted == {"code_token_embed", "logits_head.1"} | blocks


def test_the_encoder_has_exactly_transformers_keys_and_shapes():
    config = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "conv_dim": [512] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "layer_norm_eps": 1e-5,
    }
    with torch.device("meta"):
        state = build_encoder(config).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == MANIFEST["audio_encoder"]["state_dict"]


def test_a_safetensors_file_gives_the_same_reference(golden, tmp_path, release):
    weights = golden("freegen").weights
    save_file(weights, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps(meta_cfg(golden("freegen").config["model"])))
    state, same = (load_torch_reference(path).state_dict() for path in (tmp_path / "x.safetensors", release.prior))
    assert set(state) == set(same)
    assert all(torch.equal(value, same[key]) for key, value in state.items())


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "truncated", "text", "absent", "config"])
def test_a_file_that_does_not_fit_is_one_clear_line(golden, tmp_path, damage):
    case, path = golden("freegen"), tmp_path / "x.pt"
    weights, config = dict(case.weights), meta_cfg(case.config["model"])
    if damage == "missing":
        del weights["sos_embed"]
    elif damage == "unexpected":
        weights["attn_blocks.odd"] = np.zeros(3, np.float32)
    elif damage == "misshapen":
        weights["sos_embed"] = np.zeros((1, 1, 7), np.float32)
    elif damage == "config":
        config["MODEL"] = {**config["MODEL"], "T_DEPTH": 10**9}
    if damage != "absent":
        write_pt(path, {"model": weights, "meta_cfg": config})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    with pytest.raises(UserError, match="x.pt|T_DEPTH") as raised:
        load_torch_reference(path)
    assert "\n" not in str(raised.value)
    named = {"missing": "sos_embed", "unexpected": "attn_blocks.odd", "misshapen": "sos_embed", "config": "T_DEPTH"}
    assert named.get(damage, "") in str(raised.value)


def test_a_hostile_pickle_is_refused_and_nothing_runs(golden, tmp_path):
    case, marker = golden("codec"), tmp_path / "ran"
    evil = call("os", "system", (f"touch {marker}",))
    checkpoint = {"model": case.weights, "meta_cfg": meta_cfg(case.config["model"])}
    with pytest.raises(UserError, match="evil.pt"):
        load_torch_reference(write_pt(tmp_path / "evil.pt", checkpoint, evil))
    assert not marker.exists()


def test_an_encoder_in_either_naming_is_the_same(release, tmp_path):
    old = {
        "wav2vec2."
        + key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in release.w2v.items()
    }
    save_file(old | {"lm_head.weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((release.encoder / "config.json").read_text())
    state, same = (load_encoder(folder).state_dict() for folder in (tmp_path, release.encoder))
    assert all(torch.equal(value, same[key]) for key, value in state.items())
    save_file(old | {"odd": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="odd"):
        load_encoder(tmp_path)


def test_drop_path_drops_whole_branches_in_training_only(fresh):
    block = fresh.attn_blocks.attn_blocks[1]
    block.drop_path_rate = 0.3
    x = torch.ones(20_000, 2, 3)
    assert torch.equal(block.eval().drop_path(x), x)
    dropped = block.train().drop_path(x)
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2)))
    np.testing.assert_allclose(dropped[:, 0, 0].unique(), [0, 1 / 0.7], rtol=1e-6)
    assert dropped.mean() == pytest.approx(1, abs=0.02)


def test_an_adapter_starts_as_the_identity_and_drops_out_in_training_only(fresh):
    inputs = solo_batch()
    before = fresh.eval().loss(inputs)
    add_lora(fresh)
    assert torch.equal(fresh.eval().loss(inputs), before)
    layer = fresh.code_token_embed
    assert isinstance(layer, LoRALinear)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.ones(3, layer.in_features)
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))


def test_noise_is_drawn_at_its_rates(fresh):
    torch.manual_seed(0)
    noise = sample_noise(fresh, 4000)
    assert all(drop.shape == (4000, 1, 1) for drop in noise[:4])
    np.testing.assert_allclose([drop.float().mean() for drop in noise[:4]], 0.1, atol=0.02)
    scales = fresh.base_codec.scales
    per_scale = noise.flips.float().split(scales[:-1], dim=1)
    rates = np.array([part.mean() for part in per_scale])
    assert noise.flips.shape == (4000, sum(scales[:-1]), fresh.base_codec.code_dim)
    np.testing.assert_allclose(rates, rates.round(2), atol=0.005)
    assert rates.max() <= 0.305 and len(set(rates.round(2))) > 1


def test_a_training_step_lowers_the_loss_and_leaves_the_codec(fresh):
    batch = solo_batch()
    codec = {key: value.clone() for key, value in fresh.base_codec.state_dict().items()}
    optimizer, schedule = make_optimizer(fresh, num_steps=10, rate=3e-3, warmup=1)
    fresh.train()
    losses = []
    for _ in range(6):
        loss = fresh.loss(batch, sample_noise(fresh, 2, max_flip_percent=0))
        losses.append(loss.item())
        assert train_step(fresh, optimizer, schedule, loss) > 0
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, codec[key]) for key, value in fresh.base_codec.state_dict().items())


def test_the_second_person_is_a_decode_with_the_tracks_swapped(dialogue, release, audio):
    own, other = audio[:, :70_000]
    model = load(release.dialogue, audio_encoder=str(release.encoder)).model
    ours = unils_jax.inference.conversations.decode(model, own, other, sampling=Sampling(tau=0.0))
    for person, tracks in enumerate((audio, audio[::-1])):
        decoded = decode(dialogue, torch.tensor(tracks[:, :70_000].copy()), tau=0.0)
        assert decoded.motion.shape == (1, 110, 108)
        np.testing.assert_allclose(decoded.motion[0], ours[person], atol=1e-4)


def test_sampling_follows_its_generator(dialogue, audio):
    window = torch.tensor(audio[:, :20_000])
    draws = [decode(dialogue, window, generator=torch.Generator().manual_seed(seed)).bits for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_sampled_bits_have_the_probabilities_of_ours(dialogue, audio):
    """Bits of the first scale, whose logits do not depend on chance, over many draws."""
    window, draws = torch.tensor(audio[:, :640]), 60
    generator = torch.Generator().manual_seed(0)
    results = [decode(dialogue, window, tau=1.3, generator=generator) for _ in range(draws)]
    first = torch.stack([result.bits[0, 0] for result in results]).float().mean(0)
    p = np.asarray(nucleus_probability(jax.numpy.asarray(results[0].logits[0, 0].numpy()), 0.03))
    np.testing.assert_allclose(first, p, atol=4 * (0.25 / draws) ** 0.5)


def test_a_decode_in_inference_mode_does_not_spoil_training(release):
    prior, batch = load_torch_reference(release.prior), solo_batch()
    rotary_table.cache_clear()
    with torch.inference_mode():
        decode(prior, style=batch["style"][:1], num_chunks=1)
    prior.loss(batch).backward()
    assert prior.sos_embed.grad.abs().sum() > 0


def test_a_dialogue_without_its_encoder_still_takes_features(release):
    reference = load_torch_reference(release.dialogue)
    assert isinstance(reference, TorchReferenceGenerator) and reference.audio_encoder is None
    features = torch.zeros(1, 100, 8)
    sound = torch.zeros(1, 199, reference.audio_dim)
    assert reference(features, features, torch.zeros(1, 0, 8), sound, sound).shape == (1, 1, 8, 2)


def test_the_torch_reference_needs_no_jax():
    code = "import sys; sys.modules['jax'] = sys.modules['flax'] = None; import unils_jax.benchmarks.torch_runs"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
