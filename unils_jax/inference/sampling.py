"""Sampling: temperature, guidance and nucleus, scale by scale over the prior's cache."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from unils_jax.errors import UserError
from unils_jax.models.prior import MotionPrior
from unils_jax.models.prior_cache import begin, extend
from unils_jax.models.quantizer import area_pool, scale_slices, to_codes, upsample
from unils_jax.nn.block import AudioCache

DTYPES = ("float32", "bfloat16")


# (tokens of a scale, their logits [B, n, C, 2] in all branches) -> bits [R, n, C], and the logits that chose them.
Choose = Callable[[slice, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Sampling:
    """How bits are chosen: temperature (0 is greedy), guidance (<= 1 is the conditional branch alone), nucleus."""

    tau: float = 1.0
    cfg: float = 1.5
    top_p: float = 0.97

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.tau < math.inf:
            problems.append(f"tau must be 0 (greedy) or positive, got {self.tau}")
        if not 0 <= self.cfg < math.inf:
            problems.append(f"cfg must be 0 or positive, got {self.cfg}")
        if not 0.5 <= self.top_p <= 1:
            problems.append(f"top_p must be from 0.5 to 1, got {self.top_p}")
        if problems:
            raise UserError("; ".join(problems))


# What a program takes: an array, or the placeholder that JAX puts in its place when the program is lowered.
Input = Array | np.ndarray | jax.stages.ArgInfo


@dataclass(frozen=True)
class Controls:
    """What each slot samples by, [S] each: `tau`, `cfg` and `one_minus_top_p` (1 - top_p) float32, `seed` and the conversation's
    `index` of the chunk uint32."""

    tau: Input
    cfg: Input
    one_minus_top_p: Input
    seed: Input
    index: Input


jax.tree_util.register_dataclass(Controls, ["tau", "cfg", "one_minus_top_p", "seed", "index"], [])


def make_controls(samplings: Sequence[Sampling], seeds: Sequence[int], indices: Sequence[int]) -> Controls:
    """The controls of as many slots as samplings."""
    values = [(s.tau, s.cfg, 1 - s.top_p) for s in samplings]
    tau, cfg, one_minus_top_p = np.array(values, np.float64).T.astype(np.float32)
    return Controls(tau, cfg, one_minus_top_p, np.array(seeds, np.uint32), np.array(indices, np.uint32))


def sample_scales(
    prior: MotionPrior,
    style: Float[Array, "B T C"],
    prev: Float[Array, "B T C"],
    heard: Sequence[AudioCache | None],
    choose: Choose,
) -> tuple[Bool[Array, "R L C"], Float[Array, "R L C 2"], Float[Array, "R T C"]]:
    """Bits, the logits that chose them and the full feature, scale by scale.

    The batch may hold several branches of R rows one after the other; all of them read the same bits.
    """
    frames, features = prior.scales[-1], None
    all_bits, chosen_by = [], []
    for scale, (num_tokens, tokens) in enumerate(zip(prior.scales, scale_slices(prior.scales), strict=True)):
        with jax.named_scope(f"scale_{num_tokens}"):
            if features is None:
                scale_logits, cache = begin(prior, style, prev, heard)
            else:
                inputs = jnp.tile(area_pool(features, num_tokens), (style.shape[0] // features.shape[0], 1, 1))
                scale_logits, cache = extend(prior, inputs.astype(style.dtype), scale, heard, cache)
            bits, logits = choose(tokens, scale_logits)
            upsampled = upsample(to_codes(bits), frames)
            features = upsampled if features is None else features + upsampled
            all_bits.append(bits)
            chosen_by.append(logits)
    return jnp.concatenate(all_bits, axis=1), jnp.concatenate(chosen_by, axis=1), features


def choose_bits(
    logits: Float[Array, "B n C 2"], drawn: Float[Array, "R n C"], controls: Controls, by_slot: tuple[int, int]
) -> tuple[Bool[Array, "R n C"], Float[Array, "R n C 2"]]:
    """Temperature, guidance where there are two branches, nucleus; `drawn` decides. Each by its slot's controls."""
    slots, people = by_slot

    def of_rows(values: Array) -> Array:
        return jnp.repeat(jnp.asarray(values), people).reshape(-1, 1, 1)

    tau = of_rows(controls.tau)
    greedy = tau == 0
    logits = (
        logits
        / jnp.tile(jnp.where(greedy, jnp.ones_like(tau), tau), (logits.shape[0] // tau.shape[0], 1, 1))[..., None]
    )
    if logits.shape[0] > slots * people:
        conditional, free = jnp.split(logits, 2)
        cfg = of_rows(controls.cfg)[..., None]
        logits = jnp.where(cfg > 1, cfg * conditional + (1 - cfg) * free, conditional)
    probability = nucleus_probability(logits, of_rows(controls.one_minus_top_p))
    return jnp.where(greedy, logits[..., 1] > logits[..., 0], drawn < probability), logits


def uniforms(controls: Controls, people: int, shape: tuple[int, int]) -> Float[Array, "R L C"]:
    """A number in [0, 1) for every bit of every person.

    It depends on the conversation's seed, the chunk's index, the person and the bit alone.
    """

    def of_person(seed: Array, index: Array, person: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), person)
        return jax.random.uniform(key, shape)

    slots, seeds, indices = len(controls.seed), jnp.asarray(controls.seed), jnp.asarray(controls.index)
    each = jnp.tile(jnp.arange(people), slots)
    return jax.vmap(of_person)(jnp.repeat(seeds, people), jnp.repeat(indices, people), each)


def nucleus_probability(logits: Float[Array, "*B 2"], one_minus_top_p: float | Array) -> Float[Array, "*B"]:
    """The probability of bit 1 after nucleus filtering: an outcome of probability <= rare = 1 - top_p is dropped."""
    p = jax.nn.sigmoid(logits[..., 1] - logits[..., 0])
    one_minus_top_p = jnp.broadcast_to(jnp.asarray(one_minus_top_p, jnp.float32), p.shape)
    return jnp.where(p <= one_minus_top_p, jnp.zeros_like(p), jnp.where(1 - p <= one_minus_top_p, jnp.ones_like(p), p))
