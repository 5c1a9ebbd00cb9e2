"""The synthetic conversation: plausible statistics, known truth, made from (seed, index) alone.

It is the demo's data, the tests' data, and the bench for the paper's claim: a talker's lips follow
the own voice tightly, a listener's face follows the other's voice loosely or not at all. NumPy and
SciPy, far faster than real time. Expression channels are in the stand-in basis
(`motion.STANDIN_SHAPES` names the leading ones), not FLAME's.

The unpaired set, for codec and prior, is of single persons in other situations and without audio
(`scenes`).
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_pipelines.record import Record
from data_pipelines.store.reader import MANIFEST, read_manifest, write_store
from data_pipelines.synthetic import behaviour, scenes
from data_pipelines.synthetic.behaviour import Habits
from data_pipelines.synthetic.conversation import Phrase, SynthConfig, Turn, plan_conversation, speech_mask
from data_pipelines.synthetic.faces import GRID_HZ, compose, tracked
from data_pipelines.synthetic.voice import (
    Syllable,
    Voice,
    articulation,
    draw_syllables,
    draw_voice,
    mix,
    synthesize,
)
from unils_jax.errors import UserError
from unils_jax.motion import FPS

log = logging.getLogger(__name__)

# Raised whenever the same settings would give other data.
SYNTH_VERSION = 2

# One independent stream of random numbers per purpose: a change to one leaves the others alone.
_PLAN, _PERSON, _SYLLABLES, _VOICE, _ROOM, _OWN, _ANSWERS, _MOTION, _TRACKING, _SCENE = range(10)
# The third part of a stream's seed where it belongs to no person of a conversation.
_BOTH, _ANYWHERE, _ALONE = 2, 3, 4

# The columns of each list of events; times in seconds from the start, angles in radians.
EVENT_COLUMNS: dict[str, tuple[str, ...]] = {
    "turns": Turn._fields,
    "phrases": Phrase._fields,
    "syllables": Syllable._fields,
    "backchannels": ("start_s", "end_s"),
    "accents": ("time_s", "loudness"),
    "blinks": behaviour.Pulse._fields,
    "smiles": behaviour.Pulse._fields,
    "gazes": behaviour.Gaze._fields,
    "accent_brows": behaviour.Pulse._fields,
    "beats": behaviour.Nod._fields,
    "answer_nods": behaviour.Nod._fields,
    "answer_smiles": behaviour.Pulse._fields,
    "answer_brows": behaviour.Pulse._fields,
    "laughs": behaviour.Laugh._fields,
    "dropouts": behaviour.Dropout._fields,
}


class Person(NamedTuple):
    """A person who may appear in several records, with the same voice and habits in all of them."""

    identity: str
    voice: Voice
    habits: Habits


def _rng(seed: int, index: int, person: int, purpose: int, take: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, index, person, purpose] + [take] * (take > 0))


def make_person(config: SynthConfig, seed: int, number: int) -> Person:
    """Draws person `number` of the conversations `seed`, the same in every conversation."""
    return _draw_person(config, f"synthetic_{seed}_person_{number:05d}", _rng(seed, number, _ANYWHERE, _PERSON))


def _draw_person(config: SynthConfig, identity: str, rng: np.random.Generator) -> Person:
    return Person(identity, draw_voice(config, rng), behaviour.draw_habits(config, rng))


def make_conversation(
    config: SynthConfig, seed: int, index: int, people: tuple[int, int] | None = None, take: int = 0
) -> Record:
    """Makes conversation `index` of the set `seed` between two people, given by their numbers.

    Another `take` has the same words in the same voices, bit for bit, by the same people, but all
    else that their faces do, by themselves or as an answer, is drawn anew. Motion is float16, audio
    int16; mask and events are there. It is a pure function of its arguments, bit for bit. Raises
    UserError for a negative number, and for a person who would talk to themselves.

    Args:
        config: The rates of the set.
        seed: The number of the set.
        index: The number of the conversation.
        people: The two people's numbers; None: 2 * index and 2 * index + 1.
        take: The number of the take, 0 for the first.
    """
    numbers = (2 * index, 2 * index + 1) if people is None else people
    _check_numbers(seed=seed, index=index, person=min(numbers), take=take)
    if numbers[0] == numbers[1]:
        raise UserError(f"a conversation is between two people, got person {numbers[0]} twice")
    plan = plan_conversation(config, _rng(seed, index, _BOTH, _PLAN))
    persons = [make_person(config, seed, number) for number in numbers]
    syllables, sounds, owns = [], [], []
    for p, (_, voice, habits) in enumerate(persons):
        phrases = plan.phrases[p]
        syllables.append(draw_syllables(config, voice, phrases, _rng(seed, index, p, _SYLLABLES)))
        sounds.append(synthesize(config, voice, phrases, syllables[p], _rng(seed, index, p, _VOICE)))
        owns.append(behaviour.draw_own(config, habits, phrases, syllables[p], _rng(seed, index, p, _OWN, take)))
    motion, audio, events = [], [], []
    for p, person in enumerate(persons):
        rng = _rng(seed, index, p, _ANSWERS, take)
        answers = behaviour.draw_answers(config, person.habits, plan, p, owns[1 - p], rng)
        lips = articulation(config, person.voice, syllables[p], _num_points(config), GRID_HZ)
        rng = _rng(seed, index, p, _MOTION, take)
        moved = compose(person.habits, lips, behaviour.together(owns[p], answers), rng)
        rng = _rng(seed, index, p, _TRACKING, take)
        dropouts = behaviour.draw_dropouts(config, rng)
        motion.append(tracked(config, moved, dropouts, rng))
        audio.append(mix(config, sounds[p], sounds[1 - p], _rng(seed, index, p, _ROOM)))
        events.append(_events(person, plan.phrases[p], syllables[p], owns[p], answers, dropouts))
    return Record(
        name=f"synthetic_{seed}_{index:05d}",
        motion=np.stack(motion),
        audio=np.stack(audio),
        speech_mask=np.stack([speech_mask(config, phrases) for phrases in plan.phrases]),
        expression_basis="standin",
        events=_described(turns=_listed(plan.turns), people=events),
        identities=tuple(person.identity for person in persons),
        source="synthetic",
    )


def make_scene(config: SynthConfig, seed: int, index: int) -> Record:
    """Makes record `index` of the unpaired set `seed`: one person alone, without audio.

    The `SCENES` come in turn. Motion `[1, T, 108]` is float16; events are there. It is a pure
    function of its arguments, bit for bit. Raises UserError for a negative seed or index.
    """
    _check_numbers(seed=seed, index=index)
    name = list(scenes.SCENES)[index % len(scenes.SCENES)]
    scene, rng = scenes.SCENES[name], _rng(seed, index, _ALONE, _SCENE)
    config = scenes.scene_config(config, scene)
    person = _draw_person(config, f"synthetic_{seed}_alone_{index:05d}", _rng(seed, index, _ALONE, _PERSON))
    laughs = scenes.draw_laughs(config, scene, rng)
    phrases = scenes.draw_phrases(config, scene, laughs, rng)
    syllables = draw_syllables(config, person.voice, phrases, rng)
    own = behaviour.draw_own(config, person.habits, phrases, syllables, rng)
    if scene.reads:
        own = own._replace(gazes=scenes.draw_reading(config, rng))
    sway, drift = (gain * rng.lognormal(0, 0.2) for gain in (scene.sway, scene.drift))
    answers = behaviour.Answers([], [], [])
    movements = behaviour.together(own, answers)._replace(laughs=laughs, sway=sway, drift=drift)
    lips = articulation(config, person.voice, syllables, _num_points(config), GRID_HZ)
    moved = compose(person.habits, lips, movements, _rng(seed, index, _ALONE, _MOTION))
    rng = _rng(seed, index, _ALONE, _TRACKING)
    dropouts = behaviour.draw_dropouts(config, rng)
    events = _events(person, phrases, syllables, own, answers, dropouts)
    return Record(
        name=f"synthetic_{seed}_{name}_{index:05d}",
        motion=tracked(config, moved, dropouts, rng)[None],
        audio=None,
        speech_mask=None,
        expression_basis="standin",
        events=_described(scene=name, people=[{**events, "laughs": _listed(laughs)}]),
        identities=(person.identity,),
        source="synthetic",
    )


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"{name} must not be negative, got {value}")


def _num_points(config: SynthConfig) -> int:
    return config.num_frames * GRID_HZ // round(FPS)


def _events(
    person: Person,
    phrases: list[Phrase],
    syllables: list[list[Syllable]],
    own: behaviour.Own,
    answers: behaviour.Answers,
    dropouts: list[behaviour.Dropout],
) -> dict[str, Any]:
    """Returns all events of a person as JSON-able values; lists of events have `EVENT_COLUMNS`."""
    spoken = [syllable for phrase in syllables for syllable in phrase]
    return {
        "blinks_per_min": round(person.habits.blinks_per_min, 3),
        "pitch_hz": round(person.voice.pitch_hz, 3),
        "lead_s": round(person.voice.lead_s, 4),
        "phrases": _listed(phrases),
        "syllables": _listed(spoken),
        "backchannels": _listed(phrase[:2] for phrase in phrases if phrase.backchannel),
        "accents": _listed(((s.vowel_s + s.end_s) / 2, s.loudness) for s in spoken if s.accent),
        **{name: _listed(values) for name, values in own._asdict().items()},
        **{f"answer_{name}": _listed(values) for name, values in answers._asdict().items()},
        "dropouts": _listed(dropouts),
    }


def _described(**events: str | list) -> dict[str, Any]:
    """Returns the events that occur with the names of their columns."""
    present = {name for person in events["people"] for name in person} | events.keys()
    columns = {name: list(fields) for name, fields in EVENT_COLUMNS.items() if name in present}
    return {"columns": columns, **events}


def _listed(events: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Returns events as JSON-able lists, times and sizes rounded."""
    return [[round(v, 4) if isinstance(v, float) else v for v in event] for event in events]


def splits(num_records: int) -> dict[str, list[int]]:
    """Returns the records of each split: about 80/10/10, by whole record, at least one each.

    Raises UserError for fewer than three records.
    """
    if num_records < 3:
        raise UserError(f"a set needs at least 3 records, one for each split, got {num_records}")
    held_out = max(1, num_records // 10)
    train = num_records - 2 * held_out
    numbers = list(range(num_records))
    return {"train": numbers[:train], "val": numbers[train : train + held_out], "test": numbers[train + held_out :]}


def who_meets(numbers: list[int], meetings: int) -> list[tuple[int, int]]:
    """Returns the two people of each conversation `numbers` of one split; no split shares a person.

    Each person appears in about `meetings` of them, where there are enough, each time with another
    person.
    """
    count, first = len(numbers), 2 * numbers[0]
    # Few people would soon have met all others: a partner is 1, 3, 5, ... places away, and that
    # must stay below `size`.
    size = max(-(-2 * count // meetings), min(2 * meetings, 2 * count))
    return [(first + 2 * j % size, first + (2 * j + 1 + 2 * (2 * j // size)) % size) for j in range(count)]


def make_records(config: SynthConfig, seed: int, num_conversations: int) -> Iterator[tuple[str, Record]]:
    """Yields all conversations of a set with their split, as `write_store` takes them.

    No person is in two splits.
    """
    for split, numbers in splits(num_conversations).items():
        for index, people in zip(numbers, who_meets(numbers, config.meetings_per_person), strict=True):
            yield split, make_conversation(config, seed, index, people)


def make_scenes(config: SynthConfig, seed: int, num_records: int) -> Iterator[tuple[str, Record]]:
    """Yields all records of an unpaired set with their split, each of another person."""
    for split, numbers in splits(num_records).items():
        for index in numbers:
            yield split, make_scene(config, seed, index)


def settings(config: SynthConfig, seed: int, num_records: int, *, unpaired: bool = False) -> dict[str, Any]:
    """Returns what a synthetic store was made with; two stores with equal settings are equal."""
    return {
        "source": "synthetic",
        "version": SYNTH_VERSION,
        "seed": seed,
        "scenes" if unpaired else "conversations": num_records,
        "config": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
    }


def write(
    out: str | os.PathLike, num_records: int, *, minutes: float = 2.0, seed: int = 0, unpaired: bool = False
) -> str:
    """Writes a synthetic store, unless the same one is there already.

    Returns one line that describes it. With `unpaired` its records are single people without audio,
    otherwise conversations. Raises UserError for bad settings and for a folder that holds anything
    else.
    """
    config = SynthConfig(minutes=minutes)
    out, what = Path(out), "single persons" if unpaired else "conversations"
    wanted = settings(config, seed, num_records, unpaired=unpaired)
    described = f"{num_records} {what}, {num_records * config.duration_s / 3600:.2f} hours, seed {seed}"
    if (out / MANIFEST).exists():
        if read_manifest(out)["settings"] != wanted:
            raise UserError(f"{out} holds a store made with other settings; choose another folder or remove it")
        return f"{out}: already there ({described})"
    started = time.monotonic()
    records = (make_scenes if unpaired else make_records)(config, seed, num_records)
    write_store(out, _counted(records, num_records, what), settings=wanted)
    return f"{out}: {described}, made in {time.monotonic() - started:.1f} s"


def _counted(records: Iterable[tuple[str, Record]], total: int, what: str) -> Iterator[tuple[str, Record]]:
    """Passes records on and shows the progress: a bar on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(records, total=total, unit=" " + what, file=sys.stderr)
        return
    for done, item in enumerate(records, start=1):
        yield item
        if done % max(1, total // 10) == 0 or done == total:
            log.info("made %d of %d %s", done, total, what)
