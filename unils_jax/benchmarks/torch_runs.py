"""Training and decoding with the PyTorch reference as the release does them.

Noise and LoRA in training, and a decode that caches nothing, so that figures can be compared.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from unils_jax.benchmarks.torch_model import StepNoise, TorchReferenceGenerator
from unils_jax.benchmarks.torch_quantizer import full_features, next_scale_inputs, scale_slices
from unils_jax.motion import EXPRESSION, EYES, JAW, SAMPLES_PER_FRAME

if TYPE_CHECKING:
    from unils_jax.face.flame import FlameAsset
else:
    FlameAsset = object  # the reference runs without JAX


class Decoded(NamedTuple):
    """The result of `decode`.

    Motion is [1, T, 108]; every chunk has bits [W, L, C] and the logits [W, L, C, 2] that chose
    them.
    """

    motion: Tensor
    bits: Tensor
    logits: Tensor


def sample_noise(
    model: TorchReferenceGenerator, people: int, drop_rate: float = 0.1, max_flip_percent: int = 30
) -> StepNoise:
    """Draws a step's noise: each condition dropped alone, one flip rate a scale for the batch."""
    device, scales = model.sos_embed.device, model.base_codec.scales
    drops = [torch.rand(people, 1, 1, device=device) < drop_rate for _ in range(4)]
    rates = torch.randint(max_flip_percent + 1, (len(scales) - 1,), device=device) / 100
    rates = rates.repeat_interleave(torch.tensor(scales[:-1], device=device))[None, :, None]
    return StepNoise(*drops, torch.rand(people, rates.shape[1], model.base_codec.code_dim, device=device) < rates)


class LoRALinear(nn.Linear):
    """A linear layer with an adapter: `Linear(x) + alpha/rank * B(A(dropout(x)))`.

    Names are peft's; weight and bias are the base's.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        device = base.weight.device
        super().__init__(base.in_features, base.out_features, base.bias is not None, device=device)
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False, device=device)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False, device=device)})
        nn.init.zeros_(self.lora_B["default"].weight)
        self.dropout, self.scale = nn.Dropout(dropout), alpha / rank

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Returns the layer's output with the adapter's."""
        low_rank = self.lora_B["default"](self.lora_A["default"](self.dropout(x)))
        return super().forward(x) + self.scale * low_rank


def add_lora(model: TorchReferenceGenerator, rank: int = 32, alpha: float = 32.0, dropout: float = 0.1) -> None:
    """Prepares stage 3 in place: adapters on every Linear of the prior.

    Only the adapters and the audio attentions train.
    """
    blocks = model.attn_blocks.attn_blocks
    layers = [(model, "code_token_embed"), (model.logits_head, "1")]
    layers += [(block.self_attn, name) for block in blocks for name in ("to_qkv", "to_out")]
    layers += [(block.ffn, name) for block in blocks for name in ("1", "3")]
    for parent, name in layers:
        setattr(parent, name, LoRALinear(parent.get_submodule(name), rank, alpha, dropout))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "audio_attn." in name)


def make_optimizer(
    model: nn.Module, num_steps: int, rate: float = 1e-4, warmup: int = 1000, final: float = 0.1
) -> tuple[AdamW, LambdaLR]:
    """Returns AdamW on all that trains, and the schedule.

    The rate rises from `final` times its peak in `warmup` steps, then falls on a line to `final`.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return final + (1 - final) * step / warmup
        return max(1 - (1 - final) * (step - warmup) / max(num_steps - warmup, 1), final)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    return optimizer, LambdaLR(optimizer, factor)


def train_step(
    model: nn.Module, optimizer: AdamW, schedule: LambdaLR, loss: Float[Tensor, ""], max_norm: float = 1.0
) -> Float[Tensor, ""]:
    """Updates by the clipped gradient of `loss`; returns the gradient's norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = clip_grad_norm_((parameter for parameter in model.parameters() if parameter.requires_grad), max_norm)
    optimizer.step()
    schedule.step()
    return norm


@torch.no_grad()
def update_ema(ema: list[Tensor], model: nn.Module, decay: float = 0.9999) -> None:
    """Moves the averages of the trained tensors towards them, in place.

    The averages are in the order of `model.parameters()`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch._foreach_lerp_(ema, trained, 1 - decay)


@torch.no_grad()
def decode(  # noqa: PLR0913 (the settings of the release's decode)
    model: TorchReferenceGenerator,
    audio: Float[Tensor, "2 N"] | None = None,
    *,
    style: Float[Tensor, "1 F M"] | None = None,
    prev: Float[Tensor, "1 F M"] | None = None,
    num_chunks: int | None = None,
    tau: float = 1.0,
    cfg: float = 1.5,
    top_p: float = 0.97,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Decodes the first person's motion from own and other audio, for ceil(N / 640) frames.

    `tau` 0 is greedy. As in the release one person is decoded at a time, and every scale computes
    prefix, lower scales and audio anew. The prior alone decodes `num_chunks` windows without audio,
    from a style clip that is its first previous motion, too.
    """
    codec, window = model.base_codec, model.window
    zero = torch.zeros(1, window.context_frames, len(codec.motion_mean), device=codec.motion_mean.device)
    style = zero if style is None else style
    prev = style if audio is None else zero if prev is None else prev
    uncond_prev = style if audio is None else zero
    if audio is not None:
        num_chunks = window.count(audio.shape[1])
        begin, end = window.audio_span(0)[0], window.audio_span((num_chunks - 1) * window.frames)[1]
        padded = F.pad(audio, (-begin, end - audio.shape[1]))
    chunks = []
    for index in range(num_chunks):
        tracks_of_audio: list[Tensor] = []
        if audio is not None:
            first, last = window.audio_span(index * window.frames)
            heard = padded[None, :, first - begin : last - begin]
            tracks = heard[:, :1] if model.audio_condition == "own" else heard
            tracks_of_audio = [x[:1] for x in model.encode_audio(tracks)]
            tracks_of_audio = [torch.cat([x, torch.zeros_like(x)]) if cfg > 1 else x for x in tracks_of_audio]
        styles = torch.cat([style, zero]) if cfg > 1 else style
        prevs = torch.cat([prev, uncond_prev]) if cfg > 1 else prev
        conditions = codec.features(styles), codec.features(prevs)
        bits, logits = _decode_window(model, conditions, tracks_of_audio, tau, cfg, top_p, generator)
        motion = codec.decode(full_features(bits, codec.scales))
        prev = uncond_prev = torch.cat([prev[:, window.frames :], motion], 1)
        chunks.append((motion, bits, logits))
    motion, bits, logits = (torch.cat(x) for x in zip(*chunks, strict=True))
    frames = len(motion) * codec.scales[-1] if audio is None else -(-audio.shape[1] // SAMPLES_PER_FRAME)
    return Decoded(motion.flatten(0, 1)[None, :frames], bits, logits)


def _decode_window(model, conditions, audio, tau, cfg, top_p, generator):
    """Returns bits [1, L, C] of a window and the guided logits [1, L, C, 2] that chose them."""
    scales, branches = model.base_codec.scales, len(conditions[0])
    inputs, chosen, chosen_by = conditions[0][:, :0], [], []
    for scale, tokens in enumerate(scale_slices(scales)):
        logits = model(*conditions, inputs, *audio)[:, tokens] / (tau or 1)
        if cfg > 1:
            conditional, free = logits.chunk(2)
            logits = cfg * conditional + (1 - cfg) * free
        drawn = torch.rand(logits.shape[:-1], generator=generator, device=logits.device)
        if model.bit_chain is None:
            chosen.append(_choose(logits, drawn, tau, top_p))
        else:
            chain = model.bit_chain[scale].tril(-1) / (tau or 1)
            bits = torch.zeros_like(drawn)  # -1 and 1 once chosen, 0 until then
            for bit in range(drawn.shape[-1]):
                logits[..., bit, 1] += bits @ chain[bit]
                bits[..., bit] = 2.0 * _choose(logits[..., bit, :], drawn[..., bit], tau, top_p) - 1
            chosen.append(bits > 0)
        chosen_by.append(logits)
        if tokens.stop < sum(scales):
            inputs = next_scale_inputs(torch.cat(chosen, 1), scales).expand(branches, -1, -1)
    return torch.cat(chosen, 1), torch.cat(chosen_by, 1)


def _choose(logits, drawn, tau, top_p):
    if tau == 0:
        return logits[..., 1] > logits[..., 0]
    p = torch.sigmoid(logits[..., 1] - logits[..., 0])
    return drawn < torch.where(p <= 1 - top_p, 0, torch.where(1 - p <= 1 - top_p, 1, p))


class Head:
    """A head on a device, which maps motion [B, T, 108] to vertices [B, T, V, 3] in metres."""

    def __init__(self, asset: FlameAsset, device: torch.device):
        def tensor(array: np.ndarray) -> Tensor:
            return torch.tensor(np.asarray(array), device=device)

        s = asset.skinning
        self.num_expression, self.pose_columns = s.num_expression, tensor(s.pose_columns)
        self.basis, self.template = tensor(s.basis), tensor(s.template)
        self.joint_template, self.joint_basis = tensor(s.joint_template[1:]), tensor(s.joint_basis[:, 1:])
        self.total_weight, self.weights = tensor(s.total_weight), tensor(s.weights)
        self.lips = tensor(asset.lips)

    def __call__(self, motion: Float[Tensor, "B T 108"]) -> Float[Tensor, "B T V 3"]:
        """Returns vertices in metres, without head rotation."""
        flat = motion.flatten(0, 1)
        expression = flat[:, EXPRESSION][:, : self.num_expression]
        zero, eyes = torch.zeros_like(flat[:, :1]), flat[:, EYES]
        padded = torch.cat([flat[:, JAW], zero, zero, eyes[:, :2], zero, eyes[:, 2:], zero], 1)
        turn = rotation_matrices(padded.unflatten(1, (3, 3))) - torch.eye(3, device=flat.device)
        features = torch.cat([expression, turn.flatten(1)[:, self.pose_columns]], 1)
        shaped = (features @ self.basis + self.template).unflatten(1, (3, -1))
        joints = torch.einsum("be,ejc->bjc", expression, self.joint_basis) + self.joint_template
        shift = -torch.einsum("bjck,bjk->bjc", turn, joints)
        posed = self.total_weight * shaped
        for joint in range(3):
            moved = torch.einsum("bck,bkv->bcv", turn[:, joint], shaped) + shift[:, joint, :, None]
            posed = posed + self.weights[joint] * moved
        return posed.transpose(1, 2).unflatten(0, motion.shape[:2])


def rotation_matrices(axis_angle: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Returns rotations by Rodrigues' formula with angle = ||r + 1e-8||."""
    angle = torch.linalg.vector_norm(axis_angle + 1e-8, dim=-1, keepdim=True)
    x, y, z = (axis_angle / angle).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sin, cos = angle.sin()[..., None], angle.cos()[..., None]
    return torch.eye(3, device=axis_angle.device) + sin * cross + (1 - cos) * (cross @ cross)
