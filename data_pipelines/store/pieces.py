"""Pieces: the tf.Example messages of at most 125 frames of one person that shards are made of.

Pieces of a record stand together, all people of the first 125 frames before those of the next, so that the frames
a window of a dialogue needs are neighbours on the disk.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines.record import Record
from data_pipelines.store import tf_example
from unils_jax.errors import UserError
from unils_jax.motion import MOTION_DIM, SAMPLES_PER_FRAME

PIECE_FRAMES = 125
PIECE_SAMPLES = PIECE_FRAMES * SAMPLES_PER_FRAME


def num_pieces(frames: int) -> int:
    """How many pieces each person of a record has."""
    return -(-frames // PIECE_FRAMES)


def motion_pieces(record: Record) -> Iterator[bytes]:
    """The motion of a record piece by piece; its events stand in the first."""
    for k in range(num_pieces(record.num_frames)):
        span = slice(k * PIECE_FRAMES, (k + 1) * PIECE_FRAMES)
        for person in range(record.num_people):
            observed = np.ones(MOTION_DIM, np.uint8) if record.observed is None else record.observed[person]
            mask = np.zeros(0, np.uint8) if record.speech_mask is None else record.speech_mask[person, span]
            events = json.dumps(record.events) if record.events and k == person == 0 else ""
            # What windows need stands first, so that reading can stop there.
            yield tf_example.encode(
                {
                    "motion": record.motion[person, span].tobytes(),
                    "speech_mask": mask.astype(np.uint8).tobytes(),
                    "record": record.name.encode(),
                    "person": person,
                    "start_frame": span.start,
                    "identity": (record.identities[person] if record.identities else "").encode(),
                    "source": record.source.encode(),
                    "events": events.encode(),
                    "observed": observed.astype(np.uint8).tobytes(),
                }
            )


def audio_pieces(record: Record) -> Iterator[bytes]:
    """The audio of a record, cut as its motion is; the last piece holds all that is left, if anything."""
    count = num_pieces(record.num_frames)
    for k in range(count):
        end = record.audio.shape[1] if k == count - 1 else (k + 1) * PIECE_SAMPLES
        for person in range(record.num_people):
            yield tf_example.encode(
                {
                    "audio": record.audio[person, k * PIECE_SAMPLES : end].tobytes(),
                    "record": record.name.encode(),
                    "person": person,
                    "start_frame": k * PIECE_FRAMES,
                }
            )


def motion_of(piece: bytes, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Motion `[t, 108]` and speech mask `[t]` (None without) of a piece, as views of it.

    Raises UserError where it is damaged.
    """
    found = tf_example.find_bytes(piece, (b"motion", b"speech_mask"))
    motion = _array(found, b"motion", dtype).reshape(-1, MOTION_DIM)
    mask = _array(found, b"speech_mask", "uint8")
    return motion, mask.view(bool) if len(mask) else None


def audio_of(piece: bytes, dtype: str) -> np.ndarray:
    """The samples of a piece, as a view of it. Raises UserError where it is damaged."""
    return _array(tf_example.find_bytes(piece, (b"audio",)), b"audio", dtype)


def events_of(piece: bytes) -> dict[str, Any]:
    """The events of the record whose first piece this is."""
    return json.loads(bytes(tf_example.find_bytes(piece, (b"events",)).get(b"events", b"")) or b"{}")


def _array(found: dict[bytes, memoryview], name: bytes, dtype: str) -> np.ndarray:
    value = found.get(name)
    if value is None or len(value) % np.dtype(dtype).itemsize:
        raise UserError(f"a piece without a {dtype} tensor {name.decode()!r}")
    return np.frombuffer(value, dtype)
