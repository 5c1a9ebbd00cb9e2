"""Greedy decodes against the goldens: not one bit differs, and so the motion is theirs."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from decode_tools import recorded_chunks

from parity.compare import MODEL, assert_bits_equal, assert_close
from unils_jax.inference.conversations import Sampling, decode, decode_prior


@dataclass(frozen=True)
class Decoded:
    """The first person of a decode: the motion that the user gets, bits and logits of every chunk, [chunk, L, ...]."""

    motion: np.ndarray
    bits: np.ndarray
    logits: np.ndarray


def record(run) -> Decoded:
    """Runs a decode and keeps what its chunks were made of."""
    with recorded_chunks() as calls:
        motion = run()
    return Decoded(motion[:1], *(np.stack([getattr(c.chunk, n)[0, 0] for c in calls]) for n in ("bits", "logits")))


VARIANTS = pytest.mark.parametrize("variant", ["style", "nostyle", "prevonly", "cfg1"])


@pytest.fixture(scope="module")
def dialogue(golden, dialogue_model):
    """variant -> the golden's dialogue decode of the first person, most likely bits."""
    inputs = golden("loragen_decode").inputs
    own, other = inputs["audio_i8"][0].astype(np.float32) / 128
    style, prev = inputs["style_motion_code"][:, 0], inputs["prev_motion_code"]
    clips = {"style": {"style": style}, "nostyle": {}, "prevonly": {"prev": prev}, "cfg1": {"style": style}}

    @cache
    def run(variant: str) -> Decoded:
        sampling = Sampling(tau=0.0, cfg=1.0 if variant == "cfg1" else 1.5)
        return record(lambda: decode(dialogue_model, own, other, **clips[variant], sampling=sampling))

    return run


@VARIANTS
def test_dialogue_decode_gives_equal_bits(golden, dialogue, variant):
    assert_bits_equal(dialogue(variant).bits, golden("loragen_decode").outputs[f"{variant}_bits"])


@VARIANTS
def test_dialogue_decode_hands_matching_logits_to_the_sampler(golden, dialogue, variant):
    assert_close(dialogue(variant).logits, golden("loragen_decode").outputs[f"{variant}_logits"], MODEL)


@VARIANTS
def test_dialogue_decode_gives_matching_motion(golden, dialogue, variant):
    expected = golden("loragen_decode").outputs[f"{variant}_motion"]
    assert_close(dialogue(variant).motion, expected, MODEL)


@pytest.fixture(scope="module")
def prior(golden, prior_model):
    case = golden("freegen")
    settings = case.config["decode"]
    sampling = Sampling(tau=0.0, cfg=float(settings["cfg"]))
    return record(lambda: decode_prior(prior_model, case.inputs["decode_style"], settings["chunks"], sampling=sampling))


def test_prior_decode_gives_equal_bits(golden, prior):
    assert_bits_equal(prior.bits, golden("freegen").outputs["decode_bits"])


def test_prior_decode_hands_matching_logits_to_the_sampler(golden, prior):
    assert_close(prior.logits, golden("freegen").outputs["decode_logits"], MODEL)


def test_prior_decode_gives_matching_motion(golden, prior):
    assert_close(prior.motion, golden("freegen").outputs["decode_motion"], MODEL)
