"""Chunks: the tf.Example messages of at most 125 frames of one person that shards are made of.

The chunks of a record follow each other, all people of the first 125 frames before those of the
next, so that the frames that a window of a dialogue needs are neighbours on the disk.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from data_pipelines.record import Record
from unils_jax.errors import UserError, one_line
from unils_jax.motion import MOTION_DIM, SAMPLES_PER_FRAME

CHUNK_FRAMES = 125
CHUNK_SAMPLES = CHUNK_FRAMES * SAMPLES_PER_FRAME


def num_chunks(frames: int) -> int:
    """Returns how many chunks each person of a record of `frames` frames has."""
    return -(-frames // CHUNK_FRAMES)


def encode(features: Mapping[str, bytes | int]) -> bytes:
    """Serialises a tf.Example that keeps the order given: equal input gives equal bytes."""
    # Protobuf orders a map by its hashes or by its keys, and no setting keeps another order.
    # Messages of one entry each, joined, are by its rules the message of all entries.
    entries = [tf_feature_pb2.Features(feature={n: _feature(v)}).SerializeToString() for n, v in features.items()]
    # Example.features and BytesList.value are both field 1 with a length: their bytes are the same.
    return tf_feature_pb2.BytesList(value=[b"".join(entries)]).SerializeToString()


def _feature(value: bytes | int) -> tf_feature_pb2.Feature:
    if isinstance(value, int):
        return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[value]))
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))


def motion_chunks(record: Record) -> Iterator[bytes]:
    """Yields the motion of a record chunk by chunk; the first chunk holds the record's events."""
    for k in range(num_chunks(record.num_frames)):
        span = slice(k * CHUNK_FRAMES, (k + 1) * CHUNK_FRAMES)
        for person in range(record.num_people):
            observed = np.ones(MOTION_DIM, np.uint8) if record.observed is None else record.observed[person]
            mask = np.zeros(0, np.uint8) if record.speech_mask is None else record.speech_mask[person, span]
            events = json.dumps(record.events) if record.events and k == person == 0 else ""
            yield encode(
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


def audio_chunks(record: Record) -> Iterator[bytes]:
    """Yields the audio of a record, cut as its motion is; the last chunk holds all samples left."""
    count = num_chunks(record.num_frames)
    for k in range(count):
        end = record.audio.shape[1] if k == count - 1 else (k + 1) * CHUNK_SAMPLES
        for person in range(record.num_people):
            yield encode(
                {
                    "audio": record.audio[person, k * CHUNK_SAMPLES : end].tobytes(),
                    "record": record.name.encode(),
                    "person": person,
                    "start_frame": k * CHUNK_FRAMES,
                }
            )


def motion_of(chunk: bytes, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns motion `[t, 108]` and speech mask `[t]` bool (None without) of a chunk, read-only.

    Raises UserError where the chunk is damaged.
    """
    features = _features(chunk)
    motion = _array(features, "motion", dtype)
    if len(motion) % MOTION_DIM:
        raise UserError(f"a chunk whose motion holds {len(motion)} numbers, no multiple of {MOTION_DIM}")
    mask = _array(features, "speech_mask", "uint8")
    return motion.reshape(-1, MOTION_DIM), mask.view(bool) if len(mask) else None


def audio_of(chunk: bytes, dtype: str) -> np.ndarray:
    """Returns the samples of a chunk, read-only. Raises UserError where the chunk is damaged."""
    # Protobuf copies a value twice: 80 us for five seconds of audio, of which a view takes 2.
    found = _audio_view(chunk)
    if found is None or len(found) % np.dtype(dtype).itemsize:
        return _array(_features(chunk), "audio", dtype)
    return np.frombuffer(found, dtype)


def _audio_view(chunk: bytes) -> memoryview | None:
    """Returns the bytes of `audio` where it comes first, as `audio_chunks` writes it, else None."""
    at, end = 0, len(chunk)
    # Message, entry, the entry's key and its feature, the list of values, the value.
    for depth, head in enumerate((b"\n", b"\n", b"\n\x05audio\x12", b"\n", b"\n")):
        found = _varint(chunk, at + len(head)) if chunk.startswith(head, at) else None
        if found is None:
            return None
        size, at = found
        # Each part ends where the part around it does, except the entry, which others follow.
        if depth == 1 and at + size <= end:
            end = at + size
        if at + size != end:
            return None
    return memoryview(chunk)[at:end]


def _varint(chunk: bytes, at: int) -> tuple[int, int] | None:
    """Returns the length that is written at `at` and where it ends; None where there is none."""
    value = 0
    for i, byte in enumerate(chunk[at : at + 5]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    return None


def events_of(chunk: bytes) -> dict[str, Any]:
    """Returns the events of the record whose first chunk this is; {} without.

    Raises UserError where they are no JSON object.
    """
    values = _features(chunk)["events"].bytes_list.value
    try:
        events = json.loads(values[0]) if values and values[0] else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"a chunk whose events are no JSON ({one_line(error, 80)})") from None
    if not isinstance(events, dict):
        raise UserError(f"a chunk whose events are a {type(events).__name__}, no object")
    return events


def _features(chunk: bytes) -> Mapping[str, tf_feature_pb2.Feature]:
    # The message alone: tensorflow-datasets' `deserialize_example_np` takes fifty times as long.
    try:
        return tf_example_pb2.Example.FromString(chunk).features.feature
    except DecodeError:
        raise UserError("a chunk that is not a tf.Example message") from None


def _array(features: Mapping[str, tf_feature_pb2.Feature], name: str, dtype: str) -> np.ndarray:
    values = features[name].bytes_list.value
    value = values[0] if len(values) == 1 else None  # every look is a copy
    if value is None or len(value) % np.dtype(dtype).itemsize:
        raise UserError(f"a chunk without a {dtype} tensor {name!r}")
    return np.frombuffer(value, dtype)
