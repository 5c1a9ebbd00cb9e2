"""Features of a store's audio: what a frozen encoder makes of it, once, for many runs."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from data_pipelines.store.features import FeatureFacts, Features, FeatureStore, store_digest, write_features
from data_pipelines.store.reader import Store
from data_pipelines.windows import WindowSource, padded_audio, training_index
from unils_jax.errors import UserError
from unils_jax.models.ear import Ear, EarConfig
from unils_jax.models.logmel import HOP_SAMPLES, LogMel, LogMelConfig
from unils_jax.models.mimi import Mimi, MimiConfig
from unils_jax.models.unils import UniLSConfig
from unils_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from unils_jax.motion import SAMPLE_RATE, SAMPLES_PER_FRAME
from unils_jax.nn.params import Params, abstract, merge
from unils_jax.systems.unils.hearing import feature_shape
from unils_jax.training.config import RunConfig

log = logging.getLogger(__name__)

BATCH = 4  # tracks that are encoded at a time
# Of whole records: what is encoded at a time, and what the encoder hears on either side of it.
PIECE_SAMPLES, CONTEXT_SAMPLES = 20 * SAMPLE_RATE, 2 * SAMPLE_RATE
BUILDERS = {Wav2Vec2Config: Wav2Vec2, MimiConfig: Mimi, EarConfig: Ear}
SPLITS = ("train", "val")


def encoder_digest(config: UniLSConfig, params: Params) -> str:
    """Returns a digest of the audio encoder's kind, sizes and weights."""
    part = config.audio_encoder
    digest = hashlib.sha256(json.dumps([type(part).__name__, asdict(part)], sort_keys=True).encode())
    for path in sorted(params):
        array = np.ascontiguousarray(params[path], np.float32)
        digest.update(f"{path} {array.shape}".encode())
        digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()[:32]


def facts_of(config: RunConfig, params: Params, mode: str) -> FeatureFacts:
    """Returns what a run needs its features to be made of."""
    model = config.model
    _, frames, dim = feature_shape(model)
    return FeatureFacts(
        mode=mode,
        store=store_digest(Store(config.data.store)),
        encoder=encoder_digest(model, params),
        tracks="mixed" if model.prior.audio_condition == "mixed" else "each",
        frames_per_window=frames,
        dim=dim,
        hop_samples=_hop_samples(model),
        window=model.window,
    )


def _hop_samples(config: UniLSConfig) -> int:
    part = config.audio_encoder
    if isinstance(part, Wav2Vec2Config):
        return int(np.prod(part.conv_strides))
    return SAMPLES_PER_FRAME if isinstance(part, MimiConfig) else HOP_SAMPLES


def use_features(config: RunConfig, params: Params) -> None:
    """Checks the features that a run names, and says what does not act with them.

    Raises UserError where they are of another store, encoder or window.
    """
    features = FeatureStore(config.audio_features)
    problems = features.facts.problems(facts_of(config, params, features.facts.mode))
    if problems:
        raise UserError(f"audio features {config.audio_features} are {'; '.join(problems)}; encode the store again")
    kept = f"{features.dtype}, relative error {features.error['relative_rms']:.2g}"
    if features.facts.mode == "window":
        costs = ["windows begin at fixed starts, without jitter"]
    else:
        costs = ["frames know audio beyond their window's ends"]
        encoder = config.model.audio_encoder
        if isinstance(encoder, Wav2Vec2Config):
            costs.append("audio is normalised over whole records, not windows")
        elif getattr(encoder, "normalize_level", False):
            costs.append(f"speech has one level in {PIECE_SAMPLES // SAMPLE_RATE} s, not in a window")
    if config.noise.level_db[0] != config.noise.level_db[1]:
        costs.append("noise.level_db does not act")
    log.warning("audio features of %s (%s, %s): %s", config.audio_features, features.facts.mode, kept, "; ".join(costs))


def encode_store(
    config: RunConfig,
    params: Params,
    out: str | os.PathLike,
    *,
    mode: str,
    dtype: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Encodes the audio of the config's store as its runs hear it; returns the manifest.

    Args:
        config: A dialogue's.
        params: The encoder's parameters by their paths in the model.
        out: The folder to write; what it holds of the same features is kept.
        mode: "window" encodes every training window at its fixed start, "record" whole records.
        dtype: How numbers are kept: "bf16", "int8" or "float32".
        progress: Takes the number of records that are done, and of all.

    Raises:
        UserError: Where the folder holds other features, and where a record cannot be read.
    """
    facts, store = facts_of(config, params, mode), Store(config.data.store)
    if mode == "record" and SAMPLES_PER_FRAME % facts.hop_samples:
        raise UserError(
            f"mode record needs whole frames of features in a frame of {SAMPLES_PER_FRAME} samples, the encoder's are "
            f"{facts.hop_samples} apart; use --mode window"
        )
    run = _encoder(config.model, params, whole=mode == "record")
    normalises = isinstance(config.model.audio_encoder, Wav2Vec2Config)
    of_record = _of_windows if mode == "window" else partial(_of_whole, normalises=normalises)

    def encode(split: str, record: int) -> Features:
        source = store.source(split, record)
        if not source.has_audio or source.num_people != 2:
            return np.zeros((0, 0, facts.dim), np.float32)
        return of_record(source, facts, run)

    counts = {split: len(store.index(split)) for split in SPLITS}
    return write_features(out, facts, counts, encode, dtype=dtype, progress=progress)


def _encoder(config: UniLSConfig, params: Params, *, whole: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that encodes tracks `[n, N]`; whole audio was normalised before."""
    part = config.audio_encoder

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return LogMel(part) if isinstance(part, LogMelConfig) else BUILDERS[type(part)](part, rngs=rngs)

    graphdef, shapes = abstract(build)
    own = {path.split("/", 1)[1]: jnp.asarray(value) for path, value in params.items()}
    own = {path: own[path] for path in shapes}

    @jax.jit
    def run(own: Mapping[str, Array], audio: Float[Array, "B N"]) -> Float[Array, "B A E"]:
        encoder = merge(graphdef, dict(own))
        if whole and isinstance(encoder, Wav2Vec2):  # its call would normalise each piece
            return encoder.encode(encoder.extract(audio))
        return encoder(audio)

    def encode(audio: np.ndarray) -> np.ndarray:
        found = []
        for first in range(0, len(audio), BATCH):
            rows = audio[first : first + BATCH]
            # Filled up, so that one program serves all.
            filled = np.pad(rows, ((0, BATCH - len(rows)), (0, 0)))
            found.append(np.asarray(run(own, jnp.asarray(filled)))[: len(rows)])
        return np.concatenate(found)

    return encode


def _tracks(audio: np.ndarray, facts: FeatureFacts) -> np.ndarray:
    return audio.sum(0, keepdims=True) if facts.tracks == "mixed" else audio


def _of_windows(source: WindowSource, facts: FeatureFacts, run: Callable[[np.ndarray], np.ndarray]) -> Features:
    window = facts.window
    items = training_index([source.num_frames], window.frames, window.context_frames)[:, 1]
    if not len(items):
        return np.zeros((0, 0, facts.dim), np.float32)
    starts = np.minimum(items, source.num_frames - window.frames)
    windows = np.stack([_tracks(padded_audio(source, *window.audio_span(int(start))), facts) for start in starts])
    features = run(windows.reshape(-1, windows.shape[-1])).reshape(*windows.shape[:2], -1, facts.dim)
    return np.ascontiguousarray(features.swapaxes(0, 1)).reshape(windows.shape[1], -1, facts.dim)


def _of_whole(
    source: WindowSource, facts: FeatureFacts, run: Callable[[np.ndarray], np.ndarray], *, normalises: bool
) -> Features:
    num_samples = source.num_frames * SAMPLES_PER_FRAME
    audio = _tracks(source.audio(0, num_samples), facts)
    if normalises:  # as `normalize_audio` does a window
        audio = (audio - audio.mean(-1, keepdims=True)) / (audio.std(-1, ddof=1, keepdims=True) + np.float32(1e-6))
    count = -(-num_samples // PIECE_SAMPLES)
    padded = np.pad(audio, ((0, 0), (CONTEXT_SAMPLES, count * PIECE_SAMPLES - num_samples + CONTEXT_SAMPLES)))
    first, size = CONTEXT_SAMPLES // facts.hop_samples, PIECE_SAMPLES // facts.hop_samples
    pieces = [
        run(padded[:, k * PIECE_SAMPLES : (k + 1) * PIECE_SAMPLES + 2 * CONTEXT_SAMPLES])[:, first : first + size]
        for k in range(count)
    ]
    return np.concatenate(pieces, axis=1)[:, : num_samples // facts.hop_samples]
