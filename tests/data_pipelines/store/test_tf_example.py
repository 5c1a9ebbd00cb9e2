"""The tf.Example messages: what tensorflow-datasets writes we read, what we write it reads, and damage is named."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.store.tf_example import decode, encode, find_bytes
from unils_jax.errors import UserError

values = st.binary(max_size=400) | st.integers(-(1 << 63), (1 << 63) - 1)
# tensorflow-datasets takes "/" for a nested feature.
names = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=20)
messages = st.dictionaries(names, values, max_size=6)


def plain(features: dict) -> dict:
    return {name: value if isinstance(value, int) else bytes(value) for name, value in features.items()}


@pytest.fixture(scope="module")
def tfds():
    """tensorflow-datasets' own serializer and parser of (integers, byte strings); both work without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_parser, example_serializer

    @functools.cache
    def both(kinds: tuple[tuple[str, bool], ...]):
        scalar = {
            True: tfds.features.Scalar(np.int64),
            False: tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
        }
        features = tfds.features.FeaturesDict({name: scalar[is_integer] for name, is_integer in kinds})
        info = features.get_serialized_info()
        return features, example_serializer.ExampleSerializer(info), example_parser.ExampleParserNp(info)

    return lambda features: both(tuple((name, isinstance(value, int)) for name, value in features.items()))


@given(messages)
def test_what_is_encoded_is_decoded(features):
    assert plain(decode(encode(features))) == features
    strings = [name for name, value in features.items() if isinstance(value, bytes)]
    found = find_bytes(encode(features), [name.encode() for name in strings])
    assert {name.decode(): bytes(value) for name, value in found.items()} == {n: features[n] for n in strings}


@settings(max_examples=30, deadline=None)
@given(messages.filter(bool))
def test_tensorflow_datasets_reads_ours_and_we_read_theirs(tfds, features):
    connector, serializer, parser = tfds(features)
    arrays = {n: v if isinstance(v, int) else np.frombuffer(v, np.uint8) for n, v in features.items()}
    theirs = serializer.serialize_example(connector.encode_example(arrays))
    assert plain(decode(theirs)) == features
    strings = {name.encode(): value for name, value in features.items() if isinstance(value, bytes)}
    assert {name: bytes(value) for name, value in find_bytes(theirs, list(strings)).items()} == strings
    read = connector.decode_example_np(parser.parse_example(encode(features)))
    assert set(read) == set(features)
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)


@given(st.binary(max_size=60))
def test_foreign_bytes_are_a_named_error_or_some_features(message):
    for read in (decode, lambda m: find_bytes(m, [b"motion"])):
        try:
            assert isinstance(read(message), dict)
        except UserError as error:
            assert "tf.Example" in str(error)


@given(messages, st.data())
def test_a_message_that_was_cut_or_changed_never_crashes(features, data):
    message = bytearray(encode(features))
    at = data.draw(st.integers(0, len(message) - 1)) if message else 0
    if message:
        message[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(message), encode(features)[:at]):
        for read in (decode, lambda m: find_bytes(m, [name.encode() for name in features])):
            try:
                read(broken)
            except UserError as error:
                assert "tf.Example" in str(error)


def test_reading_stops_where_everything_is_found():
    message = encode({"motion": b"abc", "events": b"x" * 1000})
    cut_behind_motion = message[:22] + b"\xff" * (len(message) - 22)
    assert bytes(find_bytes(cut_behind_motion, [b"motion"])[b"motion"]) == b"abc"


def test_values_are_views_of_the_message():
    message = encode({"a": b"xyz"})
    assert decode(message)["a"].obj is message and find_bytes(message, [b"a"])[b"a"].obj is message


def test_other_kinds_of_features_are_refused():
    floats = b"\n\x0c\n\n\n\x01a\x12\x05\x12\x03\n\x01\x00"
    with pytest.raises(UserError, match="feature of kind 2"):
        decode(floats)
