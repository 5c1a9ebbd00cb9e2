"""DualTalk against the goldens: every module, losses, gradients, Adam's updates, the paper's option, frame counts."""

import dataclasses
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import jitted

from parity.compare import GRADIENT, LAYER, MODEL, TRAINED, assert_close, assert_relative
from parity.conftest import wav2vec2_config
from unils_jax.audio import normalize_record
from unils_jax.checkpoints.torch_keys import UNKNOWN, check_params, to_paths, torch_views
from unils_jax.nn.layers import resample
from unils_jax.nn.params import abstract, merge
from unils_jax.systems.base import Objective
from unils_jax.systems.dualtalk.model import DualTalk, DualTalkConfig, num_frames
from unils_jax.systems.dualtalk.system import DUALTALK_STAGE
from unils_jax.training.optimizer import OptimizerConfig, learning_rate
from unils_jax.training.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("unoptimised")
QUIET = dataclasses.replace(DUALTALK_STAGE, draw=None)
SUPPORT = Path(__file__).parents[1] / "support"
MANIFEST = json.loads(gzip.decompress((SUPPORT / "manifest_dualtalk.json.gz").read_bytes()))
# Adding the same to every key moves no softmax: gradients of key biases are zero but for rounding (below 1e-6), which
# Adam turns into full steps, so that these biases are left out after updates.
GRADIENT_FLOOR = 1e-6


@pytest.fixture(scope="module")
def case(golden):
    return golden("dualtalk")


@pytest.fixture(scope="module")
def config(case) -> DualTalkConfig:
    sizes = case.config
    return DualTalkConfig(
        wav2vec2_config(sizes["w2v"]),
        width=sizes["feature_dim"],
        num_heads=sizes["heads"],
        hidden_dim=sizes["dim_feedforward"],
        depth=sizes["encoder_layers"],
        decoder_depth=sizes["decoder_layers"],
        strength=sizes["mod_factor"],
    )


@pytest.fixture(scope="module")
def params(case, config) -> dict:
    params = to_paths(case.weights, "dualtalk")
    _, shapes = abstract(lambda rngs: DualTalk(config, rngs=rngs))
    check_params({path: shape.shape for path, shape in shapes.items()}, params, "golden")
    return {path: jnp.asarray(value) for path, value in params.items()}


def model_of(config: DualTalkConfig, params: dict) -> DualTalk:
    return merge(abstract(lambda rngs: DualTalk(config, rngs=rngs))[0], params)


@pytest.fixture(scope="module")
def batch(case) -> dict[str, np.ndarray]:
    """Own audio and motion, the partner's, normalised as whole recordings are."""
    audio = {n: normalize_record(case.inputs[f"audio{n}_i8"].astype(np.float32) / 128) for n in (1, 2)}
    return {
        "audio": audio[1],
        "partner_audio": audio[2],
        "partner_motion": case.inputs["motion2"],
        "motion": case.inputs["motion1"],
    }


@pytest.fixture(scope="module")
def parts(config, params, batch) -> dict[str, jax.Array]:
    """What every module gives, by the goldens' names."""

    def encoder(model, name, audio, frames):
        encoder = getattr(model, name)
        conv = encoder.extract(audio)
        resampled = resample(conv, frames)
        proj = encoder.feature_proj(encoder.feature_norm(resampled))
        position = encoder.pos_conv(proj)
        first = encoder.blocks[0](proj + position)
        names = ("conv", "resampled", "proj", "posconv", "layer0", "last")
        return dict(zip(names, (conv, resampled, proj, position, first, encoder.encode(resampled)), strict=True))

    def run(model, batch):
        frames, out = num_frames(batch["audio"].shape[-1]), {}
        for n, name, audio in ((1, "own_encoder", "audio"), (2, "partner_encoder", "partner_audio")):
            out |= {f"w2v{n}_{part}": value for part, value in encoder(model, name, batch[audio], frames).items()}
            out[f"audio_feat{n}"] = model.audio_proj(out[f"w2v{n}_last"])
        out["motion_feat"] = model.motion_encoder(batch["partner_motion"])
        out["cross_attention"] = attended = model.partner_attn(out["audio_feat2"], out["motion_feat"])
        lstm = model.partner_lstm
        out["lstm_layer0"] = jnp.concatenate([lstm.forward[0](attended), lstm.backward[0](attended)], -1)
        out["lstm"] = lstm(attended)
        x = out["interaction_in"] = jnp.concatenate([out["audio_feat1"], out["lstm"]], -1)
        layer = model.interaction[0]
        out["enc0_self_attn"] = layer.self_attn(x)
        out["enc0_norm1"] = layer.self_norm(x + out["enc0_self_attn"])
        for i, layer in enumerate(model.interaction):
            x = out[f"enc{i}"] = layer(x)
        y = out["self_attention"] = model.fusion_attn(x)
        layer = model.synthesis[0]
        out["dec0_norm1"] = first = layer.self_norm(y + layer.self_attn(y))
        out["dec0_norm2"] = layer.cross_norm(first + layer.cross_attn(first, y))
        out["decoder"] = layer(y, y)
        out["modulation"] = model.modulation(out["decoder"])
        out["modulated"] = model.modulate(out["decoder"])
        out["output"] = model(batch["audio"], batch["partner_audio"], batch["partner_motion"])
        return out

    return jitted(model_of(config, params), run, batch)


def test_audio_is_normalised_as_the_processor_does(case, batch):
    for n, name in ((1, "audio"), (2, "partner_audio")):
        expected = case.outputs[f"norm_audio{n}_first1000"]
        assert_close(batch[name][:, : expected.shape[-1]], expected, LAYER)


ENCODER = [f"w2v{n}_{part}" for n in (1, 2) for part in ("conv", "resampled", "proj", "posconv", "layer0", "last")]
REST = ["motion_feat", "audio_feat1", "audio_feat2", "cross_attention", "lstm_layer0", "lstm", "interaction_in"]
REST += ["enc0_self_attn", "enc0_norm1", "enc0", "enc1", "enc2", "self_attention", "dec0_norm1", "dec0_norm2"]


@pytest.mark.parametrize("name", [*ENCODER, *REST, "decoder", "modulation", "modulated"])
def test_output_of_a_module_matches(case, parts, name):
    # Modules get our own inputs, so the error is that of all modules before as well.
    assert_close(parts[name], case.outputs[name], MODEL if name.endswith(("layer0", "last")) else LAYER)


def test_motion_matches(case, parts):
    assert_close(parts["output"], case.outputs["output"], LAYER)


def test_motion_of_the_papers_modulation_matches(case, config, params, batch):
    model = model_of(dataclasses.replace(config, sigmoid=True), params)
    out = jitted(model, DualTalk.__call__, batch["audio"], batch["partner_audio"], batch["partner_motion"])
    assert_close(out, case.outputs["option_sigmoid_output"], LAYER)


LOSSES = {"expression": "exp", "jaw": "jaw", "head": "pose", "velocity": "velocity", "loss": "total"}


@dataclasses.dataclass(frozen=True)
class Training:
    """Losses before each of three updates and after them, the first gradients, the weights after three."""

    losses: np.ndarray
    grads: dict
    weights: dict


@pytest.fixture(scope="module")
def training(case, config, params, batch) -> Training:
    """Through the package's train step, in evaluation mode."""
    settings = OptimizerConfig(
        learning_rate=1e-4, warmup_steps=0, final_factor=1.0, weight_decay=0.0, max_grad_norm=0.0, ema_decay=0.0
    )
    graphdef = abstract(lambda rngs: DualTalk(config, rngs=rngs))[0]
    trainable, frozen = DUALTALK_STAGE.split(params)
    step = make_train_step(QUIET, graphdef, Objective(), settings)
    state, losses, states = init_state(trainable, settings), [], []
    for _ in case.outputs["adam_losses"]:
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        losses.append([metrics[name] for name in LOSSES])
        states.append(jax.device_get(state))  # the next step is given its memory
    moments = states[0].opt_state[0].mu  # a tenth of the first gradients
    return Training(np.array(losses), {path: m / np.float32(0.1) for path, m in moments.items()}, states[2].params)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_matches(case, training, name):
    assert_relative(training.losses[0, list(LOSSES).index(name)], case.outputs[f"loss.{LOSSES[name]}"], LAYER)


def test_every_gradient_matches(case, training):
    expected = {key.removeprefix("grad."): v for key, v in case.outputs.items() if key.startswith("grad.")}
    found = dict(torch_views(training.grads, "dualtalk"))
    without = [key for key in found if key.endswith("masked_spec_embed")]
    assert sorted(without) == sorted(case.config["no_grad"])
    assert not any(found.pop(key).any() for key in without)
    assert set(found) == set(expected)
    for key, value in found.items():
        error, size = np.abs(value - expected[key]).max(), np.abs(expected[key]).max()
        assert error <= max(GRADIENT * size, GRADIENT_FLOOR), f"{key}: error {error:.1e} of {size:.1e}"


def test_only_the_convolutions_are_frozen(case, params):
    _, frozen = DUALTALK_STAGE.split(params)
    assert {key for key, _ in torch_views(frozen, "dualtalk")} == set(case.config["frozen"])


def test_losses_of_three_updates_match(case, training):
    # The goldens' own float32 error after three updates is 2e-6.
    np.testing.assert_allclose(training.losses, case.outputs["adam_losses"], rtol=1e-5)


def test_weights_after_three_updates_match(case, training):
    found = dict(torch_views(training.weights, "dualtalk"))
    expected = {key.removeprefix("after3."): v for key, v in case.outputs.items() if key.startswith("after3.")}
    assert len(expected) >= 8
    for key, value in expected.items():
        actual = found[key]
        if key.endswith("in_proj_bias"):
            actual, value = (np.delete(x, np.s_[len(x) // 3 : 2 * len(x) // 3]) for x in (actual, value))
        if not key.endswith("k_proj.bias"):
            assert_close(actual, value, TRAINED)


def test_the_rate_falls_by_a_fifth_every_fifty_epochs(case):
    config = OptimizerConfig(
        learning_rate=1e-4, warmup_steps=0, final_factor=1.0, lr_decay_every_steps=50, stair_factor=0.8
    )
    for epoch, expected in case.config["steplr"].items():
        assert float(learning_rate(config, int(epoch))) == pytest.approx(expected, rel=1e-5)


def test_frame_counts_round_up_for_some_whole_multiples():
    assert num_frames(4480) == 8
    trapped = [k for k in range(1, 5001) if num_frames(640 * k) != k]
    assert trapped[:6] == [7, 14, 28, 55, 56, 109] and len(trapped) == 286
    assert len([k for k in trapped if k < 625]) == 34
    assert not {100 * k for k in range(1, 21)} & set(trapped)
    assert all(num_frames(640 * k + 1) == k + 1 for k in trapped)


def test_tracks_of_other_lengths_follow_the_own_audio(config):
    graphdef, shapes = abstract(lambda rngs: DualTalk(config, rngs=rngs))
    sizes = {"audio": (1, 17_930), "partner_audio": (1, 12_001), "partner_motion": (1, 25, 56), "motion": (1, 26, 56)}
    arrays = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}

    def run(params, batch):
        model = merge(graphdef, params)
        motion = model(batch["audio"], batch["partner_audio"], batch["partner_motion"])
        return motion, DUALTALK_STAGE.loss(model, batch, None, Objective(), None)[0]

    motion, loss = jax.eval_shape(run, shapes, arrays)
    assert (motion.shape, loss.shape) == ((1, 29, 56), ())


def test_every_published_key_has_a_path_and_back():
    published = {key: np.broadcast_to(np.float32(0), shape) for key, shape in MANIFEST["state_dict"].items()}
    params = to_paths(published, "dualtalk")
    assert not [path for path in params if path.startswith(UNKNOWN)]
    assert {key: list(view.shape) for key, view in torch_views(params, "dualtalk")} == MANIFEST["state_dict"]
    trainable, frozen = ({p: v.size for p, v in part.items()} for part in DUALTALK_STAGE.split(params))
    assert (len(params), sum(trainable.values()), sum(frozen.values())) == (932, 638_816_696, 8_420_352)


@pytest.mark.slow
def test_the_model_of_the_papers_size_has_the_published_parameters():
    _, shapes = abstract(lambda rngs: DualTalk(DualTalkConfig(), rngs=rngs))
    published = {key: np.broadcast_to(np.float32(0), shape) for key, shape in MANIFEST["state_dict"].items()}
    check_params({p: tuple(s.shape) for p, s in shapes.items()}, to_paths(published, "dualtalk"), "manifest")


def test_the_newer_names_of_the_weight_norm_are_read(case, params):
    newer = {
        key.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): value
        for key, value in case.weights.items()
    }
    assert set(newer) != set(case.weights)
    again = to_paths(newer, "dualtalk")
    assert set(again) == set(params)
    assert all(np.array_equal(again[path], params[path]) for path in params)
