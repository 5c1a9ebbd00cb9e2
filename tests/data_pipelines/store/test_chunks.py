"""The tf.Example messages of a store: bytes that stay, that tensorflow-datasets reads, and damage that is named."""

import functools
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.record import Record
from data_pipelines.store.chunks import audio_of, encode, events_of, motion_chunks, motion_of
from data_pipelines.store.reader import Store, write_store
from unils_jax.errors import UserError

values = st.binary(max_size=400) | st.integers(-(1 << 63), (1 << 63) - 1)
# tensorflow-datasets takes "/" for a nested feature.
names = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=20)
messages = st.dictionaries(names, values, max_size=6)


def exact(name: str, people: int = 2) -> Record:
    """A record whose statistics are exact in float64, so that every machine writes the same bytes."""
    motion = np.indices((people, 256, 108)).sum(axis=0) % 4
    audio = np.indices((people, 256 * 640)).sum(axis=0) % 3000
    mask = np.indices((people, 256)).sum(axis=0) % 2 == 0
    facts = {"events": {"nods": [1.5]}, "identities": ("änn", "bob")[:people], "source": "lab/42"}
    return Record(name, motion.astype(np.float16), audio.astype(np.int16), mask, "standin", **facts)


def test_a_store_keeps_its_bytes(tmp_path):
    """Digests of a store of the first release: what is written again is equal to what was written then."""
    records = [("train", exact("a")), ("train", exact("b", people=1)), ("test", exact("c"))]
    write_store(tmp_path / "store", records, settings={"seed": 3}, source="lab")
    files = {str(path.relative_to(tmp_path / "store")): path for path in (tmp_path / "store").rglob("*.*")}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in files.items()} == DIGESTS
    assert Store(tmp_path / "store").read("train", 0).events == {"nods": [1.5]}


DIGESTS = {
    "audio/dataset_info.json": "7f5398399dec",
    "audio/features.json": "3560d431244b",
    "audio/test.array_record-00000": "2369ebb5d78b",
    "audio/train.array_record-00000": "d7d8780c61e8",
    "dataset_info.json": "e413e39bde2d",
    "features.json": "372999932179",
    "index/test-00000.npz": "14a266368abb",
    "index/test.npz": "369bd7763784",
    "index/train-00000.npz": "f278dca41087",
    "index/train.npz": "ab9b73b60039",
    "manifest.json": "5d7bfe58a62d",
    "test.array_record-00000": "6736d8d3cc64",
    "train.array_record-00000": "0253f8a8cc40",
}


def test_a_message_is_these_bytes_in_the_order_given():
    text = b"\n\x0b\n\x01b\x12\x06\n\x04\n\x02xy"
    number = b"\n\x0b\n\x01a\x12\x06\x1a\x04\n\x02\xac\x02"
    assert encode({"b": b"xy", "a": 300}) == b"\n\x1a" + text + number
    assert encode({"a": 300, "b": b"xy"}) == b"\n\x1a" + number + text


@pytest.fixture(scope="module")
def tfds():
    """tensorflow-datasets' own parser of (integers, byte strings), which works without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_parser

    @functools.cache
    def both(kinds: tuple[tuple[str, bool], ...]):
        scalar = {
            True: tfds.features.Scalar(np.int64),
            False: tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
        }
        features = tfds.features.FeaturesDict({name: scalar[is_integer] for name, is_integer in kinds})
        return features, example_parser.ExampleParserNp(features.get_serialized_info())

    return lambda features: both(tuple((name, isinstance(value, int)) for name, value in features.items()))


@settings(max_examples=30, deadline=None)
@given(messages.filter(bool))
def test_tensorflow_datasets_reads_what_we_write(tfds, features):
    connector, parser = tfds(features)
    read = connector.decode_example_np(parser.parse_example(encode(features)))
    assert set(read) == set(features)
    for name, value in features.items():
        np.testing.assert_array_equal(read[name], value if isinstance(value, int) else np.frombuffer(value, np.uint8))


def test_features_in_any_order_are_read():
    record = exact("a")
    first = next(motion_chunks(record))
    shuffled = tf_example_pb2.Example.FromString(first).SerializeToString(deterministic=True)
    assert shuffled != first
    for chunk in (first, shuffled):
        motion, mask = motion_of(chunk, "float16")
        np.testing.assert_array_equal(motion, record.motion[0, :125])
        np.testing.assert_array_equal(mask, record.speech_mask[0, :125])
        assert events_of(chunk) == record.events


@given(st.binary(max_size=300).map(lambda b: b[: len(b) // 2 * 2]), st.booleans())
def test_samples_are_a_view_where_they_come_first_and_the_same_elsewhere(samples, first):
    features = {"audio": samples, "record": b"a"}
    chunk = encode(features if first else dict(reversed(features.items())))
    found = audio_of(chunk, "int16")
    assert found.tobytes() == samples
    assert not first or found.base.obj is chunk


READERS = (lambda m: motion_of(m, "float16"), lambda m: audio_of(m, "int16"))


@given(st.binary(max_size=60))
def test_foreign_bytes_are_a_named_error(message):
    for read in READERS:
        with pytest.raises(UserError, match="a chunk (that is not a tf.Example message|without a .* tensor)"):
            read(message)


@given(messages, st.data())
def test_a_message_that_was_cut_or_changed_never_crashes(features, data):
    whole = encode(features | {"motion": bytes(216), "speech_mask": b"", "audio": bytes(8), "events": b"{}"})
    message = bytearray(whole)
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(message), whole[:at]):
        for read in READERS:
            try:
                read(broken)
            except UserError as error:
                assert "a chunk" in str(error)
        try:
            events_of(broken)
        except ValueError:
            pass


def test_other_kinds_of_features_are_refused():
    floats = tf_example_pb2.Example()
    floats.features.feature["motion"].float_list.value.append(0.0)
    two = tf_example_pb2.Example.FromString(encode({"motion": bytes(216)}))
    two.features.feature["motion"].bytes_list.value.append(bytes(216))
    for message in (
        floats.SerializeToString(),
        two.SerializeToString(),
        encode({"motion": 3}),
        encode({"motion": b"xyz"}),
    ):
        with pytest.raises(UserError, match="a chunk without a float16 tensor 'motion'"):
            motion_of(message, "float16")
    with pytest.raises(UserError, match="a chunk whose motion holds 2 numbers"):
        motion_of(encode({"motion": b"wxyz"}), "float16")
