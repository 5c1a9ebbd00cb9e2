"""UniTalker: the audio of one person to motion in any of several annotations, one head each.

Audio encoder -> as many frames as the motion has -> a decoder with the person's identity -> the
head of the annotation -> for annotations of many numbers the inverse PCA -> plus the template.
Source: UniTalker (ECCV 2024) and its release.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from unils_jax.audio import normalize_record
from unils_jax.errors import UserError
from unils_jax.models.encoder_noise import EncoderNoise, EncoderRates, draw_encoder_noise
from unils_jax.models.wav2vec2 import Conv, Wav2Vec2, Wav2Vec2Config
from unils_jax.models.wavlm import WavLM, WavLMConfig
from unils_jax.motion import SAMPLE_RATE
from unils_jax.nn.layers import LayerNorm, Linear, RandomKey, SampleKeys, dropout, resample, split_key
from unils_jax.nn.postnorm import NORM_EPS, DecoderLayer
from unils_jax.nn.stack import FLOAT32, Compute

IDENTITY_DIM = 64  # of the convolutional decoder; the transformer's is as wide as the decoder
CONV_KERNEL, CONV_BLOCKS = 3, 3
NUM_HEADS, FEED_FORWARD = 4, 2  # of the transformer decoder: heads, and its feed-forward's width in widths
DECODERS = ("conv", "transformer")
PLACES = ("extractor", "encoder", "decoder")
FORBIDDEN = set("./ ")  # in the name of an annotation, which is part of paths and of torch keys


@dataclass(frozen=True)
class UniTalkerConfig:
    """What to build; the defaults are the release's, but for the encoder and the annotations.

    Without `annotations` and with no `num_identities` it is a plan: a run takes them from its data.
    """

    stage: ClassVar[str] = "unitalker"

    annotations: tuple[str, ...] = ()  # names, one head each
    dims: tuple[int, ...] = ()  # numbers a frame of each
    components: tuple[int, ...] = ()  # rows of each one's PCA; 0: none
    wav2vec2: Wav2Vec2Config | None = None  # the audio encoder is this or `wavlm`
    wavlm: WavLMConfig | None = None
    num_identities: int = 935  # rows of the identity table; the last is the pivot, for unknown people
    decoder: str = "conv"  # or "transformer"
    width: int = 256  # of the decoder
    period: int = 30  # of the transformer's positions, in frames
    head_layers: int = 1  # linear layers of each head
    pca_dim: int = 512  # rows of a PCA that are used
    resample_at: str = "encoder"  # the part after which audio frames become motion frames; see PLACES
    dropout: float = 0.1  # in the decoder
    rates: EncoderRates = EncoderRates(activation=0.0, mask_prob=0.075)  # of the audio encoder, in training

    def __post_init__(self) -> None:
        """Raises UserError, with all problems at once, where settings do not fit together."""
        problems = []
        if (self.wav2vec2 is None) == (self.wavlm is None):
            problems.append("give one audio encoder, wav2vec2 or wavlm")
        if len({len(self.annotations), len(self.dims), len(self.components)}) > 1:
            problems.append(f"annotations, dims and components must be equally many, got {self.annotations}")
        bad = [name for name in self.annotations if not name or name.isdigit() or FORBIDDEN & set(name)]
        if bad or len(set(self.annotations)) < len(self.annotations):
            problems.append(
                "annotations must be different names (no numbers) without dots, slashes and spaces, got "
                f"{self.annotations}"
            )
        if min((*self.dims, self.width, self.period, self.head_layers, self.pca_dim)) < 1 or self.num_identities < 0:
            problems.append("dims, width, period, head_layers, pca_dim and num_identities must be at least 1")
        if any(not 0 <= count for count in self.components):
            problems.append(f"components must not be negative, got {self.components}")
        for name, value, allowed in (("decoder", self.decoder, DECODERS), ("resample_at", self.resample_at, PLACES)):
            if value not in allowed:
                problems.append(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.decoder == "transformer" and (self.width % NUM_HEADS or self.width % 2):
            problems.append(f"a transformer's width must be a multiple of {NUM_HEADS}, got {self.width}")
        if self.decoder == "transformer" and self.resample_at == "decoder":
            problems.append("the transformer decodes motion frames; resample_at must be extractor or encoder")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must be in 0..1, got {self.dropout}")
        if problems:
            raise UserError("model: " + "; ".join(problems))

    @property
    def pivot(self) -> int:
        """The identity of unknown people."""
        return self.num_identities - 1

    @property
    def audio_encoder(self) -> Wav2Vec2Config | WavLMConfig:
        """The sizes of the audio encoder."""
        return self.wav2vec2 or self.wavlm

    def num_outputs(self, annotation: str) -> int:
        """Returns how many numbers a frame the head of an annotation predicts.

        They are coefficients where it has a PCA.
        """
        index = self.annotations.index(annotation)
        dim, components = self.dims[index], self.components[index]
        return min(self.pca_dim, dim, components) if components else dim


class PCA(nnx.Module):
    """A fixed basis of an annotation.

    It holds all rows `components [n, D]` of the file and `mean [D]`; the first `num_used` rows are
    worked with.
    """

    def __init__(self, num_rows: int, dim: int, num_used: int):
        self.components = nnx.Param(jnp.zeros((num_rows, dim)))
        self.mean = nnx.Param(jnp.zeros(dim))
        self.num_used = num_used

    def encode(self, displacement: Float[Array, "B T D"]) -> Float[Array, "B T k"]:
        """Returns the coefficients of motion minus template."""
        return (displacement - self.mean[...][None, None]) @ self.components[: self.num_used].T

    def decode(self, coefficients: Float[Array, "B T k"]) -> Float[Array, "B T D"]:
        """Returns motion minus template."""
        return coefficients @ self.components[: self.num_used] + self.mean[...][None, None]


class ConvBlock(nnx.Module):
    """A convolution over time: `relu(norm(conv(x)) + r(x))`, kernel 3.

    r is a second convolution where the width changes.
    """

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, out_dim, CONV_KERNEL, 1, rngs=rngs)
        self.norm = LayerNorm(out_dim, NORM_EPS)
        self.residual = None if in_dim == out_dim else Conv(in_dim, out_dim, CONV_KERNEL, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        """Convolves over time; the length stays."""
        padded = jnp.pad(x, ((0, 0), (CONV_KERNEL // 2, CONV_KERNEL // 2), (0, 0)))
        residual = x if self.residual is None else self.residual(padded)
        return jax.nn.relu(self.norm(self.conv(padded)) + residual)


class ConvDecoder(nnx.Module):
    """Three convolution blocks over audio features with the identity at every frame.

    A frame depends on three frames on either side.
    """

    def __init__(self, config: UniTalkerConfig, *, rngs: nnx.Rngs):
        self.identity_embed = nnx.Param(jax.random.normal(rngs.params(), (config.num_identities, IDENTITY_DIM)))
        self.audio_proj = Linear(config.audio_encoder.feature_dim, config.width, rngs=rngs)
        in_dims = (config.width + IDENTITY_DIM, *[config.width] * (CONV_BLOCKS - 1))
        self.blocks = nnx.List(ConvBlock(in_dim, config.width, rngs=rngs) for in_dim in in_dims)
        self.dropout = config.dropout

    def __call__(
        self, features: Float[Array, "B T E"], identity: Int[Array, " B"], key: SampleKeys | None = None
    ) -> Float[Array, "B T D"]:
        """Decodes audio features of as many frames as the motion has."""
        x = dropout(self.audio_proj(features), self.dropout, key)
        who = self.identity_embed[...][identity][:, None].astype(x.dtype)
        x = jnp.concatenate([x, jnp.broadcast_to(who, (*x.shape[:2], IDENTITY_DIM))], axis=-1)
        for block in self.blocks:
            x = block(x)
        return x


class TransformerDecoder(nnx.Module):
    """One post-norm decoder layer.

    Its queries are the identity at periodic positions; they attend to the past and to their own
    frame. Batches may be larger than one, which the release's cannot; identities are never absent.
    """

    def __init__(self, config: UniTalkerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.identity_embed = nnx.Param(jax.random.normal(rngs.params(), (config.num_identities, width)))
        self.audio_proj = Linear(config.audio_encoder.feature_dim, width, rngs=rngs)
        self.layer = DecoderLayer(width, NUM_HEADS, FEED_FORWARD * width, dropout_rate=config.dropout, rngs=rngs)
        self.period, self.dropout = config.period, config.dropout

    def __call__(
        self, features: Float[Array, "B T E"], identity: Int[Array, " B"], key: SampleKeys | None = None
    ) -> Float[Array, "B T D"]:
        """Decodes audio features of as many frames as the motion has."""
        table_key, layer_key = split_key(key, 2)
        memory = self.audio_proj(features)
        num_frames, width = memory.shape[1:]
        positions = jnp.asarray(periodic_positions(num_frames, width, self.period), memory.dtype)
        target = self.identity_embed[...][identity][:, None].astype(memory.dtype) + positions[None]
        own_frame = np.where(np.eye(num_frames, dtype=bool), 0, -np.inf).astype(np.float32)
        return self.layer(
            dropout(target, self.dropout, table_key),
            memory,
            past_bias(num_frames, self.period)[None],
            own_frame[None, None],
            layer_key,
        )


def periodic_positions(num_frames: int, width: int, period: int) -> Float[np.ndarray, "T D"]:
    """Computes interleaved sine and cosine of the position within its period.

    Base 10000, in float32.
    """
    rates = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10_000.0) / width))
    angles = (np.arange(num_frames) % period).astype(np.float32)[:, None] * rates[None]
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(num_frames, width)


def past_bias(num_frames: int, period: int) -> Float[np.ndarray, "H T T"]:
    """Computes what is added to self-attention scores.

    It is -inf in the future, else minus a head's slope for every whole period of age.
    """
    age = np.arange(num_frames)[:, None] - np.arange(num_frames)[None]
    slopes = 2.0 ** -np.arange(2, 2 * NUM_HEADS + 1, 2)
    bias = -slopes[:, None, None] * (age // period)[None]
    return np.where(age[None] >= 0, bias, -np.inf).astype(np.float32)


class DeepHead(nnx.Module):
    """Linear and tanh, `num_layers - 1` times, then Linear."""

    def __init__(self, width: int, num_outputs: int, num_layers: int, *, rngs: nnx.Rngs):
        out_dims = (*[width] * (num_layers - 1), num_outputs)
        self.layers = nnx.List(Linear(width, out_dim, rngs=rngs) for out_dim in out_dims)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T O"]:
        """Predicts the numbers of every frame."""
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


def make_head(config: UniTalkerConfig, annotation: str, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the head of an annotation.

    A single layer starts at zero: the first prediction is the template, with a PCA the mean.
    """
    num_outputs, zeros = config.num_outputs(annotation), nnx.initializers.zeros_init()
    if config.head_layers > 1:
        return DeepHead(config.width, num_outputs, config.head_layers, rngs=rngs)
    return Linear(config.width, num_outputs, kernel_init=zeros, bias_init=zeros, rngs=rngs)


@dataclass(frozen=True)
class TalkerNoise:
    """One draw of noise for a batch."""

    encoder: EncoderNoise
    keys: Array  # [B], for the decoder's dropout
    pivot: Array  # bool [B], alike for all of them: whether identities are the pivot's


jax.tree_util.register_dataclass(TalkerNoise, ["encoder", "keys", "pivot"], [])


@dataclass(frozen=True)
class Prediction:
    """What the model predicts of a batch."""

    motion: Array  # [B, T, D], in the annotation's scaled units
    coefficients: Array | None  # [B, T, k]; None: the annotation has no PCA


jax.tree_util.register_dataclass(Prediction, ["motion", "coefficients"], [])


class UniTalker(nnx.Module):
    """The network.

    The parameters lie under `speech_encoder`, `decoder`, `heads/<annotation>` and, fixed,
    `pca/<annotation>`.
    """

    def __init__(self, config: UniTalkerConfig, *, rngs: nnx.Rngs):
        if not (config.annotations and config.num_identities):
            raise UserError("model.unitalker names no annotations or identities; name them, or train on data that do")
        encoder = WavLM if config.wav2vec2 is None else Wav2Vec2
        self.speech_encoder = encoder(config.audio_encoder, config.rates, rngs=rngs)
        self.decoder = (ConvDecoder if config.decoder == "conv" else TransformerDecoder)(config, rngs=rngs)
        self.heads = nnx.Dict({annotation: make_head(config, annotation, rngs) for annotation in config.annotations})
        with_pca = [row for row in zip(config.annotations, config.dims, config.components, strict=True) if row[2]]
        self.pca = nnx.Dict(
            {annotation: PCA(rows, dim, config.num_outputs(annotation)) for annotation, dim, rows in with_pca}
        )
        self.resample_at, self.rates = config.resample_at, config.rates

    def __call__(
        self,
        audio: Float[Array, "B N"],
        template: Float[Array, "B D"],
        identity: Int[Array, " B"] | None,
        annotation: str,
        num_frames: int,
        noise: TalkerNoise | None = None,
        compute: Compute = FLOAT32,
    ) -> Prediction:
        """Predicts motion of `num_frames` frames over all of the audio.

        The audio is `prepare_audio`'s.

        Without `identity` it is the pivot's. `annotation` chooses the head; others take no part.
        """
        pivot = self.decoder.identity_embed.shape[0] - 1
        if identity is None:
            identity = jnp.full(audio.shape[0], pivot, jnp.int32)
        if noise is not None:
            identity = jnp.where(noise.pivot, pivot, identity)
        features = self.encode(audio, num_frames, None if noise is None else noise.encoder, compute)
        decoded = self.decode(features, identity, num_frames, None if noise is None else noise.keys)
        with jax.named_scope("head"):
            predicted = self.heads[annotation](decoded).astype(jnp.float32)
            if annotation not in self.pca:
                return Prediction(predicted + template[:, None], None)
            return Prediction(self.pca[annotation].decode(predicted) + template[:, None], predicted)

    def encode(
        self, audio: Float[Array, "B N"], num_frames: int, noise: EncoderNoise | None = None, compute: Compute = FLOAT32
    ) -> Float[Array, "B _ E"]:
        """Returns audio features: `num_frames` of them.

        Where the decoder's output is resampled they are at the encoder's rate.
        """
        features = self.speech_encoder.extract(audio, compute)
        if self.resample_at == "extractor":
            features = resample(features, num_frames)
        features = self.speech_encoder.encode(features, compute, noise)
        return resample(features, num_frames) if self.resample_at == "encoder" else features

    def decode(
        self,
        features: Float[Array, "B _ E"],
        identity: Int[Array, " B"],
        num_frames: int,
        key: SampleKeys | None = None,
    ) -> Float[Array, "B T D"]:
        """Decodes audio features and identities to the features that the heads read."""
        with jax.named_scope("decoder"):
            decoded = self.decoder(features, identity, key)
        return resample(decoded, num_frames) if self.resample_at == "decoder" else decoded

    def draw(
        self, key: RandomKey, batch_size: int, num_samples: int, num_frames: int, pivot_rate: float
    ) -> TalkerNoise:
        """Draws a batch's noise, for so much audio and motion.

        With probability `pivot_rate` all of it is the pivot's.
        """
        encoder_key, decoder_key, pivot_key = jax.random.split(key, 3)
        frames = num_frames if self.resample_at == "extractor" else self.speech_encoder.num_frames(num_samples)
        noise = draw_encoder_noise(encoder_key, batch_size, frames, len(self.speech_encoder.blocks), self.rates)
        if isinstance(self.speech_encoder, WavLM):  # its first layer makes the others' position bias
            noise = replace(noise, skipped=noise.skipped.at[:, 0].set(False))
        pivot = jnp.broadcast_to(jax.random.bernoulli(pivot_key, pivot_rate), (batch_size,))
        return TalkerNoise(noise, jax.random.split(decoder_key, batch_size), pivot)

    def num_values(self, annotation: str) -> int:
        """Returns how many numbers a frame of an annotation has."""
        if annotation in self.pca:
            return self.pca[annotation].mean.shape[0]
        head = self.heads[annotation]
        return (head.layers[-1] if isinstance(head, DeepHead) else head).kernel.shape[1]

    def truth_coefficients(
        self, motion: Float[Array, "B T D"], template: Float[Array, "B D"], annotation: str
    ) -> Float[Array, "B T k"] | None:
        """Returns the coefficients of true motion; None where the annotation has no PCA."""
        return self.pca[annotation].encode(motion - template[:, None]) if annotation in self.pca else None


def prepare_audio(audio: Float[np.ndarray, " N"], *, normalize: bool) -> Float[np.ndarray, " N"]:
    """Returns 16 kHz samples as the encoder's processor gives them.

    For wav2vec2 they have zero mean and unit population deviation (+1e-7 on the variance), for
    WavLM they are as they were.
    """
    return normalize_record(audio) if normalize else audio


def frames_of(num_samples: int, fps: float) -> int:
    """Returns the motion frames of audio at 16 kHz where no truth gives their number.

    Rounded, halves to even.
    """
    return round(num_samples / SAMPLE_RATE * fps)
