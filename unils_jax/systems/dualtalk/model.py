"""DualTalk: own audio, partner's audio and partner's motion -> own motion, all frames at once.

The field's baseline of two people in conversation (arXiv 2505.18096), as its authors' code computes
it; where the paper's text says something else, it is an option. Motion has 56 channels: expression
50, jaw 3, head 3, as tracked.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.models.encoder_noise import EncoderNoise, EncoderRates, draw_encoder_noise
from unils_jax.models.logmel import LogMel, LogMelConfig
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.motion import FPS, MOTION_56_DIM, MOTION_56_GROUPS, SAMPLE_RATE
from unils_jax.nn.layers import Linear, RandomKey, SampleKeys, dropout, split_key
from unils_jax.nn.lstm import BidirectionalLSTM
from unils_jax.nn.postnorm import DecoderLayer, EncoderLayer, MultiHeadAttention, SelfBias
from unils_jax.nn.stack import FLOAT32, Compute


@dataclass(frozen=True)
class DualTalkConfig:
    """Sizes of the model; the defaults are the paper's."""

    stage: ClassVar[str] = "dualtalk"

    wav2vec2: Wav2Vec2Config = Wav2Vec2Config()  # of either audio encoder
    width: int = 256  # of a feature; audio and motion together are twice as wide
    num_heads: int = 4
    hidden_dim: int = 2048  # of the feed-forward parts
    depth: int = 3  # layers of the interaction
    decoder_depth: int = 1  # layers of the synthesis
    strength: float = 0.1  # of the modulation
    sigmoid: bool = False  # True: strength * sigmoid(W x), the paper's text; the published code has no sigmoid
    # True, the paper's text: the attention between interaction and synthesis sees its own frame
    # alone. In the published code it starts as the mean of all frames, without a way around it.
    alignment: bool = False
    dropout_rate: float = 0.1  # in encoder and decoder layers
    fusion_rate: float = 0.5  # dropout before the decoder
    rates: EncoderRates = field(default_factory=EncoderRates)  # of the audio encoders, in training
    # In place of both audio encoders, at sizes where a published one is too large: features without
    # weights.
    logmel: LogMelConfig | None = None

    def __post_init__(self) -> None:
        """Raises UserError where sizes do not fit together."""
        problems = []
        if min(self.width, self.num_heads, self.hidden_dim, self.depth, self.decoder_depth) < 1:
            problems.append("width, num_heads, hidden_dim, depth and decoder_depth must be at least 1")
        elif self.width % 2 or self.width % self.num_heads:
            problems.append(f"width must be even and a multiple of num_heads, got {self.width} and {self.num_heads}")
        if not (0 <= self.dropout_rate < 1 and 0 <= self.fusion_rate < 1):
            problems.append(
                f"dropout_rate and fusion_rate must be in 0..1, got {self.dropout_rate}, {self.fusion_rate}"
            )
        if problems:
            raise UserError("model.dualtalk: " + "; ".join(problems))


@dataclass(frozen=True)
class DualTalkNoise:
    """One draw of noise for a batch."""

    own: EncoderNoise | None  # in the own audio encoder; None: log-mel features
    partner: EncoderNoise | None
    keys: Array  # [B], for the dropout of the rest


jax.tree_util.register_dataclass(DualTalkNoise, ["own", "partner", "keys"], [])


class MotionEncoder(nnx.Module):
    """Linear, ReLU, Linear, ReLU."""

    def __init__(self, motion_dim: int, width: int, *, rngs: nnx.Rngs):
        self.up = Linear(motion_dim, width // 2, rngs=rngs)
        self.out = Linear(width // 2, width, rngs=rngs)

    def __call__(self, motion: Float[Array, "B T M"]) -> Float[Array, "B T D"]:
        """Encodes motion channels to features."""
        return jax.nn.relu(self.out(jax.nn.relu(self.up(motion))))


class DualTalk(nnx.Module):
    """The network.

    `fusion_bias` of the call is added to the scores of the attention between interaction and
    synthesis; without it there is none, or with `alignment` that of the own frame.
    """

    def __init__(self, config: DualTalkConfig, *, rngs: nnx.Rngs):
        width, heads = config.width, config.num_heads
        sizes = {"dropout_rate": config.dropout_rate, "rngs": rngs}
        if config.logmel is None:
            self.own_encoder = Wav2Vec2(config.wav2vec2, config.rates, rngs=rngs)
            self.partner_encoder = Wav2Vec2(config.wav2vec2, config.rates, rngs=rngs)
        else:
            self.own_encoder, self.partner_encoder = LogMel(config.logmel), LogMel(config.logmel)
        self.audio_proj = Linear((config.logmel or config.wav2vec2).feature_dim, width, rngs=rngs)
        self.motion_encoder = MotionEncoder(MOTION_56_DIM, width, rngs=rngs)
        self.partner_attn = MultiHeadAttention(width, heads, rngs=rngs)
        self.partner_lstm = BidirectionalLSTM(width, width // 2, 2, rngs=rngs)
        layer = EncoderLayer(2 * width, heads, config.hidden_dim, **sizes)
        # torch makes an encoder of copies of one layer: they start equal.
        self.interaction = nnx.List(nnx.clone(layer) for _ in range(config.depth))
        self.fusion_attn = MultiHeadAttention(2 * width, heads, rngs=rngs)
        layer = DecoderLayer(2 * width, heads, config.hidden_dim, **sizes)
        self.synthesis = nnx.List(nnx.clone(layer) for _ in range(config.decoder_depth))
        self.modulation = Linear(2 * width, 2 * width, rngs=rngs)
        self.head = Linear(2 * width, MOTION_56_DIM, rngs=rngs)
        self.strength, self.sigmoid, self.fusion_rate = config.strength, config.sigmoid, config.fusion_rate
        self.alignment = config.alignment
        self.rates = config.rates

    def __call__(
        self,
        own_audio: Float[Array, "B N"],
        partner_audio: Float[Array, "B n"],
        partner_motion: Float[Array, "B t M"],
        compute: Compute = FLOAT32,
        noise: DualTalkNoise | None = None,
        fusion_bias: SelfBias | None = None,
    ) -> Float[Array, "B T M"]:
        """Returns float32 motion of `num_frames(N)` frames, to which either track is resampled.

        Audio is normalised by `audio.normalize_record`, over the whole recording and not over a
        window of it.
        """
        frames = num_frames(own_audio.shape[-1])
        own_noise, partner_noise = (None, None) if noise is None else (noise.own, noise.partner)
        with jax.named_scope("audio"):
            own = self.audio_proj(self.own_encoder.at_frames(own_audio, frames, compute, own_noise))
            partner = self.audio_proj(self.partner_encoder.at_frames(partner_audio, frames, compute, partner_noise))
        interact_key, synthesis_key = split_key(None if noise is None else noise.keys, 2)
        with jax.named_scope("partner"):
            seen = self.motion_encoder(partner_motion.astype(compute.dtype))
            temporal = self.partner_lstm(self.partner_attn(partner, seen))
        x = self.interact(jnp.concatenate([own, temporal], axis=-1), fusion_bias, interact_key)
        return self.synthesise(x, synthesis_key).astype(jnp.float32)

    def interact(
        self, x: Float[Array, "B T D"], bias: SelfBias | None = None, key: SampleKeys | None = None
    ) -> Float[Array, "B T D"]:
        """Mixes own audio and the partner's features, [own | partner], over all frames."""
        with jax.named_scope("interaction"):
            *layer_keys, drop_key = split_key(key, len(self.interaction) + 1)
            for layer, layer_key in zip(self.interaction, layer_keys, strict=True):
                x = layer(x, None, layer_key)
            if bias is None and self.alignment:
                bias = np.where(np.eye(x.shape[1], dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
            return dropout(self.fusion_attn(x, None, bias), self.fusion_rate, drop_key)

    def synthesise(self, x: Float[Array, "B T D"], key: SampleKeys | None = None) -> Float[Array, "B T M"]:
        """Decodes the features with themselves as memory, modulates them, and returns motion."""
        with jax.named_scope("synthesis"):
            memory = x
            for layer, layer_key in zip(self.synthesis, split_key(key, len(self.synthesis)), strict=True):
                x = layer(x, memory, None, None, layer_key)
            return self.head(self.modulate(x))

    def modulate(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Adds a little of what the modulation layer makes of `x` to it."""
        y = self.modulation(x)
        return x + self.strength * (jax.nn.sigmoid(y) if self.sigmoid else y)

    def draw(self, key: RandomKey, batch_size: int, num_samples: int) -> DualTalkNoise:
        """Draws a batch's noise, for so much audio."""
        frames = num_frames(num_samples)
        own, partner, rest = jax.random.split(key, 3)
        keys = jax.random.split(rest, batch_size)
        if isinstance(self.own_encoder, LogMel):
            return DualTalkNoise(None, None, keys)
        depth = len(self.own_encoder.blocks)
        encoders = [draw_encoder_noise(k, batch_size, frames, depth, self.rates) for k in (own, partner)]
        return DualTalkNoise(*encoders, keys)


def num_frames(num_samples: int) -> int:
    """Returns the frames of so much audio: ceil(samples / 16000 * 25).

    Computed in float64 and in that order, which rounds up a frame for some whole multiples of 640
    samples (4480 give 8).
    """
    return math.ceil(num_samples / SAMPLE_RATE * FPS)


def dualtalk_losses(
    pred: Float[Array, "B T 56"], target: Float[Array, "B T 56"], sample_weights: Float[Array, " B"]
) -> dict[str, Float[Array, ""]]:
    """Computes the MSE of expression, jaw and head, and of all channels' velocity.

    Every term is a mean over its own elements, over the batch by shares. Prediction and target must
    have as many frames; the caller cuts the longer.
    """
    squared = jnp.square(pred - target)
    velocity = jnp.square(jnp.diff(pred, axis=1) - jnp.diff(target, axis=1))
    errors = {name: squared[..., channels] for name, channels in MOTION_56_GROUPS.items()} | {"velocity": velocity}
    return {name: jnp.sum(sample_weights * error.mean((1, 2))) for name, error in errors.items()}
