"""The record: what is accepted, and that every problem is named at once."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.record import Record, validate
from unils_jax.errors import UserError


def dialogue(frames: int = 120) -> Record:
    rng = np.random.default_rng(0)
    motion = rng.standard_normal((2, frames, 108)).astype(np.float16)
    audio = rng.integers(-99, 99, (2, frames * 640)).astype(np.int16)
    return Record("a", motion, audio, np.ones((2, frames), bool), "flame")


def test_dialogues_and_single_people_are_accepted():
    record = dialogue()
    validate(record)
    validate(dataclasses.replace(record, audio=record.audio.astype(np.float32) / 32768))
    validate(dataclasses.replace(record, motion=record.motion[:1].astype(np.float32), audio=None, speech_mask=None))
    assert (record.num_people, record.num_frames) == (2, 120)


def test_audio_may_miss_part_of_a_second_and_no_more():
    record = dialogue()
    validate(dataclasses.replace(record, audio=record.audio[:, :-77]))
    with pytest.raises(UserError, match="more than one second"):
        validate(dataclasses.replace(record, audio=record.audio[:, : 60 * 640]))


def test_every_problem_is_named_in_one_error():
    record = dialogue()
    record.motion[1, 7, 3] = np.nan
    bad = dataclasses.replace(
        record, name="", audio=record.audio[:1], speech_mask=record.speech_mask.astype(np.int8), expression_basis="bs52"
    )
    with pytest.raises(UserError) as error:
        validate(bad)
    message = str(error.value)
    for part in ("name", "'bs52'", "NaN", "first 7", "as many tracks", "speech_mask must be bool"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(2, 108), (3, 9, 108), (2, 0, 108), (2, 9, 112)])
def test_motion_of_another_shape_is_refused(shape):
    with pytest.raises(UserError, match="motion must be"):
        validate(Record("a", np.zeros(shape, np.float16), None, None, "flame"))


@pytest.mark.parametrize("field, value", [("motion", np.float64), ("audio", np.float64)])
def test_other_dtypes_are_refused(field, value):
    record = dialogue()
    with pytest.raises(UserError, match=f"{field} must be"):
        validate(dataclasses.replace(record, **{field: getattr(record, field).astype(value)}))


def test_nan_audio_is_refused():
    audio = np.zeros((2, 120 * 640), np.float32)
    audio[0, 5] = np.inf
    with pytest.raises(UserError, match="audio holds NaN"):
        validate(dataclasses.replace(dialogue(), audio=audio))


def test_missing_channels_are_zero_and_someone_has_some():
    record = dialogue()
    observed = np.ones((2, 108), bool)
    observed[1] = False
    with pytest.raises(UserError, match="motion must be zero where observed is false, channel 0 is not"):
        validate(dataclasses.replace(record, observed=observed))
    heard = dataclasses.replace(record, motion=record.motion * observed[:, None].astype(np.float16), observed=observed)
    validate(heard)
    nobody = dataclasses.replace(record, motion=np.zeros_like(record.motion), observed=np.zeros((2, 108), bool))
    with pytest.raises(UserError, match="every channel of every person as missing"):
        validate(nobody)
    with pytest.raises(UserError, match=r"observed must be bool \[2, 108\], got bool \[1, 108\]"):
        validate(dataclasses.replace(record, observed=np.ones((1, 108), bool)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "a\nb"}, "name must be text without control"),
        ({"source": "\ud800"}, "source must be text"),
        ({"identities": ("ann", "b\x00")}, r"identities\[1\] must be text"),
        ({"identities": ("ann",)}, "identities must name 2 people or nobody, got 1"),
    ],
)
def test_names_that_cannot_be_kept_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(dialogue(), **change))
