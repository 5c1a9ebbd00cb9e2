"""What a published system is, as data: its stages of training, its inputs and outputs, its files.

Losses and noise are of the whole batch, by item: every loss is a sum over items, weighted by their
shares in the whole. A batch that is cut over devices or computed in parts gives the same as in one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.face import flame
from unils_jax.inference.sampling import Sampling
from unils_jax.models.codec_losses import CodecLossWeights, SampleWeights, observed_sample_weights
from unils_jax.motion import FPS, MOTION_KIND, Window
from unils_jax.nn.layers import RandomKey
from unils_jax.nn.params import Params
from unils_jax.nn.stack import FLOAT32, Compute
from unils_jax.systems.torch_layout import TorchLayout

Leaf = Array | np.ndarray | jax.ShapeDtypeStruct  # of a batch: on devices, of a loader, or laid out
Arrays = Mapping[str, Array]  # of a batch, by name: a `Batch`, or plain ones
GradientMask = dict[str, bool | Array]
Metrics = dict[str, Array]


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Leaf]):
    """The arrays of a batch by name, and which annotation they are of.

    The annotation is static: a step is traced and compiled once for each.
    """

    arrays: dict[str, Any]  # [B, ...] each
    annotation: str | None = None  # of a system of several annotations; None: the system has one

    def __getitem__(self, name: str) -> Leaf:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


jax.tree_util.register_dataclass(Batch, ["arrays"], ["annotation"])


@dataclass(frozen=True)
class NoiseRates:
    """How often conditions are dropped and bits flipped; the defaults are the paper's."""

    style_drop: float = 0.1  # share of the samples whose style is zero motion
    prev_drop: float = 0.1  # the same of the previous motion
    audio_drop: float = 0.1  # the same of each audio
    max_flip_percent: int = 30  # the largest share of the bits that are flipped, in percent
    # Share of the samples whose previous motion has passed the codec, as it has in decoding, where
    # it is what was decoded before.
    prev_coded: float = 0.0
    # Lowest and highest gain in dB by which each audio track's level is moved at random; equal: by
    # no more than that.
    level_db: tuple[float, ...] = (0.0, 0.0)
    # Of the ear's training: the frequencies of each track are multiplied by exp(u), u drawn evenly
    # from minus to plus this, as if the speaker's vocal tract were shorter or longer; 0: never.
    vocal_tract: float = 0.0


@dataclass(frozen=True)
class Objective:
    """What a stage's loss needs besides model and batch."""

    weights: CodecLossWeights = CodecLossWeights()
    noise: NoiseRates = NoiseRates()  # of the generators
    head: flame.FlameAsset | None = None  # whose vertices mesh losses compare; None: no such losses
    compute: Compute = FLOAT32  # how the model is run
    mesh_frames: int = 10  # of a window, whose vertices are in memory at once
    system: object = None  # what the stage's `objective` made: settings that its own loss alone knows


@dataclass(frozen=True)
class GlobalBatch:
    """What a part of a batch must know of the whole."""

    sample_weights: SampleWeights  # the part's shares in the whole
    bit_probabilities: Array | None = None  # the whole's, for the codec; None: the part is all there is


@runtime_checkable
class Loaded(Protocol):
    """A loaded checkpoint, as far as a run that starts from one needs it."""

    config: Any
    params: Params
    expression_basis: str
    source: Mapping[str, Any]
    run: Mapping[str, Any] | None
    sampling: Sampling

    def select(self, *annotations: str) -> "Loaded":
        """Returns the model of these annotations alone."""


@runtime_checkable
class Run(Protocol):
    """A training run's config, as far as its system needs it; `dataclasses.replace` changes it."""

    model: Any  # of the system's `config` type
    settings: Any  # of the system's `settings` type
    expression_basis: str
    head: str
    audio_encoder: str


@dataclass(frozen=True)
class Start:
    """What a run begins with besides its config and data."""

    parent: Loaded | None = None  # the checkpoint it starts from; None: scratch, or a resumed run
    saved: Any = None  # the model's config in the workdir that the run resumes; None: a new run
    # (folder or hub name, family) -> sizes and parameters, under `audio_encoder/`, of a published
    # encoder.
    load_encoder: Callable[[str, str], tuple[Any, Params]] | None = None
    # (path, kind of model) -> another checkpoint that the run takes parts of.
    load_checkpoint: Callable[[str, str], Loaded] | None = None


@runtime_checkable
class WindowData(Protocol):
    """The loader of windows, as far as a new run takes something from it."""

    @property
    def mixture(self) -> object:
        """The stores; their `statistics` are mean and deviation of the motion."""


def window_of(config: object) -> Window:
    """Returns what a model of this config decodes at a time; the release's for other systems."""
    return getattr(config, "window", Window())


def window_frames_of(config: object) -> int:
    """Returns the frames of one window of a model of this config."""
    return window_of(config).frames


@dataclass(frozen=True)
class Stage:
    """One training stage, as data: what it starts from, reads, trains and minimises."""

    name: str
    parent: str | None  # kind of model that it must start from; None: scratch
    windows: str  # the loader's view: "solo", "pair", "partners" or "speech"
    trainable: str  # pattern of parameter paths, a full match
    # (model, batch, noise, objective, global batch) -> (loss, metrics). In evaluation mode where
    # the noise is None; the batch is all there is where the global batch is None.
    loss: Callable[[Any, Arrays, Any, Objective, GlobalBatch | None], tuple[Array, Metrics]]
    # (key, batch, model, objective) -> the noise of a whole batch. None: the stage has none.
    draw: Callable[[RandomKey, Arrays, Any, Objective], Any] | None = None
    # What `GlobalBatch.bit_probabilities` of a batch in parts is summed from. None: not needed.
    bit_probabilities: Callable[[Any, Arrays, Objective, SampleWeights], Array] | None = None
    # (paths, batch, noise, updates, objective) -> which parameters the step gives a gradient, and
    # whether the optimiser is made anew before it, after so many updates. None: all of them, never.
    gradient_mask: Callable[[Iterable[str], Arrays, Any, Array, Objective], tuple[GradientMask, Array]] | None = None
    # (the model's config) -> frames of motion to predict in an item. None: the loader says how many
    # on average.
    item_frames: Callable[[Any], int] | None = window_frames_of
    decodes: bool = False  # whether the model decodes long conversations while it trains, see `probe`
    model: str = ""  # what kind of model comes out; "": one named like the stage
    generates: bool = True  # whether the kind of model can be run by itself; False: it is a part of others
    continues: bool = False  # whether it may start from a checkpoint of the kind that it trains
    uses_head: bool = False  # whether the loss compares vertices of a head
    without_head: str = ""  # what the log says of a run without one
    # (config, data, start) -> the config with what follows from data or parent. Called twice:
    # before the data are opened (data None) and with them. None: the config says everything.
    fit_config: Callable[[Run, Any, Start], Run] | None = None
    # (config, shapes, data, start) -> the parameters of a new run that are not drawn, host arrays.
    # None: all are drawn.
    init: Callable[[Run, Params, Any, Start], Params] | None = None
    objective: Callable[[Run, flame.FlameAsset | None], object] | None = None  # -> `Objective.system`
    # What the view's loader takes from the config, besides what every loader takes.
    view_settings: Callable[[Run], Mapping[str, Any]] | None = None

    @property
    def trained(self) -> str:
        """The kind of model that comes out: `stage` of the model's config."""
        return self.model or self.name

    def split(self, params: Params) -> tuple[Params, Params]:
        """Splits parameters into (trainable, frozen)."""
        chosen = {path for path in params if re.fullmatch(self.trainable, path)}
        trainable = {path: value for path, value in params.items() if path in chosen}
        return trainable, {path: value for path, value in params.items() if path not in chosen}


def batch_sample_weights(batch: Arrays) -> SampleWeights:
    """Returns the shares of a whole batch's items.

    They follow from `observed` ([B, M] or [B, 2, M], 1 = counts) where the batch has that; without
    it all count alike.
    """
    observed = batch.get("observed")
    if observed is None:
        observed = jnp.ones((*batch["motion"].shape[:-2], batch["motion"].shape[-1]))
    return observed_sample_weights(jnp.asarray(observed))


@dataclass(frozen=True)
class Inputs:
    """One conversation, as a system generates motion from it. Audio is 16 kHz mono float32."""

    audio: Float[np.ndarray, " N"] | None = None  # None: a prior, which has no audio
    other_audio: Float[np.ndarray, " N2"] | None = None  # None: silence
    # Head rotation as tracked: of the partner [T, 108], or of both people in their order [2, T,
    # 108]. None: zero.
    other_motion: Float[np.ndarray, "*P T 108"] | None = None
    # Clips of the model's `window.context_frames`, 100 of the release; one clip serves both people.
    # None: zero motion.
    style: Float[np.ndarray, "P F 108"] | None = None
    prev: Float[np.ndarray, "P2 F2 108"] | None = None  # the frames before the first
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
class ClipSettings:
    """How clips of a system's own sets are scored."""

    sets: Sequence[str]  # DIR=SCALE each, in the order of training
    resources: str | None = None  # the folder with the release's assets; None: that of the training
    flame: str | None = None  # FLAME's model file; None: that of the training
    limit: int | None = None  # the first clips only; None: all
    dtype: str = "float32"


@dataclass(frozen=True)
class ClipScores:
    """What came of scoring clips."""

    rows: list[dict[str, Any]]  # the figures of each, with its `name`, `set` and `kind`
    known_people: bool  # whether the model knows the sets' people, or took all of them for the pivot


@dataclass(frozen=True)
class Card:
    """What a model card says of a model's own kind."""

    title: str
    data: str  # what its numbers are
    facts: Sequence[str]  # sizes, a line each


@dataclass(frozen=True)
class PublishedEncoder:
    """A published audio encoder that a system's own files leave out.

    The paths of its parameters begin with `audio_encoder/`.
    """

    needed: Callable[[Any], bool]  # whether a model of this config needs it
    get: Callable[[Any], Any]  # its sizes in a config; None: not known, or none
    put: Callable[[Any, Any], Any]  # the config with these sizes, or as it is without the encoder (None)
    family: Callable[[Any], str] = lambda config: "wav2vec2"  # what kind of encoder a config needs


@dataclass(frozen=True)
class System:
    """A published system: how it is built, trained, run and stored."""

    name: str  # key of SYSTEMS, and `system` of a run's config
    title: str  # as its authors write it
    config: type  # dataclass of a run's `model`; its `stage` says what kind of model one instance describes
    build: type[nnx.Module]  # the module's class, made by `build(config, rngs=rngs)`
    stages: Mapping[str, Stage]  # how it trains, by name
    inputs: frozenset[str]  # the fields of `Inputs` that it reads
    draws: bool  # whether motion depends on the seed
    generate: Callable[[nnx.Module, Inputs, Options], Generated]  # one conversation
    layout: TorchLayout  # its files for PyTorch
    card: Callable[[Any, str], Card]  # (the model's config, expression basis) -> text of the model card
    settings: type | None = None  # dataclass of a run's `settings`; None: the system has none of its own
    conditions: Mapping[str, str] = field(default_factory=dict)  # what a report says of how motion is generated
    # How its authors score it: the fields of a protocol of evaluation that is named like the
    # system. None: it has none.
    protocol: Mapping[str, Any] | None = None
    # Annotations that are not our motion -> what their numbers are ("vertices", "weights", ...) and
    # their units.
    forms: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # (checkpoint, the clips' source, clips, settings) -> scores on sets in the system's own layout.
    # None: it has none.
    score_clips: Callable[[Loaded, Any, Sequence[Any], ClipSettings], ClipScores] | None = None
    encoder: PublishedEncoder | None = None
    # (config, parameters) -> the same model with adapters merged into its kernels. None: it has no
    # adapters.
    merge: Callable[[Any, Params], tuple[Any, Params]] | None = None
    # (config, annotations, file's name) -> the model of these annotations alone, () for the default
    # one. None: one model, one annotation.
    select: Callable[[Any, tuple[str, ...], str], Any] | None = None
    # (config, parameters) -> the annotations whose PCA the file left out. None: no annotation has
    # one.
    without_pca: Callable[[Any, Params], tuple[str, ...]] | None = None
    # (config, parameters, components [n, D] and mean [D] by annotation) -> the model with them.
    with_pca: Callable[[Any, Params, Mapping[str, tuple[np.ndarray, np.ndarray]]], tuple[Any, Params]] | None = None
    # (config, parameters, file's name) -> what a loaded checkpoint lacks to be run, "" where it is
    # complete.
    lacks: Callable[[Any, Params, str], str] = lambda config, params, source: ""
    # What is wrong with a model's config that is to be trained.
    problems: Callable[[Any], Sequence[str]] = lambda config: ()

    def builder(self, config: object) -> Callable[[nnx.Rngs], nnx.Module]:
        """Returns the function that builds the model of a config."""
        return lambda rngs: self.build(config, rngs=rngs)
