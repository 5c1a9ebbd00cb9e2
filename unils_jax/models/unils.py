"""UniLS as one module: codec, prior and audio encoder, as far as a stage has them."""

from dataclasses import asdict, dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.models.codec import Codec, CodecConfig
from unils_jax.models.ear import Ear, EarConfig
from unils_jax.models.logmel import LogMel, LogMelConfig
from unils_jax.models.mimi import Mimi, MimiConfig
from unils_jax.models.prior import LORA_PATTERN, MotionPrior, PriorConfig
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.motion import AUDIO_CONDITIONS, MOTION_DIM, Window
from unils_jax.nn.lora import add_lora
from unils_jax.nn.stack import FLOAT32, Compute

EncoderConfig = Wav2Vec2Config | LogMelConfig | EarConfig | MimiConfig


@dataclass(frozen=True)
class LoRAConfig:
    """Sizes of the adapters; the defaults are the paper's."""

    rank: int = 32  # of every adapter's two factors
    alpha: float = 32.0  # an adapter's product is scaled by alpha / rank
    dropout_rate: float = 0.1  # of an adapter's input, in training


@dataclass(frozen=True)
class UniLSConfig:
    """The parts of a UniLS model and their sizes."""

    codec: CodecConfig = CodecConfig()  # an ear alone has none, whatever this says
    prior: PriorConfig | None = None  # None: a codec alone
    wav2vec2: Wav2Vec2Config | None = None  # audio encoder; None: another one, or no audio
    logmel: LogMelConfig | None = None  # features without weights in place of `wav2vec2`
    lora: LoRAConfig | None = None  # None: no adapters, or merged ones
    ear: EarConfig | None = None  # a small trained encoder in place of `wav2vec2`; its weights are the model's own
    mimi: MimiConfig | None = None  # the other published encoder of the release, in place of `wav2vec2`

    def __post_init__(self) -> None:
        """Raises UserError, with all problems at once, where parts or sizes do not fit together."""
        problems = []
        for name in ("codec", "prior", "wav2vec2"):
            part = getattr(self, name)
            if part is None:
                continue
            if min(part.width, part.depth, part.num_heads) < 1:
                problems.append(f"{name}.width, depth and num_heads must be at least 1, got {part}")
            elif part.width % part.num_heads or part.width // part.num_heads % 2:
                problems.append(f"{name}.width / num_heads must be an even number, got {part.width} / {part.num_heads}")
        problems += [] if self.ear is None else ear_problems(self.ear)
        if self.codec.code_dim < 1 or self.codec.motion_dim != MOTION_DIM:
            problems.append(f"codec.code_dim must be at least 1 and motion_dim {MOTION_DIM}, got {self.codec}")
        if list(self.codec.scales) != sorted(set(self.codec.scales)) or min(self.codec.scales, default=0) < 1:
            problems.append(f"codec.scales must rise from at least 1, got {self.codec.scales}")
        if self.logmel is not None and (self.logmel.num_mels < 1 or self.logmel.context_frames < 0):
            problems.append(f"logmel.num_mels must be at least 1 and context_frames not negative, got {self.logmel}")
        if self.lora is not None and (self.lora.rank < 1 or not 0 <= self.lora.dropout_rate < 1):
            problems.append(f"lora.rank must be at least 1 and dropout_rate in 0..1, got {self.lora}")
        if self.prior is not None and len(self.codec.scales) < 2:
            problems.append(f"a prior needs at least two codec.scales, got {self.codec.scales}")
        if self.prior is not None and self.prior.audio_condition not in AUDIO_CONDITIONS:
            problems.append(
                f"prior.audio_condition must be one of {', '.join(AUDIO_CONDITIONS)}, got "
                f"{self.prior.audio_condition!r}"
            )
        elif self.prior is not None and self.prior.audio_dim is None and self.prior.audio_condition != "pair":
            problems.append(
                f"prior.audio_condition is {self.prior.audio_condition!r}, but without prior.audio_dim there is no "
                "audio"
            )
        problems += _window_problems(self.prior)
        audio_dim = None if self.prior is None else self.prior.audio_dim
        given = [name for name in ("wav2vec2", "logmel", "ear", "mimi") if getattr(self, name) is not None]
        if len(given) > 1:
            problems.append(f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
        elif self.stage != "ear" and self.audio_encoder is not None and self.audio_encoder.feature_dim != audio_dim:
            problems.append(f"prior.audio_dim must be the encoder's {self.audio_encoder.feature_dim}, got {audio_dim}")
        if problems:
            raise UserError("model: " + "; ".join(problems))

    @property
    def audio_encoder(self) -> EncoderConfig | None:
        """The audio encoder's sizes; None without audio, and where they are not known."""
        return self.wav2vec2 or self.logmel or self.ear or self.mimi

    @property
    def window(self) -> Window:
        """What a model decodes at a time; of a codec, what it codes."""
        frames = self.codec.window_frames
        return Window(frames) if self.prior is None else self.prior.window(frames)

    @property
    def stage(self) -> str:
        """What kind of model this is: "ear", "codec", "prior" or "dialogue"."""
        if self.prior is None:
            return "codec" if self.ear is None else "ear"
        return "prior" if self.prior.audio_dim is None else "dialogue"


def _window_problems(prior: PriorConfig | None) -> list[str]:
    if prior is None:
        return []
    problems = []
    if prior.context_windows < 1:
        problems.append(f"prior.context_windows must be at least 1, got {prior.context_windows}")
    audio = {name: getattr(prior, name) for name in ("past_audio_frames", "lookahead_frames")}
    problems += [f"prior.{name} must not be negative, got {value}" for name, value in audio.items() if value < 0]
    if prior.audio_dim is None and any(audio.values()):
        problems.append(
            f"prior.past_audio_frames and lookahead_frames are {prior.past_audio_frames} and "
            f"{prior.lookahead_frames}, but without prior.audio_dim there is no audio"
        )
    return problems


def ear_problems(ear: EarConfig) -> list[str]:
    """Lists what is wrong with the sizes of an ear."""
    problems = []
    if (
        min(ear.num_mels, ear.width, ear.coarse_bands) < 1
        or min(ear.context_frames, ear.blocks, ear.feature_context) < 0
    ):
        problems.append(
            f"ear.num_mels, width and coarse_bands must be at least 1, its contexts and blocks not negative, got {ear}"
        )
    elif ear.num_mels % ear.coarse_bands:
        problems.append(f"ear.num_mels must be a multiple of coarse_bands {ear.coarse_bands}, got {ear.num_mels}")
    if not ear.channels or not all(0 <= channel < MOTION_DIM for channel in ear.channels):
        problems.append(f"ear.channels must be of the {MOTION_DIM} channels of motion, got {ear.channels}")
    return problems


class UniLS(nnx.Module):
    """`codec`, `prior`, and `audio_encoder` or `ear`; the parts a stage lacks are None."""

    def __init__(self, config: UniLSConfig, *, rngs: nnx.Rngs):
        self.codec = None if config.stage == "ear" else Codec(config.codec, rngs=rngs)
        self.prior = None if config.prior is None else MotionPrior(config.prior, config.codec, rngs=rngs)
        if config.lora is not None and self.prior is not None:
            add_lora(self.prior, LORA_PATTERN, **asdict(config.lora), rngs=rngs)
        if config.wav2vec2 is not None:
            self.audio_encoder = Wav2Vec2(config.wav2vec2, rngs=rngs)
        elif config.mimi is not None:
            self.audio_encoder = Mimi(config.mimi, rngs=rngs)
        else:
            self.audio_encoder = None if config.logmel is None else LogMel(config.logmel)
        # Apart from `audio_encoder`, whose parameters are published ones that no checkpoint holds.
        self.ear = None if config.ear is None else Ear(config.ear, rngs=rngs)

    @property
    def encoder(self) -> Wav2Vec2 | LogMel | Ear | Mimi | None:
        """The audio encoder, whichever kind it is; None without audio."""
        return self.audio_encoder if self.ear is None else self.ear

    def encode_audio(
        self, audio: Float[Array, "B 2 N"], people: int = 2, compute: Compute = FLOAT32
    ) -> Float[Array, "B K A E"]:
        """Encodes the audio that conditions the first `people` of every pair, own track first.

        Each track is encoded once: both tracks with audio condition "pair"; those people's own ones
        with "own"; the one sum of both with "mixed".
        """
        if self.prior.audio_condition == "mixed":
            audio = audio[:, :1] + audio[:, 1:]
        elif self.prior.audio_condition == "own":
            audio = audio[:, :people]
        features = self.encoder(audio.reshape(-1, audio.shape[-1]), compute)
        return features.reshape(*audio.shape[:2], *features.shape[1:])

    def audio_of_people(self, features: Float[Array, "B K A E"], people: int = 2) -> tuple[Float[Array, "R A E"], ...]:
        """Returns the part of `encode_audio`'s features that conditions each person.

        There is one array for each cross-attention. Rows are R = B * people, the people of a pair
        next to each other.
        """
        if self.prior.audio_condition == "mixed":
            heard = (jnp.repeat(features, people, axis=1),)
        elif self.prior.audio_condition == "own":
            heard = (features[:, :people],)
        else:
            heard = (features[:, :people], features[:, ::-1][:, :people])
        return tuple(x.reshape(-1, *x.shape[2:]) for x in heard)
