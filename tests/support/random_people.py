"""People to score, of random motion."""

import numpy as np

from unils_jax.evaluation.metrics import Person


def motion(frames: int, seed: int) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(size=(frames, 108)) * 0.1
    return steps.cumsum(axis=0).astype(np.float32)


def person(seed: int = 0, frames: int = 260, prediction: np.ndarray | None = None) -> Person:
    truth = motion(frames, seed)
    rng = np.random.default_rng(seed)
    return Person(
        prediction=motion(frames, seed + 1000) if prediction is None else prediction,
        truth=truth,
        partner=motion(frames, seed + 2000),
        speaking=np.arange(frames) // 90 % 2 == 0,
        loudness_db=rng.normal(size=frames).astype(np.float32),
        head_offset=0.1 * seed,
    )
