"""Sampling: temperature, guidance and nucleus, scale by scale over the prior's cache."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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

# (tokens of a scale, their logits [B, n, C, 2] in all branches) -> bits [R, n, C], and the logits
# that chose them.
Choose = Callable[[slice, Array], tuple[Array, Array]]

# What JAX puts in the place of arrays where a program is lowered or only its shapes are computed.
Placeholder = jax.stages.ArgInfo | jax.ShapeDtypeStruct

# What a program takes.
Input = Array | np.ndarray | Placeholder


# A number for all scales, or one for each from the coarsest to the finest.
ByScale = float | tuple[float, ...]


def each(values: ByScale) -> tuple[float, ...]:
    """Returns the values of each scale, or the one of all."""
    return values if isinstance(values, tuple) else (values,)


def written(values: ByScale) -> str:
    """Returns values as `--tau` takes them."""
    return ",".join(f"{value:g}" if len(each(values)) > 1 else str(value) for value in each(values))


@dataclass(frozen=True)
class Sampling:
    """How bits are chosen."""

    # Temperature of the logits, one for all scales or one for each; 0 is greedy: the likelier bit.
    tau: ByScale = 1.0
    # Guidance scale, one for all scales or one for each; at most 1 is the conditional branch alone.
    cfg: ByScale = 1.5
    top_p: float = 0.97  # nucleus: a bit of probability <= 1 - top_p is never chosen; 1 keeps all

    def __post_init__(self) -> None:
        problems = []
        if not all(0 <= tau < math.inf for tau in each(self.tau)):
            problems.append(f"tau must be 0 (greedy) or positive, got {written(self.tau)}")
        if not all(0 <= cfg < math.inf for cfg in each(self.cfg)):
            problems.append(f"cfg must be 0 or positive, got {written(self.cfg)}")
        if not 0.5 <= self.top_p <= 1:
            problems.append(f"top_p must be from 0.5 to 1, got {self.top_p}")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def guided(self) -> bool:
        """Whether a scale needs the unconditional branch, too."""
        return max(each(self.cfg)) > 1

    def but(self, tau: ByScale | None = None, cfg: ByScale | None = None, top_p: float | None = None) -> "Sampling":
        """Returns the same with some values changed; None keeps one."""
        given = {"tau": tau, "cfg": cfg, "top_p": top_p}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def scales_problem(self, num_scales: int) -> str:
        """Says what is wrong where values are given for other scales than a model has.

        "" is right.
        """
        for name in ("tau", "cfg"):
            found = len(each(getattr(self, name)))
            if found not in (1, num_scales):
                return f"{name} has {found} values; give one, or {num_scales}, one for each scale of the model"
        return ""


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class Controls:
    """The settings that each of S slots samples by: arrays [S], tau and cfg [S, K] for K scales."""

    tau: Input  # float32, as in `Sampling`
    cfg: Input  # float32, as in `Sampling`
    one_minus_top_p: Input  # float32; 1 - `Sampling.top_p`, subtracted in float64
    seed: Input  # uint32, the conversation's
    index: Input  # uint32, the number of the chunk in its conversation, from 0

    def at_scale(self, scale: int) -> "Controls":
        """Returns those of one scale, arrays [S] alone."""
        return replace(self, tau=self.tau[:, scale], cfg=self.cfg[:, scale])


jax.tree_util.register_dataclass(Controls, ["tau", "cfg", "one_minus_top_p", "seed", "index"], [])


def make_controls(
    samplings: Sequence[Sampling], seeds: Sequence[int], indices: Sequence[int], num_scales: int
) -> Controls:
    """Builds the controls of as many slots as samplings, for a model of so many scales."""
    tau, cfg = (
        np.array([np.broadcast_to(each(values), num_scales) for values in of_slots], np.float32)
        for of_slots in ([s.tau for s in samplings], [s.cfg for s in samplings])
    )
    one_minus_top_p = np.array([1 - s.top_p for s in samplings], np.float64).astype(np.float32)
    seeds, indices = np.array(seeds, np.uint32), np.array(indices, np.uint32)
    return Controls(tau, cfg, one_minus_top_p, seeds, indices)


def sample_scales(
    prior: MotionPrior,
    style: Float[Array, "B F C"],
    prev: Float[Array, "B F C"],
    audio_cache: Sequence[AudioCache | None],
    choose: Choose,
) -> tuple[Bool[Array, "R L C"], Float[Array, "R L C 2"], Float[Array, "R T C"]]:
    """Samples a window; returns its bits, the logits that chose them and the full feature.

    The batch may hold several branches of R rows, one after the other; all read the same bits.

    Args:
        prior: The generator.
        style: Style features of all branches, in the compute dtype.
        prev: Features of the previous motion of all branches.
        audio_cache: One cached window of audio for each block; Nones for a prior without audio.
        choose: Chooses the bits of one scale from its logits in all branches.
    """
    frames, features = prior.scales[-1], None
    all_bits, chosen_by = [], []
    for scale, (num_tokens, tokens) in enumerate(zip(prior.scales, scale_slices(prior.scales), strict=True)):
        with jax.named_scope(f"scale_{num_tokens}"):
            if features is None:
                scale_logits, cache = begin(prior, style, prev, audio_cache)
            else:
                num_branches = style.shape[0] // features.shape[0]
                inputs = jnp.tile(area_pool(features, num_tokens), (num_branches, 1, 1))
                inputs = inputs.astype(style.dtype)
                scale_logits, cache = extend(prior, inputs, scale, audio_cache, cache)
            bits, logits = choose(tokens, scale_logits)
            upsampled = upsample(to_codes(bits), frames)
            features = upsampled if features is None else features + upsampled
            all_bits.append(bits)
            chosen_by.append(logits)
    return jnp.concatenate(all_bits, axis=1), jnp.concatenate(chosen_by, axis=1), features


def choose_bits(  # noqa: PLR0913 (two of six are of a chain alone)
    logits: Float[Array, "B n C 2"],
    drawn: Float[Array, "R n C"],
    controls: Controls,
    by_slot: tuple[int, int],
    chain: Float[Array, "C C"] | None = None,
    given: Bool[Array, "R n C"] | None = None,
) -> tuple[Bool[Array, "R n C"], Float[Array, "R n C 2"]]:
    """Chooses bits by temperature, guidance and nucleus; returns them and the logits used.

    Args:
        logits: Of one scale, with one row (conditional) or two (then unconditional) for a person.
        drawn: Uniform numbers in [0, 1): bit 1 is taken where they are below its probability.
        controls: The settings of each slot, `Controls.at_scale`.
        by_slot: The number of slots and of people in each; R is their product.
        chain: Of `MotionPrior.chain`; None: bits of a token are independent.
        given: Bits to take as they are; None: bits are chosen.
    """
    slots, people = by_slot

    def for_rows(values: Array) -> Array:
        return jnp.repeat(jnp.asarray(values), people).reshape(-1, 1, 1)

    tau = for_rows(controls.tau)
    greedy = tau == 0
    # Greedy rows divide by 1: their bits follow from the signs alone, and nothing becomes infinite.
    temperature = jnp.where(greedy, jnp.ones_like(tau), tau)
    num_branches = logits.shape[0] // tau.shape[0]
    logits = logits / jnp.tile(temperature, (num_branches, 1, 1))[..., None]
    if logits.shape[0] > slots * people:
        conditional, unconditional = jnp.split(logits, 2)
        cfg = for_rows(controls.cfg)[..., None]
        guided = cfg * conditional + (1 - cfg) * unconditional
        logits = jnp.where(cfg > 1, guided, conditional)
    one_minus_top_p = for_rows(controls.one_minus_top_p)

    def choose(logits: Array, drawn: Array) -> Array:
        probability = nucleus_probability(logits, one_minus_top_p)
        return jnp.where(greedy, logits[..., 1] > logits[..., 0], drawn < probability)

    if chain is None:
        return (choose(logits, drawn) if given is None else given), logits

    # One bit after the other: each adds its weight to the logits of those that follow it.
    def next_bit(added: Array, bit: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        logits, drawn, forced, index, column = bit
        logits = logits.at[..., 1].add(jax.lax.dynamic_index_in_dim(added, index, axis=-1, keepdims=False))
        taken = choose(logits[..., None, :], drawn[..., None])[..., 0] if given is None else forced
        code = jnp.where(taken, 1.0, -1.0)
        return added + code[..., None] * column[None, None] / temperature, (taken, logits)

    by_bit = [jnp.moveaxis(x, 2, 0) for x in (logits, drawn, drawn if given is None else given)]
    steps = (*by_bit, jnp.arange(drawn.shape[-1]), chain.T)
    _, (bits, logits) = jax.lax.scan(next_bit, jnp.zeros_like(drawn), steps)
    return jnp.moveaxis(bits, 0, 2), jnp.moveaxis(logits, 0, 2)


def uniforms(controls: Controls, people: int, shape: tuple[int, int]) -> Float[Array, "R L C"]:
    """Draws a number in [0, 1) for every bit of every person.

    It depends only on the conversation's seed, the chunk's index, the person and the bit.
    """

    def draw_person(seed: Array, index: Array, person: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), person)
        return jax.random.uniform(key, shape)

    slots, seeds = len(controls.seed), jnp.asarray(controls.seed)
    indices, person = jnp.asarray(controls.index), jnp.tile(jnp.arange(people), slots)
    return jax.vmap(draw_person)(jnp.repeat(seeds, people), jnp.repeat(indices, people), person)


def nucleus_probability(logits: Float[Array, "*B 2"], one_minus_top_p: float | Array) -> Float[Array, "*B"]:
    """Returns the probability of bit 1 after nucleus filtering.

    An outcome of probability <= `one_minus_top_p` is dropped.
    """
    p = jax.nn.sigmoid(logits[..., 1] - logits[..., 0])
    rare = jnp.broadcast_to(jnp.asarray(one_minus_top_p, jnp.float32), p.shape)
    return jnp.where(p <= rare, jnp.zeros_like(p), jnp.where(1 - p <= rare, jnp.ones_like(p), p))
