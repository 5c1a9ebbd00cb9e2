"""The quantiser of the PyTorch reference: latents to bits of every scale, and back to features."""

import math
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Scales = tuple[int, ...]


class Quantized(NamedTuple):
    """The result of `quantize`: bits [B, L, C], features [B, T, C] and losses [K].

    `bits` are the targets; gradients of `features` go straight through.
    """

    bits: Tensor
    flipped_bits: Tensor
    features: Tensor
    losses: Tensor


def resize(x: Float[Tensor, "B T C"], frames: int, mode: str) -> Float[Tensor, "B t C"]:
    """Resizes over time, by PyTorch's `area` or `linear` interpolation."""
    return x if x.shape[1] == frames else F.interpolate(x.mT, frames, mode=mode).mT


def to_codes(bits: Tensor) -> Float[Tensor, "B L C"]:
    """Returns the corners of the unit sphere's cube that `bits` name."""
    return (bits.float() * 2 - 1) / math.sqrt(bits.shape[-1])


def scale_slices(scales: Scales) -> list[slice]:
    """Returns the tokens of each scale."""
    return [slice(end - size, end) for end, size in zip(accumulate(scales), scales, strict=True)]


def quantize(latent: Float[Tensor, "B T C"], scales: Scales, flips: Bool[Tensor, "B F C"] | None = None) -> Quantized:
    """Applies residual binary spherical quantisation.

    Flipped codes feed the next residual; the targets are the bits before.
    """
    frames, residual, features = latent.shape[1], latent, torch.zeros_like(latent)
    bits, flipped_bits, losses = [], [], []
    for scale, tokens in zip(scales, scale_slices(scales), strict=True):
        z = F.normalize(resize(residual, scale, "area"), dim=-1)
        bit = z > 0
        flipped = bit if flips is None or scale == scales[-1] else bit ^ flips[:, tokens]
        code = to_codes(flipped)
        features = features + resize(z + (code - z).detach(), frames, "linear")
        residual = residual - resize(code, frames, "linear")
        bits.append(bit)
        flipped_bits.append(flipped)
        losses.append(scale_loss(z, to_codes(bit)))
    return Quantized(torch.cat(bits, 1), torch.cat(flipped_bits, 1), features, torch.stack(losses))


def scale_loss(z: Float[Tensor, "B n C"], code: Float[Tensor, "B n C"]) -> Float[Tensor, ""]:
    """Returns the commitment and entropy losses of one scale."""
    logit = 400 * z / math.sqrt(z.shape[-1])
    p, q = torch.sigmoid(-logit), torch.sigmoid(logit)

    def entropy(p: Tensor, q: Tensor) -> Tensor:
        return -(p * torch.log(p + 1e-8) + q * torch.log(q + 1e-8)).sum(-1)

    entropies = entropy(p, q).mean() - entropy(p.mean((0, 1)), q.mean((0, 1)))
    return 0.2 * (code - z).square().sum(-1).mean() + 0.1 * entropies / 100


def full_features(bits: Tensor, scales: Scales) -> Float[Tensor, "B T C"]:
    """Returns the features that the bits of all scales add up to."""
    codes = to_codes(bits)
    return sum(resize(codes[:, tokens], scales[-1], "linear") for tokens in scale_slices(scales))


def next_scale_inputs(bits: Tensor, scales: Scales) -> Float[Tensor, "B I C"]:
    """Returns the inputs of scales 1..K-1, as far as they follow from the bits given."""
    codes, features, inputs = to_codes(bits), 0, []
    for tokens, next_scale in zip(scale_slices(scales), scales[1:], strict=False):
        if tokens.stop <= bits.shape[1]:
            features = features + resize(codes[:, tokens], scales[-1], "linear")
            inputs.append(resize(features, next_scale, "area"))
    return torch.cat(inputs, 1)
