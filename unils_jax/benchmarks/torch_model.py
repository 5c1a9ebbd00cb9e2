"""The PyTorch reference: codec, prior and dialogue in PyTorch with the release's key names.

Exported files and the release's load with `strict=True`. `models/` has the same in JAX, with the
reasons; `torch_runs` trains and decodes with it, `torch_encoder` is its audio encoder.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unils_jax.benchmarks.torch_encoder import load_encoder, load_strictly
from unils_jax.benchmarks.torch_quantizer import Quantized, Scales, full_features, next_scale_inputs, quantize
from unils_jax.checkpoints.torch_files import read_pt, read_safetensors
from unils_jax.motion import HEAD_AND_JAW, Window
from unils_jax.systems.unils.meta_cfg import model_sizes

LOSS_WEIGHTS = {"vq": 1, "motion": 1, "pose": 8, "velocity": 5, "smooth": 0.5, "mesh": 2, "lips": 0.1}


class StepNoise(NamedTuple):
    """A step's noise for B people.

    The drops are bool [B, 1, 1] (True removes), the flips bool [B, L - last scale, C].
    """

    drop_style: Tensor
    drop_prev: Tensor
    drop_own: Tensor
    drop_other: Tensor
    flips: Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cached table serves training, too
def rotary_table(positions: tuple[int, ...], head_dim: int, device: torch.device) -> Tensor:
    """Returns cosine and sine [2, L, K/2] of the positions, base 10000."""
    frequencies = 1 / 10_000 ** (torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.tensor(positions, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "B H L K"], table: Float[Tensor, "2 L k"]) -> Float[Tensor, "B H L K"]:
    """Rotates interleaved channel pairs (2i, 2i+1) by their token's angles."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * table[0] - odd * table[1], even * table[1] + odd * table[0]], -1).flatten(-2)


class SelfAttention(nn.Module):
    """Self-attention with its norm and rotary positions."""

    def __init__(self, dim: int, num_heads: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns attended tokens [B, L, D]; `mask` is True where a query sees a key."""
        q, k, v = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, attn_mask=mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class AudioAttention(nn.Module):
    """Cross-attention to audio features, both sides with their norms and rotary positions."""

    def __init__(self, dim: int, audio_dim: int, num_heads: int):
        super().__init__()
        self.self_norm, self.context_norm = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(audio_dim, 1e-6)
        self.q_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k_proj, self.v_proj = nn.Linear(audio_dim, dim), nn.Linear(audio_dim, dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor, audio: Tensor, rotary: Tensor, audio_rotary: Tensor) -> Tensor:
        """Returns what the tokens [B, L, D] read of the audio [B, A, E]."""
        context = self.context_norm(audio)
        projected = self.q_proj(self.self_norm(x)), self.k_proj(context), self.v_proj(context)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected)
        attended = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, audio_rotary), v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class FrameTransformer(nn.Module):
    """Half of the codec.

    Attention and MLP (without norm) alternate in one list; its name and the last layer's differ
    between the halves.
    """

    def __init__(self, in_dim: int, out_dim: int, width: int, depth: int, num_heads: int, blocks: str, last: str):
        super().__init__()
        self.inp_mapping = nn.Sequential(nn.Linear(in_dim, width), nn.LeakyReLU(0.2))
        layers = []
        for _ in range(depth):
            layers.append(SelfAttention(width, num_heads, 1e-5))
            up, down = nn.Linear(width, width * 3 // 2), nn.Linear(width * 3 // 2, width)
            layers.append(nn.Sequential(up, nn.GELU("tanh"), down))
        self.add_module(blocks, nn.ModuleList(layers))
        self.add_module(last, nn.Linear(width, out_dim))
        self.names, self.head_dim = (blocks, last), width // num_heads

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        """Maps frames to frames."""
        rotary = rotary_table(tuple(range(x.shape[1])), self.head_dim, x.device)
        x = self.inp_mapping(x)
        blocks, last = (self.get_submodule(name) for name in self.names)
        for layer in blocks:
            x = x + (layer(x, rotary) if isinstance(layer, SelfAttention) else layer(x))
        return last(x)


class TorchReferenceCodec(nn.Module):
    """The codec: motion windows to bits and back; motion is un-normalised in and out."""

    def __init__(self, *, motion_dim: int, code_dim: int, scales: Scales, width: int, depth: int, num_heads: int):
        super().__init__()
        self.register_buffer("motion_mean", torch.zeros(motion_dim))
        self.register_buffer("motion_std", torch.ones(motion_dim))
        sizes = (width, depth, num_heads)
        self.encoder = FrameTransformer(motion_dim, code_dim, *sizes, "encoder_transformer", "code_mapping")
        self.decoder = FrameTransformer(code_dim, motion_dim, *sizes, "decoder_transformer", "out_mapping")
        nn.init.xavier_uniform_(self.decoder.out_mapping.weight, gain=0.05)
        nn.init.zeros_(self.decoder.out_mapping.bias)
        self.scales, self.code_dim = scales, code_dim

    def quantize(self, motion: Float[Tensor, "B T M"], flips: Bool[Tensor, "B F C"] | None = None) -> Quantized:
        """Quantises motion windows; `flips` changes bits of all scales but the last."""
        return quantize(self.encoder((motion - self.motion_mean) / (self.motion_std + 1e-8)), self.scales, flips)

    def features(self, motion: Float[Tensor, "B T M"]) -> Float[Tensor, "B T C"]:
        """Returns the quantised features of motion of one window or several, each coded apart."""
        windows = motion.reshape(-1, self.scales[-1], motion.shape[-1])
        return full_features(self.quantize(windows).bits, self.scales).reshape(*motion.shape[:2], -1)

    def decode(self, features: Float[Tensor, "B T C"]) -> Float[Tensor, "B T M"]:
        """Returns the motion of quantised features."""
        return self.decoder(features) * self.motion_std + self.motion_mean

    def forward(self, motion: Float[Tensor, "B T M"]) -> tuple[Tensor, Quantized]:
        """Returns reconstructed motion, and the quantisation."""
        quantized = self.quantize(motion)
        return self.decode(quantized.features), quantized

    def reconstruct(self, motion: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """Reconstructs motion of any length by windows; the last is padded with zero motion."""
        padded = F.pad(motion, (0, 0, 0, -motion.shape[1] % self.scales[-1]))
        pred, _ = self(padded.reshape(-1, self.scales[-1], motion.shape[-1]))
        return pred.reshape(padded.shape)[:, : motion.shape[1]]

    def loss(
        self,
        motion: Float[Tensor, "B T M"],
        vertices: Callable[[Tensor], Tensor] | None = None,
        lips: Int[np.ndarray, " n"] | Int[Tensor, " n"] | None = None,
        weights: Mapping[str, float] = LOSS_WEIGHTS,
    ) -> dict[str, Tensor]:
        """Returns the weighted terms, whose sum is the loss.

        Args:
            motion: Windows of motion.
            vertices: Maps motion to a face without head rotation in metres, [B, T, V, 3]. None:
                there are no mesh terms.
            lips: The face's lip vertices; needed with `vertices`.
            weights: The weight of each term.
        """
        pred, quantized = self(motion)
        error = pred - motion
        velocity, target_velocity = (x[..., HEAD_AND_JAW].diff(dim=1) for x in (pred, motion))
        terms = {
            "vq": quantized.losses.mean(),
            "motion": error.abs().mean(),
            "pose": error[..., HEAD_AND_JAW].abs().mean(),
            "velocity": (velocity - target_velocity).square().mean(),
            "smooth": velocity.diff(dim=1).square().mean(),
        }
        if vertices is not None:
            squared = (1000 * (vertices(pred) - vertices(motion))).square()
            terms |= {"mesh": squared.mean(), "lips": squared[..., lips, :].mean()}
        return {name: weights[name] * term for name, term in terms.items()}


class Block(nn.Module):
    """A block of the generator: self-attention, audio attentions, feed-forward."""

    def __init__(self, dim: int, num_heads: int, audio_dim: int | None, one_audio: bool, drop_path_rate: float):
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, 1e-6)
        if audio_dim is not None and one_audio:
            self.audio_attn = AudioAttention(dim, audio_dim, num_heads)
        elif audio_dim is not None:
            self.self_audio_attn = AudioAttention(dim, audio_dim, num_heads)
            self.other_audio_attn = AudioAttention(dim, audio_dim, num_heads)
        up, down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.ffn = nn.Sequential(nn.LayerNorm(dim, 1e-6), up, nn.GELU("tanh"), down)
        self.drop_path_rate = drop_path_rate
        self.audio_attns = ("audio_attn",) if one_audio else ("self_audio_attn", "other_audio_attn")

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor, tracks: list[Tensor], audio_rotary: Tensor) -> Tensor:
        """Returns the tokens [B, L, D] after the block; `tracks` are audio features [B, A, E]."""
        x = x + self.drop_path(self.self_attn(x, rotary, mask))
        for name, track in zip(self.audio_attns, tracks, strict=False):
            x = x + self.drop_path(self.get_submodule(name)(x, track, rotary, audio_rotary))
        return x + self.drop_path(self.ffn(x))

    def drop_path(self, x: Tensor) -> Tensor:
        """Drops residual branches of whole samples in training and scales up the others."""
        if not self.training or self.drop_path_rate == 0:
            return x
        keep = 1 - self.drop_path_rate
        return x * (torch.rand(len(x), 1, 1, device=x.device) < keep) / keep


class Blocks(nn.Module):
    """The learned vectors and the blocks over [style | previous | scale tokens]."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        audio_dim: int | None,
        one_audio: bool,
        scales: Scales,
        window: Window,
    ):
        super().__init__()
        width, depth, num_heads = sizes
        names = {"style_pos": width, "prev_pos": width}
        self.audio_names = () if audio_dim is None else ("audio_pos",) if one_audio else ("self_pos", "other_pos")
        for name, dim in (names | dict.fromkeys(self.audio_names, audio_dim)).items():
            self.register_parameter(name, learned(1, 1, dim))
        rates = np.linspace(0, 0.1 * depth / 24, depth)
        self.attn_blocks = nn.ModuleList(Block(width, num_heads, audio_dim, one_audio, float(rate)) for rate in rates)
        self.lvl_embed = nn.Embedding(len(scales), width)
        self.lvl_embed.weight = learned(len(scales), width)
        frames, self.head_dim = scales[-1], width // num_heads
        self.window, self.prefix = window, 2 * window.context_frames
        levels = np.repeat(np.arange(len(scales)), scales)
        seen = np.concatenate([np.full(self.prefix, -1), levels])
        self.register_buffer("levels", torch.from_numpy(levels), persistent=False)
        self.register_buffer("mask", torch.from_numpy(seen[None] <= seen[:, None]), persistent=False)
        points = [self.prefix + np.round(np.linspace(0, frames - 1, 2 * n + 1)[1::2]) for n in scales]
        self.positions = tuple(np.concatenate([np.arange(self.prefix), *points]).astype(int).tolist())

    def forward(self, style: Tensor, prev: Tensor, tokens: Tensor, tracks: list[Tensor]) -> Tensor:
        """Returns the scale tokens after all blocks."""
        tokens = tokens + self.lvl_embed(self.levels[: tokens.shape[1]])
        x = torch.cat([style + self.style_pos, prev + self.prev_pos, tokens], 1)
        rotary = rotary_table(self.positions, self.head_dim, x.device)[:, : x.shape[1]]
        mask, audio_rotary = self.mask[: x.shape[1], : x.shape[1]], rotary
        if tracks:
            points = np.linspace(0, self.window.audio_frames, tracks[0].shape[1] + 1, dtype=np.float32)[:-1]
            positions = tuple((self.prefix - self.window.past_audio_frames + points.astype(int)).tolist())
            audio_rotary = rotary_table(positions, self.head_dim, x.device)
            tracks = [x + self.get_parameter(name) for x, name in zip(tracks, self.audio_names, strict=True)]
        for block in self.attn_blocks:
            x = block(x, rotary, mask, tracks, audio_rotary)
        return x[:, self.prefix :]


def learned(*shape: int) -> nn.Parameter:
    """Returns a learned embedding, drawn from a truncated normal distribution."""
    value = torch.empty(shape)
    return nn.Parameter(nn.init.trunc_normal_(value, std=math.sqrt(1 / shape[-1] / 3), a=-2, b=2))


class TorchReferenceGenerator(nn.Module):
    """The prior, and with `audio_dim` the dialogue model.

    `audio_condition` is one of `motion.AUDIO_CONDITIONS`, `context` are the fields of
    `motion.Window` beyond its frames, without which they are the release's. `audio_encoder` maps
    audio [B, N] to features [B, A, E]; files of the release leave it out, so it is set after
    loading.
    """

    def __init__(
        self,
        codec: TorchReferenceCodec,
        *,
        width: int,
        depth: int,
        num_heads: int,
        audio_dim: int | None = None,
        audio_condition: str = "pair",
        bit_chain: bool = False,
        **context: int,
    ):
        super().__init__()
        self.window = Window(codec.scales[-1], **context)
        self.sos_embed = learned(1, 1, width)
        self.base_codec = codec.requires_grad_(False)
        self.code_token_embed = nn.Linear(codec.code_dim, width)
        sizes, one_audio = (width, depth, num_heads), audio_condition != "pair"
        self.attn_blocks = Blocks(sizes, audio_dim, one_audio, codec.scales, self.window)
        self.logits_head = nn.Sequential(nn.LayerNorm(width, 1e-5), nn.Linear(width, 2 * codec.code_dim))
        size = (len(codec.scales), codec.code_dim, codec.code_dim)
        self.bit_chain = nn.Parameter(torch.zeros(size)) if bit_chain else None
        self.audio_encoder: nn.Module | None = None
        self.audio_dim, self.audio_condition = audio_dim, audio_condition

    def forward(
        self,
        style: Float[Tensor, "B F C"],
        prev: Float[Tensor, "B F C"],
        inputs: Float[Tensor, "B I C"],
        own: Float[Tensor, "B A E"] | None = None,
        other: Float[Tensor, "B A E"] | None = None,
    ) -> Float[Tensor, "B L C 2"]:
        """Returns logits of the scales that `inputs` reach, at least of the first.

        `style` and `prev` are full features, `own` and `other` audio features; a single track is
        `own`.
        """
        tracks = [track for track in (own, other) if track is not None]
        tokens = torch.cat([self.sos_embed.expand(len(style), 1, -1), self.code_token_embed(inputs)], 1)
        x = self.attn_blocks(self.code_token_embed(style), self.code_token_embed(prev), tokens, tracks)
        return self.logits_head(x).unflatten(-1, (-1, 2))

    def encode_audio(self, audio: Float[Tensor, "B P N"]) -> list[Tensor]:
        """Returns the audio features of each cross-attention for the people of pairs.

        All first people come before all second ones.
        """
        if self.audio_condition == "mixed":
            return [self.audio_encoder(audio.sum(1)).repeat(2, 1, 1)]
        own = self.audio_encoder(torch.cat(audio.unbind(1)))
        return [own] if self.audio_condition == "own" else [own, torch.cat(own.chunk(2)[::-1])]

    def teacher_forced(self, batch: Mapping[str, Tensor], noise: StepNoise | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits [B, L, C, 2] and target bits [B, L, C].

        Pairs ([B, 2, ...]) become 2B people; all first people come before all second ones.
        """
        motion, prev, style = (batch[name] for name in ("motion", "prev", "style"))
        tracks_of_audio: list[Tensor] = []
        with torch.no_grad():
            if motion.ndim == 4:
                motion, prev, style = (torch.cat(x.unbind(1)) for x in (motion, prev, style))
            if self.audio_dim is not None:
                tracks_of_audio = self.encode_audio(batch["audio"])
            if noise is not None:
                style, prev = style * ~noise.drop_style, prev * ~noise.drop_prev
                drops = noise.drop_own, noise.drop_other
                tracks_of_audio = [x * ~drop for x, drop in zip(tracks_of_audio, drops, strict=False)]
            codec = self.base_codec
            quantized = codec.quantize(motion, None if noise is None else noise.flips)
            inputs = next_scale_inputs(quantized.flipped_bits, codec.scales)
            style, prev = codec.features(style), codec.features(prev)
        return self.chained(self(style, prev, inputs, *tracks_of_audio), quantized.bits), quantized.bits

    def chained(self, logits: Float[Tensor, "B L C 2"], bits: Tensor) -> Float[Tensor, "B L C 2"]:
        """Adds to the logits what follows from the bits before each in its token."""
        if self.bit_chain is None:
            return logits
        levels = torch.repeat_interleave(
            torch.arange(len(self.base_codec.scales)), torch.tensor(self.base_codec.scales)
        )
        levels = levels[: logits.shape[1]]
        added = torch.einsum("lcd,bld->blc", self.bit_chain.tril(-1)[levels], bits * 2.0 - 1)
        return torch.stack([logits[..., 0], logits[..., 1] + added], -1)

    def loss(self, batch: Mapping[str, Tensor], noise: StepNoise | None = None) -> Float[Tensor, ""]:
        """Returns the mean cross-entropy of the window's bits in nats."""
        logits, bits = self.teacher_forced(batch, noise)
        return F.cross_entropy(logits.flatten(0, -2), bits.long().flatten())


def build_torch_reference(
    meta_cfg: Mapping[str, Any], audio_dim: int | None = None, audio_condition: str = "", bit_chain: bool = False
) -> TorchReferenceCodec | TorchReferenceGenerator:
    """Builds the model that a release `meta_cfg` describes, with fresh weights.

    `audio_dim` (1024 for wav2vec2-xls-r-300m) is in no config and makes a generator a dialogue;
    `audio_condition` overrides the config's; `bit_chain` is read off a file's keys. Raises
    UserError naming every impossible size.
    """
    sizes = model_sizes(meta_cfg)
    codec = TorchReferenceCodec(**sizes["codec"])
    if sizes["prior"] is None:
        return codec
    return TorchReferenceGenerator(
        codec,
        **sizes["prior"],
        audio_dim=audio_dim,
        audio_condition=audio_condition or sizes["audio_condition"],
        bit_chain=bit_chain,
    )


def load_torch_reference(
    path: str | os.PathLike, audio_encoder: str | os.PathLike | None = None
) -> TorchReferenceCodec | TorchReferenceGenerator:
    """Loads an exported or released .pt, or a .safetensors with its JSON, in evaluation mode.

    `audio_encoder` is a transformers folder of wav2vec2. No pickled code runs. Raises UserError, in
    one line, for a damaged file and for missing, unexpected or misshapen keys.
    """
    contents = read_safetensors(path) if Path(path).suffix == ".safetensors" else read_pt(path)
    sizes = model_sizes(contents["meta_cfg"], contents["model"])
    chained = "bit_chain" in contents["model"]
    model = build_torch_reference(contents["meta_cfg"], sizes["audio_width"], sizes["audio_condition"], chained)
    # The reference has no ear: as with log-mel features, its dialogue is given features.
    state = {key: value for key, value in contents["model"].items() if not key.startswith("ear.")}
    load_strictly(model, state, str(path))
    if audio_encoder is not None and sizes["stage"] == "dialogue":
        model.audio_encoder = load_encoder(audio_encoder)
    return model.eval()
