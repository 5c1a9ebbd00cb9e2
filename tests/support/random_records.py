"""Records of random numbers that tell people and frames apart, and batches of them compared."""

from dataclasses import replace

import numpy as np

from data_pipelines.record import Record


def dialogue(name: str, frames: int, seed: int) -> Record:
    rng = np.random.default_rng(seed)
    motion = rng.standard_normal((2, frames, 108)).astype(np.float16)
    # Channels 0 and 1 name the person and the frame.
    motion[:, :, 0] = np.array([[2 * seed], [2 * seed + 1]])
    motion[:, :, 1] = np.arange(frames)
    audio = rng.integers(-3000, 3000, (2, frames * 640)).astype(np.int16)
    return Record(name, motion, audio, rng.random((2, frames)) < 0.5, "standin")


def take(loader, count: int) -> list[dict[str, np.ndarray]]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def assert_same(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def record(name: str, frames: int = 130, people: int = 2, dtype=np.float16, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    motion = (rng.standard_normal((people, frames, 108)) + 0.5).astype(dtype)
    audio = rng.integers(-3000, 3000, (people, frames * 640)).astype(np.int16)
    return Record(name, motion, audio, rng.random((people, frames)) < 0.5, "standin", {"turns": [[0, 1.5, 2.0]]})


def one_person(record: Record, person: int) -> Record:
    """One person of a record as a record without audio: the view of the codec and the prior."""
    names = ("motion", "speech_mask", "identities", "observed")
    alone = {name: None if (v := getattr(record, name)) is None else v[person : person + 1] for name in names}
    return replace(record, audio=None, **alone)
