"""The encoder of Mimi, a causal speech codec: audio -> features, 25 frames a second.

Source: Mimi as transformers names and computes it (causal convolutions, rotary attention over a
sliding window, then a convolution to 12.5 Hz); resampling to 24 kHz and the choice of features as
UniLS' release has them. UniLS keeps it frozen; no noise acts on it. Frames depend on earlier audio
alone, but for 7 samples of the resampling: `MimiStream` encodes audio as it comes.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.errors import UserError
from unils_jax.nn.attention import attend
from unils_jax.nn.layers import LayerNorm, Linear, resample, uniform_init
from unils_jax.nn.stack import FLOAT32, Compute, run_blocks

UP, DOWN = 3, 2  # samples at Mimi's 24 kHz for ours at 16 kHz
# Of the resampling filter: zero crossings on either side, and the cut-off as a share of 8 kHz.
ZERO_CROSSINGS, ROLLOFF = 6, 0.99
REACH = 7  # samples of 16 kHz on either side that it reads
LATENT_STRIDE = 2  # frames of the transformer in a latent
FEATURES = ("both", "semantic", "acoustic", "transformer")


@dataclass(frozen=True)
class MimiConfig:
    """Sizes of the encoder; the defaults are kyutai/mimi's."""

    width: int = 512  # of the transformer and of the features
    depth: int = 8  # blocks of the transformer
    num_heads: int = 8  # of each block's attention
    hidden_dim: int = 2048  # of the feed-forward layers
    num_filters: int = 64  # channels of the first convolution; every stride doubles them
    # Strides of the convolutions in the decoder's order, as its files have them: the last is the
    # encoder's first.
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    first_kernel: int = 7  # width of the first convolution
    residual_kernel: int = 3  # of the residual blocks' first
    last_kernel: int = 3  # of the last
    residual_blocks: int = 1  # before every stride
    dilation_growth: int = 2  # of one residual block to the next
    compress: int = 2  # a residual block's inner channels are its own divided by this
    window_frames: int = 250  # of 40 ms that a frame of the transformer attends to, itself included
    rope_theta: float = 10_000.0  # base of the rotary angles
    latent_dim: int = 256  # width that the quantisers' projections pass through
    norm_eps: float = 1e-5  # of the layer norms
    # What the features are: the latents as the semantic and the acoustic quantiser project them,
    # summed ("both", the release's) or one of them, every latent twice; or "transformer": its
    # frames as they are.
    features: str = "both"

    def __post_init__(self) -> None:
        """Raises UserError where sizes do not fit together."""
        counts = {name: value for name, value in vars(self).items() if type(value) is int}
        problems = [f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1]
        if not self.ratios or min(self.ratios) < 1:
            problems.append(f"ratios must be counts, got {self.ratios}")
        if not problems and self.width % (2 * self.num_heads):
            problems.append(f"width {self.width} must be an even multiple of num_heads {self.num_heads}")
        if not problems and self.num_filters % self.compress:
            problems.append(f"num_filters {self.num_filters} must be a multiple of compress {self.compress}")
        if self.features not in FEATURES:
            problems.append(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        if problems:
            raise UserError(f"mimi: {'; '.join(problems)}; use the sizes of its weights")

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.width

    @property
    def frame_samples(self) -> int:
        """Samples of 24 kHz in a frame of the transformer."""
        return math.prod(self.ratios)

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of features of so many samples at 16 kHz."""
        frames = -(-num_samples * UP // (DOWN * self.frame_samples))
        return frames if self.features == "transformer" else frames + frames % LATENT_STRIDE


@dataclass
class _State:
    """What later audio needs of earlier audio: each convolution's last inputs, keys and values."""

    # By its parts alone: JAX also makes one of shapes and of nothing.
    inputs: list
    keys_values: list
    position: Any  # frames of the transformer so far


jax.tree_util.register_dataclass(_State, ["inputs", "keys_values", "position"], [])


class CausalConv(nnx.Module):
    """A strided 1D convolution that sees no later input; kernel [width, in, out].

    As many frames come out as there are strides in the input, the last filled up as edges are.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        repeats_edges: bool = False,
        rngs: nnx.Rngs,
    ):
        init = uniform_init((in_dim * kernel) ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), (kernel, in_dim, out_dim)))
        self.repeats_edges = repeats_edges  # in place of zeros
        # Where edges are repeated there is no bias: the convolution to latents.
        self.bias = None if repeats_edges else nnx.Param(init(rngs.params(), (out_dim,)))
        self.stride, self.dilation = stride, dilation
        self.num_past = (kernel - 1) * dilation + 1 - stride

    def __call__(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        """Convolves a whole signal."""
        padding = ((0, 0), (self.num_past, -x.shape[1] % self.stride), (0, 0))
        return self.convolve(jnp.pad(x, padding, mode="edge" if self.repeats_edges else "constant"))

    def convolve(self, x: Float[Array, "B N I"]) -> Float[Array, "B n O"]:
        """Convolves what is padded, or preceded by the last `num_past` inputs."""
        kernel = self.kernel[...].astype(x.dtype)
        layout = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,), "VALID", rhs_dilation=(self.dilation,), dimension_numbers=layout
        )
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)


class Activation(nnx.Module):
    """ELU. It is a module so that the layers are numbered as in files."""

    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Applies it."""
        return jax.nn.elu(x)


class ResidualBlock(nnx.Module):
    """ELU and convolution twice, to fewer channels and back, added to the input."""

    def __init__(self, dim: int, config: MimiConfig, dilation: int, *, rngs: nnx.Rngs):
        hidden = dim // config.compress
        self.first = CausalConv(dim, hidden, config.residual_kernel, dilation=dilation, rngs=rngs)
        self.second = CausalConv(hidden, dim, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Applies the block."""
        return x + self.second(jax.nn.elu(self.first(jax.nn.elu(x))))


class Block(nnx.Module):
    """Pre-norm rotary attention and feed-forward without biases; learned factors scale both."""

    def __init__(self, config: MimiConfig, *, rngs: nnx.Rngs):
        width, eps = config.width, config.norm_eps
        self.attn_norm, self.mlp_norm = LayerNorm(width, eps), LayerNorm(width, eps)
        self.q, self.k, self.v, self.out = (Linear(width, width, use_bias=False, rngs=rngs) for _ in range(4))
        self.up = Linear(width, config.hidden_dim, use_bias=False, rngs=rngs)
        self.down = Linear(config.hidden_dim, width, use_bias=False, rngs=rngs)
        self.attn_scale, self.mlp_scale = nnx.Param(jnp.full(width, 0.01)), nnx.Param(jnp.full(width, 0.01))
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "B A E"], cos: Array, sin: Array, mask: Bool[Array, "A S"], past: tuple = ()
    ) -> tuple[Float[Array, "B A E"], tuple[Array, Array]]:
        """Attends to the frames that `mask` allows, `past` keys and values first.

        Returns the keys and values of all of them, too.
        """
        y = self.attn_norm(x)
        q, k, v = (layer(y).reshape(*y.shape[:2], self.num_heads, -1) for layer in (self.q, self.k, self.v))
        q, k = (_rotate_halves(part, cos, sin) for part in (q, k))
        if past:
            k, v = (jnp.concatenate(parts, axis=1) for parts in zip(past, (k, v), strict=True))
        bias = jnp.where(mask, 0.0, -jnp.inf)[None, None]
        x = x + self._scaled(self.out(attend(q, k, v, bias=bias)), self.attn_scale)
        hidden = jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False)
        return x + self._scaled(self.down(hidden), self.mlp_scale), (k, v)

    def _scaled(self, x: Float[Array, "B A E"], factors: nnx.Param) -> Float[Array, "B A E"]:
        return x * factors[...].astype(x.dtype)[None, None]


class Projection(nnx.Module):
    """The projections around a quantiser, without it."""

    def __init__(self, config: MimiConfig, *, rngs: nnx.Rngs):
        # Convolutions of width 1, without bias, in files: kernels [1, in, out].
        shapes = ((1, config.width, config.latent_dim), (1, config.latent_dim, config.width))
        self.into, self.back = (nnx.Param(uniform_init(shape[1] ** -0.5)(rngs.params(), shape)) for shape in shapes)

    def __call__(self, x: Float[Array, "B A E"]) -> Float[Array, "B A E"]:
        """Applies both."""
        return x @ self.into[...][0].astype(x.dtype) @ self.back[...][0].astype(x.dtype)


class Mimi(nnx.Module):
    """Features [B, A, E] of audio [B, N] at 16 kHz; a 4 s window gives A = 100."""

    def __init__(self, config: MimiConfig, *, rngs: nnx.Rngs):
        channels = config.num_filters
        layers: list[nnx.Module] = [CausalConv(1, channels, config.first_kernel, rngs=rngs)]
        for ratio in reversed(config.ratios):
            for i in range(config.residual_blocks):
                layers.append(ResidualBlock(channels, config, config.dilation_growth**i, rngs=rngs))
            layers += [Activation(), CausalConv(channels, 2 * channels, 2 * ratio, ratio, rngs=rngs)]
            channels *= 2
        layers += [Activation(), CausalConv(channels, config.width, config.last_kernel, rngs=rngs)]
        self.seanet = nnx.List(layers)
        self.layers = nnx.List(Block(config, rngs=rngs) for _ in range(config.depth))
        self.downsample = CausalConv(
            config.width, config.width, 2 * LATENT_STRIDE, LATENT_STRIDE, repeats_edges=True, rngs=rngs
        )
        self.semantic, self.acoustic = Projection(config, rngs=rngs), Projection(config, rngs=rngs)
        self.config = config

    def __call__(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B A E"]:
        """Encodes audio as it is, 25 frames a second; features have the dtype of `compute`.

        A latent that the audio ends in is whole: there may be a frame more than there are 40 ms.
        """
        return self.project(self.encode(to_24_khz(audio), compute))

    def at_frames(
        self, audio: Float[Array, "B N"], num_frames: int, compute: Compute = FLOAT32, noise: None = None
    ) -> Float[Array, "B T E"]:
        """Returns the features at `num_frames` frames; no noise acts on them."""
        features = self(audio, compute)
        return features if features.shape[1] == num_frames else resample(features, num_frames)

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of features of so many samples."""
        return self.config.num_frames(num_samples)

    def encode(self, audio: Float[Array, "B N"], compute: Compute = FLOAT32) -> Float[Array, "B F E"]:
        """Encodes audio at 24 kHz to the transformer's frames."""
        with jax.named_scope("mimi"):
            x = audio[..., None].astype(compute.dtype)
            for layer in self.seanet:
                x = layer(x)
            steps = np.arange(x.shape[1])
            distance = steps[:, None] - steps[None]
            mask = jnp.asarray((distance >= 0) & (distance < self.config.window_frames))
            cos, sin = self._angles(jnp.asarray(steps))
            values = [(cos, sin, mask)] * len(self.layers)
            return run_blocks(self.layers, x, lambda block, x, *values: block(x, *values)[0], values, compute)

    def latents(self, frames: Float[Array, "B F E"]) -> Float[Array, "B L E"]:
        """Computes the latents, 12.5 a second, of the transformer's frames: what Mimi quantises."""
        return self.downsample(frames)

    def project(self, frames: Float[Array, "B F E"]) -> Float[Array, "B A E"]:
        """Makes the features of the transformer's frames."""
        return frames if self.config.features == "transformer" else self._features(self.latents(frames))

    def _features(self, latents: Float[Array, "B L E"]) -> Float[Array, "B A E"]:
        chosen = {"semantic": (self.semantic,), "acoustic": (self.acoustic,)}
        parts = chosen.get(self.config.features, (self.semantic, self.acoustic))
        return jnp.repeat(sum(part(latents) for part in parts), LATENT_STRIDE, axis=1)

    def _angles(self, positions: Array) -> tuple[Array, Array]:
        """Returns cosine and sine [A, K/2] of frames."""
        head_dim = self.config.width // self.config.num_heads
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = jnp.asarray(np.float32(1) / np.float32(self.config.rope_theta) ** exponents)
        angles = positions.astype(jnp.float32)[:, None] * frequencies[None]
        return jnp.cos(angles), jnp.sin(angles)

    def start(self, batch_size: int) -> _State:
        """Returns the state before the first audio of a stream."""
        convs, heads = self._convs(), (self.config.num_heads, self.config.width // self.config.num_heads)
        inputs = [jnp.zeros((batch_size, conv.num_past, conv.kernel.shape[1])) for conv in convs]
        past = jnp.zeros((batch_size, self.config.window_frames - 1, *heads))
        return _State(inputs, [(past, past) for _ in self.layers], jnp.zeros((), jnp.int32))

    def _convs(self) -> list[CausalConv]:
        convs = []
        for layer in self.seanet:
            convs += [layer.first, layer.second] if isinstance(layer, ResidualBlock) else []
            convs += [layer] if isinstance(layer, CausalConv) else []
        return [*convs, self.downsample]

    def step(self, audio: Float[Array, "B N"], state: _State) -> tuple[Float[Array, "B A E"], _State]:
        """Encodes the next 24 kHz audio of a stream, whole latents of it, in float32."""
        before, inputs = iter(state.inputs), []

        def convolve(conv: CausalConv, x: Array) -> Array:
            past = next(before)
            if conv.repeats_edges:  # the first input stands for what there was before it
                past = jnp.where(state.position == 0, jnp.broadcast_to(x[:, :1], past.shape), past)
            x = jnp.concatenate([past, x], axis=1)
            inputs.append(x[:, x.shape[1] - conv.num_past :])
            return conv.convolve(x)

        x = audio[..., None]
        for layer in self.seanet:
            if isinstance(layer, ResidualBlock):
                y = convolve(layer.first, jax.nn.elu(x))
                x = x + convolve(layer.second, jax.nn.elu(y))
            else:
                x = convolve(layer, x) if isinstance(layer, CausalConv) else layer(x)
        num_frames, num_past = x.shape[1], self.config.window_frames - 1
        queries, keys = np.arange(num_frames)[:, None], np.arange(-num_past, num_frames)[None]
        in_window = (keys <= queries) & (keys > queries - self.config.window_frames)
        mask = jnp.asarray(in_window) & (jnp.asarray(keys) + state.position >= 0)
        cos, sin = self._angles(state.position + jnp.arange(num_frames))
        keys_values = []
        for block, past in zip(self.layers, state.keys_values, strict=True):
            x, (k, v) = block(x, cos, sin, mask, past)
            keys_values.append((k[:, num_frames:], v[:, num_frames:]))
        latents = convolve(self.downsample, x)
        features = x if self.config.features == "transformer" else self._features(latents)
        return features, _State(inputs, keys_values, state.position + num_frames)


class MimiStream:
    """Encodes audio at 16 kHz as it comes: the features of the whole, in blocks of 80 ms.

    A block comes out 7 samples (0.4 ms) after its end, which the resampling needs.
    """

    def __init__(self, model: Mimi, batch_size: int = 1):
        self._step = nnx.jit(lambda model, audio, state: model.step(audio, state))
        self._model, self._state = model, model.start(batch_size)
        self._block = LATENT_STRIDE * model.config.frame_samples * DOWN // UP
        if self._block * UP != LATENT_STRIDE * model.config.frame_samples * DOWN or self._block % DOWN:
            raise UserError(
                f"mimi: a stream needs latents of whole samples at 16 kHz, got ratios {model.config.ratios}"
            )
        self._pending = np.zeros((batch_size, REACH), np.float32)

    def push(self, audio: Float[np.ndarray, "B N"]) -> Float[np.ndarray, "B A E"]:
        """Takes audio of any length; returns the features that no later audio changes."""
        self._pending = np.concatenate([self._pending, audio], axis=1)
        done = []
        while self._pending.shape[1] >= self._block + 2 * REACH:
            around = jnp.asarray(self._pending[:, : self._block + 2 * REACH])
            resampled = _polyphase(around, self._block * UP // DOWN)
            features, self._state = self._step(self._model, resampled, self._state)
            done.append(np.asarray(features))
            self._pending = self._pending[:, self._block :]
        empty = np.zeros((len(self._pending), 0, self._model.config.feature_dim), np.float32)
        return np.concatenate([empty, *done], axis=1)

    def finish(self) -> Float[np.ndarray, "B A E"]:
        """Returns the features of the last whole block, after which silence is taken to follow."""
        return self.push(np.zeros((len(self._pending), REACH), np.float32))


def _rotate_halves(x: Float[Array, "B L H K"], cos: Array, sin: Array) -> Float[Array, "B L H K"]:
    """Rotates the channel pairs (i, i + K/2) of every head by its frame's angles, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (jnp.broadcast_to(table[None, :, None], first.shape) for table in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def resampling_filter() -> np.ndarray:
    """Returns the three phases [taps, 3] of a windowed sinc between 16 and 24 kHz.

    It is torchaudio's default: 6 zero crossings under a Hann window, cut off at 0.99 of the lower
    rate's half.
    """
    taps = np.arange(-REACH, REACH + DOWN)[:, None] / DOWN
    time = np.clip((taps - np.arange(UP)[None] / UP) * DOWN * ROLLOFF, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(time * math.pi / ZERO_CROSSINGS / 2) ** 2
    return (np.sinc(time) * window * ROLLOFF).astype(np.float32)


def to_24_khz(audio: Float[Array, "B N"]) -> Float[Array, "B M"]:
    """Resamples from 16 kHz, as the release does; silence is taken to be around the audio."""
    num_samples = -(-audio.shape[1] * UP // DOWN)
    return _polyphase(jnp.pad(audio, ((0, 0), (REACH, REACH + DOWN))), num_samples)


def _polyphase(around: Float[Array, "B N"], num_samples: int) -> Float[Array, "B M"]:
    """Resamples what lies between `REACH` samples on either side to `num_samples`."""
    kernel = jnp.asarray(resampling_filter())[:, None]
    padded = jnp.pad(around, ((0, 0), (0, DOWN)))[..., None]
    phases = jax.lax.conv_general_dilated(
        padded, kernel, (DOWN,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), precision=jax.lax.Precision.HIGHEST
    )
    return phases.reshape(len(around), -1)[:, :num_samples]
