"""The synthetic conversation: plausible statistics and a known truth, made from (seed, index) alone.

It is the demo's data, the tests' data, and the bench for the paper's claim: a talker's lips follow the own voice
tightly, a listener's face follows the other's voice loosely or nothing at all. NumPy and SciPy, far faster than real
time. Expression channels are in the stand-in basis (`motion.STANDIN_SHAPES` names the leading ones), not FLAME's.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from data_pipelines.behaviour import GRID_HZ, compose, draw_answers, draw_habits, draw_own
from data_pipelines.conversation import SynthConfig, plan_conversation, speech_mask
from data_pipelines.schema import Record
from data_pipelines.voice import articulation, draw_syllables, draw_voice, mix, synthesize
from unils_jax.errors import UserError
from unils_jax.motion import FPS

# Raised whenever the same settings would give other data.
SYNTH_VERSION = 1

# One independent stream of random numbers per purpose, so that a change to one leaves the others as they were.
_PLAN, _PERSON, _SYLLABLES, _VOICE, _ROOM, _OWN, _ANSWERS, _MOTION = range(8)


def _rng(seed: int, index: int, person: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, index, person, purpose])


def make_conversation(config: SynthConfig, seed: int, index: int) -> Record:
    """Conversation `index` of the set `seed`: two people, motion float16, audio int16, mask and events.

    A pure function of its arguments, bit for bit. Raises UserError for a negative seed or index.
    """
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise UserError(f"{name} must not be negative, got {value}")
    plan = plan_conversation(config, _rng(seed, index, 2, _PLAN))
    people = []
    for person in range(2):
        rng = _rng(seed, index, person, _PERSON)
        voice, habits = draw_voice(config, rng), draw_habits(config, rng)
        phrases = plan.phrases[person]
        syllables = draw_syllables(config, voice, phrases, _rng(seed, index, person, _SYLLABLES))
        sound = synthesize(config, voice, phrases, syllables, _rng(seed, index, person, _VOICE))
        own = draw_own(config, habits, phrases, syllables, _rng(seed, index, person, _OWN))
        people.append((voice, habits, syllables, sound, own))
    motion, audio, events = [], [], []
    for person, (voice, habits, syllables, sound, own) in enumerate(people):
        answers = draw_answers(config, habits, plan, person, people[1 - person][4], _rng(seed, index, person, _ANSWERS))
        num_points = config.num_frames * GRID_HZ // round(FPS)
        lips = articulation(config, syllables, num_points, GRID_HZ)
        motion.append(compose(config, habits, lips, own, answers, _rng(seed, index, person, _MOTION)))
        audio.append(mix(config, sound, people[1 - person][3], _rng(seed, index, person, _ROOM)))
        events.append(
            {
                "blinks_per_min": round(habits.blinks_per_min, 3),
                "pitch_hz": round(voice.pitch_hz, 3),
                "phrases": _listed(plan.phrases[person]),
                "syllables": _listed(s for phrase in syllables for s in phrase),
                **{name: _listed(values) for name, values in own._asdict().items()},
                **{f"answer_{name}": _listed(values) for name, values in answers._asdict().items()},
            }
        )
    return Record(
        name=f"synthetic_{seed}_{index:05d}",
        motion=np.stack(motion),
        audio=np.stack(audio),
        speech_mask=np.stack([speech_mask(config, phrases) for phrases in plan.phrases]),
        expression_basis="standin",
        events={"turns": _listed(plan.turns), "people": events},
    )


def _listed(events: Any) -> list[list[Any]]:
    """Events as JSON-able lists, times and sizes rounded."""
    return [[round(v, 4) if isinstance(v, float) else v for v in event] for event in events]


def splits(num_conversations: int) -> dict[str, list[int]]:
    """Conversations of each split: about 80/10/10, by whole conversation, at least one each.

    Raises UserError for fewer than three conversations.
    """
    if num_conversations < 3:
        raise UserError(f"conversations must be at least 3, one for each split, got {num_conversations}")
    held_out = max(1, num_conversations // 10)
    train = num_conversations - 2 * held_out
    numbers = list(range(num_conversations))
    return {"train": numbers[:train], "val": numbers[train : train + held_out], "test": numbers[train + held_out :]}


def make_records(config: SynthConfig, seed: int, num_conversations: int) -> Iterator[tuple[str, Record]]:
    """All conversations of a set with their split, as `store.write_store` takes them."""
    for split, numbers in splits(num_conversations).items():
        for index in numbers:
            yield split, make_conversation(config, seed, index)


def settings(config: SynthConfig, seed: int, num_conversations: int) -> dict[str, Any]:
    """What a synthetic store was made with; two stores with equal settings are equal."""
    return {
        "source": "synthetic",
        "version": SYNTH_VERSION,
        "seed": seed,
        "conversations": num_conversations,
        "config": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
    }
