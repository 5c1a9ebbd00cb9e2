"""The config of a run, as frozen dataclasses; the workdir and every checkpoint hold its JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax.numpy as jnp

from unils_jax.config import from_dict, override, unset_settings
from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset
from unils_jax.inference.sampling import DTYPES, Sampling
from unils_jax.models.codec_losses import CodecLossWeights
from unils_jax.nn.stack import REMAT_POLICIES, Compute
from unils_jax.systems.base import NoiseRates, Objective, Stage, System
from unils_jax.systems.registry import STAGES, SYSTEMS, current_run, system_of_config, system_of_stage
from unils_jax.training.optimizer import OptimizerConfig, for_release_devices
from unils_jax.training.sharding import MeshConfig


@dataclass(frozen=True)
class DataConfig:
    """The data of a run."""

    store: str  # a folder that `unils data` wrote, or its URL; "" where stores or sets are given
    batch_size: int  # windows, of one person or of a pair, over all devices and processes
    num_workers: int = 0  # processes that cut windows; 0: the training process does
    stores: tuple[str, ...] = ()  # several stores instead, each "PATH=WEIGHT" of its windows; (): one
    max_bad_records: int = 0  # different records that may be unreadable before the run stops
    # False leaves head rotation as it was, as ARTalk does, in windows and statistics of codec and
    # generators. Evaluation and decoding give centred styles all the same.
    centre_head: bool = True

    # Folders of speech clips, each "PATH", "PATH=SCALE" or "PATH=SCALE*REPEATS"; (): none. Stores
    # that are given in addition are the annotation `motion_108`.
    sets: tuple[str, ...] = ()
    # Speech clips are cut down to a multiple of it, in seconds, so that fewer lengths are
    # compiled; 0: as they are.
    clip_step_s: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """How a step is computed: beyond rounding, only `compute_dtype` changes what is learnt."""

    compute_dtype: str = "float32"  # or "bfloat16"; weights, moments, norms and losses stay float32
    remat: bool = False  # recomputes blocks in the backward pass, see `Compute`: less memory, slower
    # What remat keeps of a block: "nothing_saveable", "dots_saveable" (products are not computed
    # again: more memory, faster) or "offload" (products with weights go to the host's memory).
    remat_policy: str = "nothing_saveable"
    scan_layers: bool = False  # compiles one block for all, see `Compute`: compiles faster
    accumulate_steps: int = 1  # parts that a batch is processed in, with the gradient of the whole
    # Frames of every window whose vertices are in memory at once, for the codec's mesh losses; 100:
    # all, and none is computed twice.
    mesh_frames: int = 10


@dataclass(frozen=True)
class RunConfig:
    """One training run of one stage."""

    stage: str  # a key of `STAGES`, for example "codec"
    num_steps: int  # optimiser steps; ignored where num_epochs is above 0
    data: DataConfig
    model: Any  # of the type that the system names
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: CodecLossWeights = CodecLossWeights()  # the codec's
    noise: NoiseRates = NoiseRates()  # the generators'
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    # How bits of the trained model are drawn where a decode does not say; its checkpoints and what
    # is exported from them carry it. Nothing in training depends on it.
    sampling: Sampling = Sampling()
    expression_basis: str = "flame"  # must equal the data's; "flame" or "standin"
    # The head whose vertices the codec's mesh losses compare: "standin", a FLAME file, or "" for no
    # mesh losses. Losses of annotations use it for `motion_108` and for FLAME parameters.
    head: str = ""
    # Folder or hub name of a published encoder; "" where the stage needs none. Encoders that train
    # start from it, or fresh where it is "".
    audio_encoder: str = ""
    # Folder of `unils data encode`: features of the audio, with which the frozen encoder does not
    # run; "": none.
    audio_features: str = ""
    seed: int = 0  # of initialisation, data order and noise

    # Periods, in steps. probe_every 0 switches the free-running evaluation off; the others must be
    # at least 1.
    log_every: int = 50
    eval_every: int = 1000  # validation losses
    eval_batches: int = 8  # of each validation
    checkpoint_every: int = 1000  # checkpoints, which a stopped run resumes from
    keep_checkpoints: int = 3  # the newest ones
    probe_every: int = 0  # the averaged model decodes held-out conversations and is scored
    probe_conversations: int = 2  # of each such evaluation
    probe_clips: bool = False  # whether the first of them is rendered as a video

    max_bad_steps: int = 10  # consecutive steps of non-finite loss or gradient that end the run
    num_epochs: int = 0  # epochs of the data to train for, see `count_epochs`; 0: num_steps decides

    system: str = ""  # a key of SYSTEMS; "": the stage's
    settings: Any = None  # of the type that the system names; None: it has none of its own
    # Pattern of the parameters that train instead of the stage's: "heads/NAME/.*" trains a new head
    # alone; "": the stage's.
    trainable: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.stage not in STAGES:
            problems.append(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        elif self.system not in ("", system_of_stage(self.stage).name):
            problems.append(
                f"system is {self.system!r}, but the {self.stage} stage is of "
                f"{system_of_stage(self.stage).name!r}; set config.system to that"
            )
        elif self.model.stage != STAGES[self.stage].trained:
            problems.append(f"stage is {self.stage!r} but the model's parts make a {self.model.stage!r}")
        counts = ("num_steps", "log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_checkpoints")
        counts += ("probe_conversations", "max_bad_steps")
        problems += [f"{n} must be at least 1, got {getattr(self, n)}" for n in counts if getattr(self, n) < 1]
        if self.probe_every < 0:
            problems.append(f"probe_every must be 0 (never) or a number of steps, got {self.probe_every}")
        if min(self.num_epochs, self.optimizer.lr_decay_every_steps, self.optimizer.lr_decay_every_epochs) < 0:
            problems.append(
                "num_epochs, optimizer.lr_decay_every_steps and optimizer.lr_decay_every_epochs must not be negative"
            )
        if self.data.batch_size < 1:
            problems.append(f"data.batch_size must be at least 1, got {self.data.batch_size}")
        if self.data.num_workers < 0:
            problems.append(f"data.num_workers must not be negative, got {self.data.num_workers}")
        if self.train.compute_dtype not in DTYPES:
            problems.append(f"train.compute_dtype must be {' or '.join(DTYPES)}, got {self.train.compute_dtype!r}")
        if self.train.remat_policy not in REMAT_POLICIES:
            problems.append(
                f"train.remat_policy must be one of {', '.join(REMAT_POLICIES)}, got {self.train.remat_policy!r}"
            )
        for name in ("accumulate_steps", "mesh_frames"):
            if getattr(self.train, name) < 1:
                problems.append(f"train.{name} must be at least 1, got {getattr(self.train, name)}")
        if self.data.batch_size % max(self.train.accumulate_steps, 1):
            problems.append(
                f"data.batch_size must be a multiple of train.accumulate_steps, got {self.data.batch_size} and "
                f"{self.train.accumulate_steps}"
            )
        if min(self.mesh.data, self.mesh.slices) < 0 or self.mesh.fsdp < 1:
            problems.append(
                "mesh.data and mesh.slices must not be negative (0: as the devices are) and mesh.fsdp at least 1, got "
                f"{self.mesh}"
            )
        if self.optimizer.release_devices < 1:
            problems.append(f"optimizer.release_devices must be at least 1, got {self.optimizer.release_devices}")
        if not 0 <= self.seed < 1 << 32:
            problems.append(f"seed must be from 0 to {(1 << 32) - 1}, got {self.seed}")
        problems += system_of_config(self.model).problems(self.model)
        if self.loss.coarse < 0:
            problems.append(f"loss.coarse must be 0 (off) or positive, got {self.loss.coarse}")
        codec = getattr(self.model, "codec", None)
        has_coarse = codec is not None and self.stage == "codec" and self.loss.coarse
        if has_coarse and not 0 < self.loss.coarse_scales < len(codec.scales):
            problems.append(
                f"loss.coarse_scales must be from 1 to {len(codec.scales) - 1}, fewer than the codec's scales, got "
                f"{self.loss.coarse_scales}"
            )
        if codec is not None and (wrong := self.sampling.scales_problem(len(codec.scales))):
            problems.append(f"sampling.{wrong}")
        if self.data.max_bad_records < 0:
            problems.append(f"data.max_bad_records must not be negative, got {self.data.max_bad_records}")
        view = STAGES[self.stage].windows if self.stage in STAGES else ""
        if self.data.sets and view not in ("speech", ""):
            readers = [s.title for s in SYSTEMS.values() if any(t.windows == "speech" for t in s.stages.values())]
            problems.append(f"data.sets are {readers[0]}'s, the {self.stage} stage reads data.store")
        if not self.data.centre_head and view not in ("solo", "pair", ""):
            problems.append(f"data.centre_head is of codec and generators; leave it True for the {self.stage} stage")
        if len(self.noise.level_db) != 2 or not -100 <= self.noise.level_db[0] <= self.noise.level_db[1] <= 100:
            problems.append(f"noise.level_db must be a lowest and a highest gain in dB, got {self.noise.level_db}")
        if not 0 <= self.noise.vocal_tract <= 1 or (self.noise.vocal_tract and self.stage != "ear"):
            problems.append(
                f"noise.vocal_tract must be 0 to 1, and 0 in other stages than the ear's, got {self.noise.vocal_tract}"
            )
        if self.audio_features and (self.data.stores or view not in ("pair", "") or self.stage == "ear"):
            problems.append("audio_features are of one data.store, and of a dialogue; leave them away elsewhere")
        if self.data.clip_step_s < 0:
            problems.append(f"data.clip_step_s must not be negative, got {self.data.clip_step_s}")
        if not (self.data.store or self.data.stores or self.data.sets):
            problems.append("data.store is empty; set it with --config.data.store=DIR (`unils data synth` makes one)")
        if problems:
            raise UserError("config: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as JSON holds them; `run_config` reads them back."""
        return asdict(self)


def override_run(config: object, assignments: list[str]) -> None:
    """Applies `a.b=value` to a run's config as `override`, to what its file leaves out, too."""
    values = config.to_dict()
    system = _system(values)
    types = {} if system is None else {"model": system.config, "settings": system.settings}
    override(config, assignments, unset_settings(RunConfig, values, types=types))


def _system(values: Mapping[str, Any]) -> System | None:
    name = values.get("system")
    return SYSTEMS.get(name) if isinstance(name, str) else None


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Builds a RunConfig from a ConfigDict's or JSON's plain values.

    Unknown keys raise UserError. The release's rule for `optimizer.release_devices` is applied
    here, to the number of steps too: the result, which is saved, holds plain settings of one
    device.
    """
    values = current_run(values)
    system = _system(values)
    if system is None:
        raise UserError(f"config.system must be one of {', '.join(SYSTEMS)}, got {values.get('system')!r}")
    types = {"model": system.config}
    if system.settings is not None:
        types["settings"] = system.settings
        values["settings"] = values.get("settings") or {}
    elif values.pop("settings", None):
        raise UserError(f"config.settings: {system.title} has none of its own; leave them away")
    config = from_dict(RunConfig, values, types=types)
    devices = config.optimizer.release_devices
    if devices == 1:
        return config
    return replace(config, num_steps=config.num_steps // devices, optimizer=for_release_devices(config.optimizer))


def count_epochs(config: RunConfig, steps_per_epoch: int) -> RunConfig:
    """Converts what the config counts in epochs to steps.

    The result says both, so that a resumed run counts the same.
    """
    optimizer, num_steps = config.optimizer, config.num_steps
    if optimizer.lr_decay_every_epochs:
        optimizer = replace(optimizer, lr_decay_every_steps=optimizer.lr_decay_every_epochs * steps_per_epoch)
    if config.num_epochs:
        num_steps = config.num_epochs * steps_per_epoch
    return replace(config, num_steps=num_steps, optimizer=optimizer)


def stage_of(config: RunConfig) -> Stage:
    """Returns the stage of a run, with what the config says about what trains."""
    stage = STAGES[config.stage]
    return replace(stage, trainable=config.trainable) if config.trainable else stage


def make_objective(config: RunConfig, head: FlameAsset | None) -> Objective:
    """Builds the loss settings of a run."""
    train, stage = config.train, STAGES[config.stage]
    compute = Compute(jnp.dtype(train.compute_dtype), train.remat, train.scan_layers, train.remat_policy)
    own = None if stage.objective is None else stage.objective(config, head)
    return Objective(config.loss, config.noise, head, compute, train.mesh_frames, own)
