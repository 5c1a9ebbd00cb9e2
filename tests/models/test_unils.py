"""The whole model: sizes of the published configs, and configs that do not fit together."""

from dataclasses import replace
from functools import cache

import pytest
from tiny_models import CONFIGS, tiny_model

from unils_jax.config import from_dict, load_config
from unils_jax.errors import UserError
from unils_jax.models.codec import CodecConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import LoRAConfig, UniLS, UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.nn.params import abstract
from unils_jax.systems.registry import STAGES

STATISTICS = 216  # mean and deviation of 108 channels, which the published counts leave out


@cache
def published(name: str) -> dict:
    """Returns the shapes of a published config's model, by path, as the stage trains it."""
    config = from_dict(UniLSConfig, load_config(name).model.to_dict(), "model")
    shapes = abstract(lambda rngs: UniLS(replace(config, wav2vec2=None), rngs=rngs))[1]
    return shapes | (encoder(config.wav2vec2) if config.wav2vec2 else {})


@cache
def encoder(config: Wav2Vec2Config) -> dict:
    """Returns the shapes of the audio encoder, which several configs share."""
    shapes = abstract(lambda rngs: Wav2Vec2(config, rngs=rngs))[1]
    return {f"audio_encoder/{path}": shape for path, shape in shapes.items()}


def size(shapes: dict) -> int:
    return sum(shape.size for shape in shapes.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("codec", 29_549_708),
        ("prior", 54_811_340),
        ("dialogue", 395_499_852),
        ("codec_s", 12_520_076),
        ("prior_s", 23_200_716),
        ("dialogue_s", 351_669_836),
    ],
)
def test_a_published_config_has_the_published_number_of_parameters(name, expected):
    merged = {path: shape for path, shape in published(name).items() if "/lora_" not in path}
    assert size(merged) - STATISTICS == expected


@pytest.mark.parametrize(("name", "expected"), [("dialogue", 80_061_132), ("dialogue_s", 36_231_116)])
def test_without_its_audio_encoder_a_dialogue_model_has_the_published_number(name, expected):
    saved = {p: s for p, s in published(name).items() if "/lora_" not in p and not p.startswith("audio_encoder/")}
    assert size(saved) - STATISTICS == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("prior", 25_261_632), ("dialogue", 27_380_736), ("dialogue_s", 14_235_648)]
)
def test_a_stage_trains_the_published_number_of_parameters(name, expected):
    trainable, _ = STAGES[name.removesuffix("_s")].split(published(name))
    assert size(trainable) == expected


def test_the_papers_cross_attentions_hold_25_million():
    assert size({p: s for p, s in published("dialogue").items() if "_audio_attn/" in p}) == 25_247_744


@pytest.mark.parametrize("stage", ["codec", "prior", "dialogue"])
def test_the_parts_of_a_model_tell_its_stage(stage):
    assert CONFIGS[stage].stage == stage
    model = tiny_model(stage)
    assert (model.prior is None, model.audio_encoder is None) == (stage == "codec", stage != "dialogue")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"codec": CodecConfig(width=30, num_heads=4)}, r"codec.width / num_heads must be an even number, got 30 / 4"),
        ({"codec": CodecConfig(width=12, num_heads=4)}, r"codec.width / num_heads must be an even number, got 12 / 4"),
        ({"prior": PriorConfig(width=100, num_heads=8)}, r"prior.width / num_heads"),
        ({"codec": CodecConfig(scales=(5, 1, 100))}, r"codec.scales must rise from at least 1, got \(5, 1, 100\)"),
        ({"codec": CodecConfig(scales=(0, 100))}, r"codec.scales must rise from at least 1"),
        ({"codec": CodecConfig(scales=())}, r"codec.scales must rise from at least 1"),
        ({"prior": PriorConfig(), "codec": CodecConfig(scales=(100,))}, "a prior needs at least two codec.scales"),
        ({"prior": PriorConfig(), "logmel": LogMelConfig()}, r"prior.audio_dim must be the encoder's 200, got None"),
        (
            {"prior": PriorConfig(audio_dim=1024), "wav2vec2": Wav2Vec2Config(), "logmel": LogMelConfig()},
            "give wav2vec2 or logmel, not both",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        UniLSConfig(**parts)


def test_all_problems_are_named_at_once():
    with pytest.raises(UserError, match="codec.width.*prior.width"):
        UniLSConfig(codec=CodecConfig(width=30), prior=PriorConfig(width=30))


def test_a_config_is_read_back_from_plain_values():
    plain = {"codec": {"scales": [1, 100], "width": 16, "num_heads": 2}, "prior": None, "lora": {"rank": 4}}
    config = from_dict(UniLSConfig, plain)
    assert config == UniLSConfig(CodecConfig(scales=(1, 100), width=16, num_heads=2), lora=LoRAConfig(rank=4))


def test_an_unknown_setting_is_refused_with_the_nearest_known_one():
    with pytest.raises(UserError, match="config.codec has no setting 'widht', did you mean 'width'"):
        from_dict(UniLSConfig, {"codec": {"widht": 16}})
