"""The PyTorch reference against the goldens: everything that our own model is held to, at the same tolerances."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from parity.compare import (
    GRADIENT,
    LAYER,
    MODEL,
    RECORDED,
    TABLE,
    TRAINED,
    assert_bits_equal,
    assert_close,
    assert_relative,
)
from parity.test_codec import TERMS, WEIGHTS
from parity.updates import schedule
from unils_jax.face.flame import vertices

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[torch]'")
torch.set_num_threads(1)  # the models are tiny and the other cores are busy with other tests

from unils_jax.benchmarks.torch_encoder import load_strictly  # noqa: E402
from unils_jax.benchmarks.torch_model import StepNoise, load_torch_reference  # noqa: E402
from unils_jax.benchmarks.torch_quantizer import full_features, next_scale_inputs, scale_slices  # noqa: E402
from unils_jax.benchmarks.torch_runs import add_lora, decode, make_optimizer, train_step  # noqa: E402


@pytest.fixture(scope="module")
def codec(release):
    return load_torch_reference(release.codec)


@pytest.fixture(scope="module")
def prior(release):
    return load_torch_reference(release.prior)


@pytest.fixture(scope="module")
def dialogue(release):
    return load_torch_reference(release.dialogue, release.encoder)


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def tensors(batch: dict) -> dict[str, torch.Tensor]:
    return {name: tensor(value) for name, value in batch.items()}


def close(actual: torch.Tensor, expected, tolerance: float) -> None:
    assert_close(actual.detach().numpy().reshape(expected.shape), expected, tolerance)


def relative(actual: torch.Tensor, expected, tolerance: float = LAYER) -> None:
    assert_relative(actual.detach().numpy(), expected, tolerance)


def assert_gradients_match(model: torch.nn.Module, loss: torch.Tensor, outputs: dict) -> None:
    """The gradients of `loss` are the golden's `grad.*`: the same tensors, each within GRADIENT of its size."""
    model.zero_grad()
    loss.backward()
    expected = {k.removeprefix("grad."): v for k, v in outputs.items() if k.startswith("grad.")}
    expected = {key.replace(".modules_to_save.default", ""): value for key, value in expected.items()}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for name, grad in found.items():
        assert_relative(grad.numpy(), expected[name], GRADIENT)


def assert_updates_match(model: torch.nn.Module, loss, outputs: dict) -> None:
    """Five updates record the golden's losses, norms and rates, and leave its weights."""
    config = schedule(outputs["train5_lr"])
    settings = config.decay_steps, config.learning_rate, config.warmup_steps, config.final_factor
    optimizer, rates = make_optimizer(model, *settings)
    for index, rate in enumerate(outputs["train5_lr"]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=RECORDED)
        value = loss()
        norm = train_step(model, optimizer, rates, value)
        assert_relative(value.item(), outputs["train5_loss"][index], RECORDED)
        assert_relative(norm.item(), outputs["train5_gradnorm"][index], RECORDED)
    state = model.state_dict()
    after = {key.removeprefix("train5_after."): v for key, v in outputs.items() if key.startswith("train5_after.")}
    assert after
    for key, value in after.items():
        assert_close(state[key].numpy(), value, TRAINED)


class Vertices(torch.autograd.Function):
    """Our FLAME, identity zero, no head rotation, with its gradient, for PyTorch: [B, T, 108] -> [B, T, V, 3]."""

    @staticmethod
    def forward(ctx, motion, head):
        value, ctx.pullback = jax.vjp(lambda x: vertices(head, x, head_rotation=False), motion.detach().numpy())
        return tensor(value)

    @staticmethod
    def backward(ctx, grad):
        return tensor(ctx.pullback(grad.numpy())[0]), None


def codec_terms(golden, codec, head) -> dict[str, torch.Tensor]:
    """The loss terms with the golden's weights."""
    released = golden("codec").config["loss_weights"]
    weights = {name: released[f"{key}_WEIGHT"] for name, key in WEIGHTS.items()}
    motion = tensor(golden("codec").inputs["motion"])
    return codec.loss(motion, lambda x: Vertices.apply(x, head), np.asarray(head.lips), weights)


def test_codec_reproduces_the_goldens(golden, codec):
    case = golden("codec")
    motion, outputs = tensor(case.inputs["motion"]), case.outputs
    with torch.no_grad():
        pred, quantized = codec(motion)
        zero = codec.quantize(torch.zeros_like(motion[:1])).bits
        long = codec.reconstruct(tensor(case.inputs["motion_long"]))
    assert_bits_equal(quantized.bits, outputs["bits"])
    assert_bits_equal(zero, outputs["zero_motion_bits"])
    close(quantized.features, outputs["quantized_ste"], LAYER)
    close(quantized.losses, outputs["vq_loss_per_scale"], LAYER)
    close(full_features(quantized.bits, codec.scales), outputs["feat_from_bits"], TABLE)
    close(pred, outputs["pred_motion"], MODEL)
    close(long, outputs["long_pred"], MODEL)


def test_next_scale_inputs_match(golden, codec):
    outputs = golden("codec").outputs
    bits = tensor(outputs["bits"])
    close(next_scale_inputs(bits, codec.scales), outputs["accum_next"], TABLE)
    for index, tokens in enumerate(scale_slices(codec.scales)[:-1]):
        close(next_scale_inputs(bits[:, : tokens.stop], codec.scales), outputs[f"accum_next_pidx{index}"], TABLE)


def test_flipped_path_matches(golden, codec):
    case = golden("codec")
    with torch.no_grad():
        noisy = codec.quantize(tensor(case.inputs["motion"]), tensor(case.inputs["flip_masks"]))
    assert_bits_equal(noisy.bits, case.outputs["flip_real_bits"])
    assert_bits_equal(noisy.flipped_bits, case.outputs["flip_flipped_bits"])
    close(next_scale_inputs(noisy.flipped_bits, codec.scales), case.outputs["flip_accum_next"], TABLE)


def test_codec_losses_and_gradients_match(golden, codec, codec_head):
    outputs = golden("codec").outputs
    terms = codec_terms(golden, codec, codec_head)
    for term, name in TERMS.items():
        relative(terms[name], outputs[f"loss_synidx.{term}_loss"])
    relative(sum(terms.values()), outputs["total_loss"])
    assert_gradients_match(codec, sum(terms.values()), outputs)


def test_codec_losses_without_vertices_leave_the_mesh_terms_out(golden, codec):
    terms = codec.loss(tensor(golden("codec").inputs["motion"]))
    assert set(terms) == {"vq", "motion", "pose", "velocity", "smooth"}
    relative(terms["pose"], golden("codec").outputs["loss_synidx.pose_loss"])


def test_five_updates_of_the_codec_match(golden, release, codec_head):
    codec = load_torch_reference(release.codec)
    assert_updates_match(codec, lambda: sum(codec_terms(golden, codec, codec_head).values()), golden("codec").outputs)


def test_prior_reproduces_the_goldens(golden, prior, solo_batch):
    outputs = golden("freegen").outputs
    batch = tensors(solo_batch)
    logits, bits = prior.teacher_forced(batch)
    assert_bits_equal(bits, outputs["gt_bits"])
    close(logits, outputs["logits"], MODEL)
    relative(prior.loss(batch), outputs["ce_loss"])
    assert_gradients_match(prior, prior.loss(batch), outputs)


def test_drop_path_rates_rise_as_recorded(golden, prior):
    rates = [block.drop_path_rate for block in prior.attn_blocks.attn_blocks]
    assert_close(rates, golden("freegen").config["drop_path_rates"], TABLE)


def test_prior_under_drops_and_flips_matches(golden, prior, solo_batch):
    case = golden("freegen")
    style, prev, flips = (tensor(case.inputs[name]) for name in ("drop_style", "drop_prev", "flip_masks"))
    noise = StepNoise(style, prev, prev, prev, flips)
    logits, bits = prior.teacher_forced(tensors(solo_batch), noise)
    assert_bits_equal(bits, case.outputs["stoch_gt_bits"])
    close(logits, case.outputs["stoch_logits"], MODEL)
    relative(prior.loss(tensors(solo_batch), noise), case.outputs["stoch_ce_loss"])


def test_five_updates_of_the_prior_match(golden, release, solo_batch):
    prior, batch = load_torch_reference(release.prior), tensors(solo_batch)
    assert_updates_match(prior, lambda: prior.loss(batch), golden("freegen").outputs)


def test_prior_decode_matches(golden, prior):
    case = golden("freegen")
    settings = case.config["decode"]
    style = tensor(case.inputs["decode_style"])
    decoded = decode(prior, style=style, num_chunks=settings["chunks"], tau=0.0, cfg=float(settings["cfg"]))
    assert_bits_equal(decoded.bits, case.outputs["decode_bits"])
    close(decoded.logits, case.outputs["decode_logits"], MODEL)
    close(decoded.motion, case.outputs["decode_motion"], MODEL)


@pytest.mark.parametrize("person", [0, 1])
def test_audio_features_match(golden, dialogue, pair_batch, person):
    features = dialogue.audio_encoder(tensor(pair_batch["audio"][:, person]))
    close(features, golden("loragen").outputs[f"w2v_feat_spk{person}"], MODEL)


def test_dialogue_reproduces_the_goldens(golden, dialogue, pair_batch):
    outputs = golden("loragen").outputs
    batch = tensors(pair_batch)
    logits, bits = dialogue.teacher_forced(batch)
    assert_bits_equal(bits, outputs["gt_bits"])
    close(logits, outputs["logits"], MODEL)
    relative(dialogue.loss(batch), outputs["ce_loss"])
    assert_gradients_match(dialogue, dialogue.loss(batch), outputs)


def test_dialogue_under_drops_and_flips_matches(golden, dialogue, pair_batch):
    case = golden("loragen")
    names = ("drop_style", "drop_prev", "drop_audio_self", "drop_audio_other", "flip_masks")
    noise = StepNoise(*(tensor(case.inputs[name]) for name in names))
    logits, bits = dialogue.teacher_forced(tensors(pair_batch), noise)
    assert_bits_equal(bits, case.outputs["stoch_gt_bits"])
    close(logits, case.outputs["stoch_logits"], MODEL)
    relative(dialogue.loss(tensors(pair_batch), noise), case.outputs["stoch_ce_loss"])


def test_adapters_apart_match(golden, release, pair_batch):
    case = golden("loragen_peft")
    settings = case.config["lora"]
    reference = load_torch_reference(release.dialogue, release.encoder)
    add_lora(reference, settings["r"], float(settings["alpha"]), settings["dropout"])
    codec = {f"base_codec.{key}": value for key, value in golden("codec").weights.items()}
    encoder = {f"audio_encoder.{key}": value.numpy() for key, value in reference.audio_encoder.state_dict().items()}
    base, adapters = (load_file(case.folder / f"{name}.safetensors") for name in ("base", "lora"))
    adapters = {key.replace(".modules_to_save.default", ""): value for key, value in adapters.items()}
    load_strictly(reference, {**codec, **encoder, **base, **adapters}, "golden")
    batch = tensors(pair_batch)
    close(reference.eval().teacher_forced(batch)[0], case.outputs["logits"], MODEL)
    relative(reference.loss(batch), case.outputs["ce_loss"])
    trained = {name for name, parameter in reference.named_parameters() if parameter.requires_grad}
    assert trained == {name.replace(".modules_to_save.default", "") for name in case.config["trainable"]}
    assert_gradients_match(reference, reference.loss(batch), case.outputs)


@pytest.mark.parametrize("variant", ["style", "nostyle", "prevonly", "cfg1"])
def test_dialogue_decode_matches(golden, dialogue, variant):
    case = golden("loragen_decode")
    audio = tensor(case.inputs["audio_i8"][0].astype(np.float32) / 128)
    style, prev = tensor(case.inputs["style_motion_code"][:, 0]), tensor(case.inputs["prev_motion_code"])
    clips = {"style": {"style": style}, "nostyle": {}, "prevonly": {"prev": prev}, "cfg1": {"style": style}}
    decoded = decode(dialogue, audio, **clips[variant], tau=0.0, cfg=1.0 if variant == "cfg1" else 1.5)
    assert_bits_equal(decoded.bits, case.outputs[f"{variant}_bits"])
    close(decoded.logits, case.outputs[f"{variant}_logits"], MODEL)
    close(decoded.motion, case.outputs[f"{variant}_motion"], MODEL)
