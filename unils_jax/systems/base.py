"""The stages of training as data: which parent, which windows, which parameters train, which objective.

Losses and noise are of the whole batch, by item: every loss is a sum over items, weighted by their shares in the whole,
so a batch that is cut over devices or worked off in parts gives what it gives in one piece.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.face import flame
from unils_jax.inference.sampling import Sampling
from unils_jax.models.losses import CodecLossWeights, SampleWeights, observed_sample_weights
from unils_jax.models.unils import UniLS
from unils_jax.motion import FPS, MOTION_KIND, WINDOW_FRAMES
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params
from unils_jax.nn.stack import FLOAT32, Compute
from unils_jax.systems.unitalker.annotations import Space

Batch = dict[str, Array]
GradientMask = dict[str, bool | Array]
Metrics = dict[str, Array]


@dataclass(frozen=True)
class NoiseRates:
    """Condition dropout per sample and the largest bit-flip rate, in percent; the defaults are the paper's."""

    style_drop: float = 0.1
    prev_drop: float = 0.1
    audio_drop: float = 0.1
    max_flip_percent: int = 30


@dataclass(frozen=True, eq=False)
class TalkerObjective:
    """What UniTalker's objective needs: the space of each kind (without one: its numbers), how often a batch is
    nobody's, and for how many updates the audio encoder stays frozen at first."""

    spaces: Mapping[str, Space] = field(default_factory=dict)
    pivot_rate: float = 0.1
    frozen_steps: int = 0


@dataclass(frozen=True)
class Objective:
    """What an objective needs beside model and batch: loss weights and head of the codec (`mesh_frames` of a window at
    a time, see `mesh_losses`), rates of the generators, UniTalker's settings, and how the model is run."""

    weights: CodecLossWeights = CodecLossWeights()
    noise: NoiseRates = NoiseRates()
    head: flame.FlameAsset | None = None
    compute: Compute = FLOAT32
    mesh_frames: int = 10
    talker: TalkerObjective = TalkerObjective()


@dataclass(frozen=True)
class GlobalBatch:
    """What a part of a batch must know of the whole: its shares in it, and for the codec the whole's `bit_probabilities`."""

    sample_weights: SampleWeights
    bit_probabilities: Array | None = None


@dataclass(frozen=True)
class Stage:
    """`trainable` is a pattern of parameter paths; `windows` names the loader's view, whose items hold `item_frames`
    frames of motion to predict (0: the loader says how many on average). `decodes`: the model decodes long
    conversations while it trains, see `probe`. `model` names what comes out where that is another stage's
    kind of model.

    `loss(model, batch, noise, objective, whole)` gives (loss, metrics), in evaluation mode where `noise` is None; the
    batch is all there is where `whole` is None. `draw(key, batch, model, objective)` draws a whole batch's noise (None:
    the stage has none). `gradient_mask(paths, batch, noise, updates, objective)` says which parameters the step gives a
    gradient, and whether the optimiser is made anew before it, after so many updates (None: all, never).
    `bit_probabilities` is what `GlobalBatch.bit_probabilities` of a batch in parts is summed from (None: not needed).
    """

    name: str
    parent: str | None
    windows: str
    trainable: str
    loss: Callable[[Any, Batch, Any, Objective, GlobalBatch | None], tuple[Array, Metrics]]
    draw: Callable[[RandomKey, Batch, Any, Objective], Any] | None = None
    bit_probabilities: Callable[[UniLS, Batch, Objective, SampleWeights], Array] | None = None
    gradient_mask: Callable[[Iterable[str], Batch, Any, Array, Objective], tuple[GradientMask, Array]] | None = None
    item_frames: int = WINDOW_FRAMES
    decodes: bool = False
    model: str = ""

    @property
    def trained(self) -> str:
        """What kind of model comes out: `ModelConfig.stage` of the run's config."""
        return self.model or self.name

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trainable, frozen) parameters."""
        chosen = {path for path in params if re.fullmatch(self.trainable, path)}
        trainable = {path: value for path, value in params.items() if path in chosen}
        return trainable, {path: value for path, value in params.items() if path not in chosen}


def batch_sample_weights(batch: Batch) -> SampleWeights:
    """The shares of a whole batch's items, from `observed` ([B, M] or [B, 2, M], 1 = counts) where it has that."""
    observed = batch.get("observed")
    if observed is None:
        observed = jnp.ones((*batch["motion"].shape[:-2], batch["motion"].shape[-1]))
    return observed_sample_weights(jnp.asarray(observed))


@dataclass(frozen=True)
class Inputs:
    """One conversation, as a system generates motion from it. Audio is 16 kHz mono float32."""

    audio: Float[np.ndarray, " N"] | None = None  # None: a prior, which has no audio
    other_audio: Float[np.ndarray, " N2"] | None = None  # None: silence
    # Head rotation as tracked: of the partner [T, 108], or of both people in their order [2, T, 108]. None: zero.
    other_motion: Float[np.ndarray, "*P T 108"] | None = None
    style: Float[np.ndarray, "P 100 108"] | None = None  # one clip serves both people; None: zero motion
    prev: Float[np.ndarray, "P 100 108"] | None = None  # the 100 frames before the first; None: zero motion
    annotation: str | None = None  # which annotation to predict; None: motion, or the model's only one
    identity: int | None = None  # a row of the model's identities; None: the pivot
    template: Float[np.ndarray, " D"] | None = None  # the neutral face of an annotation; None: zero
    num_frames: int | None = None  # of a prior, which has no audio to take its length from


# The fields of `Inputs` that not every system reads; `System.inputs` names those that it does.
OPTIONAL_INPUTS = ("other_audio", "other_motion", "style", "prev", "annotation", "identity", "template")


@dataclass(frozen=True)
class Options:
    """How motion is generated."""

    sampling: Sampling = Sampling()  # of systems that draw
    seed: int = 0  # the same seed gives the same motion
    people: int = 1  # 2: of both people of the conversation
    dtype: str = "float32"  # or "bfloat16", of what a system computes in it
    fps: int | None = None  # of annotations without a frame rate of their own; None: the published one


@dataclass(frozen=True)
class Generated:
    """What a system made of one conversation."""

    values: Float[np.ndarray, "P T D"]  # motion of 108 channels, or the numbers of an annotation
    annotation: str = MOTION_KIND
    fps: float = FPS


@dataclass(frozen=True)
class System:
    """A published system: how it is built, trained and run."""

    name: str  # key of SYSTEMS, and `system` of a run's config
    title: str  # as its authors write it
    config: type  # dataclass of a run's `model`; its `stage` says what kind of model one instance describes
    build: type[nnx.Module]  # the module's class, made by `build(config, rngs=rngs)`
    stages: Mapping[str, Stage]  # how it trains, by name
    inputs: frozenset[str]  # the fields of `Inputs` that it reads
    draws: bool  # whether motion depends on the seed
    generate: Callable[[nnx.Module, Inputs, Options], Generated]
