"""Everything a run is told, as frozen dataclasses; its JSON stands in the workdir and in every checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any

from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.losses import CodecLossWeights
from unils_jax.models.unils import ModelConfig
from unils_jax.motion import WINDOW_FRAMES
from unils_jax.stages import STAGES, NoiseRates
from unils_jax.train.optimizer import OptimizerConfig


@dataclass(frozen=True)
class DataConfig:
    """`store` is a folder that `unils data` wrote; `batch_size` counts windows, of one person or of a pair."""

    store: str
    batch_size: int
    num_workers: int = 0


@dataclass(frozen=True)
class RunConfig:
    """One training run. `expression_basis` is the store's (checked); `head` is whose vertices the codec's mesh losses
    see: `standin`, a FLAME file, or empty for none; `audio_encoder` a folder or hub name of wav2vec2, empty where none
    is needed."""

    stage: str
    num_steps: int
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: CodecLossWeights = CodecLossWeights()
    noise: NoiseRates = NoiseRates()
    expression_basis: str = "flame"
    head: str = ""
    audio_encoder: str = ""
    seed: int = 0
    log_every: int = 50
    eval_every: int = 1000
    eval_batches: int = 8
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        problems = []
        if self.stage not in STAGES:
            problems.append(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        elif self.model.stage != self.stage:
            problems.append(f"stage is {self.stage!r} but the model's parts make a {self.model.stage!r}")
        counts = ("num_steps", "log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_checkpoints")
        problems += [f"{n} must be at least 1, got {getattr(self, n)}" for n in counts if getattr(self, n) < 1]
        if self.data.batch_size < 1:
            problems.append(f"data.batch_size must be at least 1, got {self.data.batch_size}")
        if self.data.num_workers < 0:
            problems.append(f"data.num_workers must not be negative, got {self.data.num_workers}")
        if not 0 <= self.seed < 1 << 32:
            problems.append(f"seed must be from 0 to {(1 << 32) - 1}, got {self.seed}")
        if self.stage == "dialogue" and self.model.audio_encoder is None:
            problems.append("the dialogue stage needs an audio encoder: model.wav2vec2 or model.logmel")
        if self.model.codec.window_frames != WINDOW_FRAMES:
            problems.append(f"model.codec.scales must end in {WINDOW_FRAMES}, got {self.model.codec.scales}")
        if not self.data.store:
            problems.append("data.store is empty; set it with --config.data.store=DIR (`unils data synth` makes one)")
        if problems:
            raise UserError("config: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; `run_config` reads them back."""
        return asdict(self)


def run_config(values: dict[str, Any]) -> RunConfig:
    """A RunConfig from a ConfigDict's or JSON's plain values; unknown keys are a UserError."""
    return from_dict(RunConfig, values)
