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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_pipelines.record import Record
from data_pipelines.store.reader import MANIFEST, read_manifest, write_store
from data_pipelines.synthetic import behaviour, events, scenes
from data_pipelines.synthetic.bank.bank import Bank
from data_pipelines.synthetic.bank.talk import TALK_VERSION, Cast, Talk
from data_pipelines.synthetic.behaviour import Habits
from data_pipelines.synthetic.conversation import Phrase, SynthConfig, plan_conversation, speech_mask
from data_pipelines.synthetic.faces import GRID_HZ, compose, tracked
from data_pipelines.synthetic.recording import draw_recording, record_track
from data_pipelines.synthetic.voice import BuiltinTalk, Voice, draw_voice, mix
from unils_jax.errors import UserError, shown
from unils_jax.motion import FPS

log = logging.getLogger(__name__)

# Raised whenever the same settings would give other data.
SYNTH_VERSION = 2

# One independent stream of random numbers per purpose: a change to one leaves the others alone.
_PLAN, _PERSON, _SYLLABLES, _VOICE, _ROOM, _OWN, _ANSWERS, _MOTION, _TRACKING, _SCENE = range(10)
# The third part of a stream's seed where it belongs to no person of a conversation.
_BOTH, _ANYWHERE, _ALONE = 2, 3, 4


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
    config: SynthConfig,
    seed: int,
    index: int,
    people: tuple[int, int] | None = None,
    take: int = 0,
    cast: Cast | None = None,
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
        cast: Speakers of the bank, whose phones are in `Record.speech`; None: the built-in voices.
    """
    numbers = (2 * index, 2 * index + 1) if people is None else people
    _check_numbers(seed=seed, index=index, person=min(numbers), take=take)
    if numbers[0] == numbers[1]:
        raise UserError(f"a conversation is between two people, got person {numbers[0]} twice")
    draw = partial(_rng, seed, index)
    plan = plan_conversation(config, draw(_BOTH, _PLAN))
    persons = [make_person(config, seed, number) for number in numbers]
    talks = [
        _talk(config, person, number, plan.phrases[p], cast, draw(p, _SYLLABLES))
        for p, (person, number) in enumerate(zip(persons, numbers, strict=True))
    ]
    plan = plan._replace(phrases=(talks[0].phrases, talks[1].phrases))
    owns = [
        behaviour.draw_own(config, person.habits, talk.phrases, talk.syllables, draw(p, _OWN, take))
        for p, (person, talk) in enumerate(zip(persons, talks, strict=True))
    ]
    motion, people_events = [], []
    for p, (person, talk) in enumerate(zip(persons, talks, strict=True)):
        answers = behaviour.draw_answers(config, person.habits, plan, p, owns[1 - p], draw(p, _ANSWERS, take))
        lips, movements = talk.lips(config, _num_points(config), GRID_HZ), behaviour.together(owns[p], answers)
        moved = compose(person.habits, lips, movements, draw(p, _MOTION, take))
        rng = draw(p, _TRACKING, take)
        dropouts = behaviour.draw_dropouts(config, rng)
        motion.append(tracked(config, moved, dropouts, rng))
        people_events.append(_person_events(person, talk, owns[p], answers, dropouts))
    sounds = [talk.sound(config, draw(p, _VOICE)) for p, talk in enumerate(talks)]
    audio, said = _recorded(config, talks, sounds, [draw(p, _ROOM) for p in range(2)])
    return Record(
        name=f"synthetic_{seed}_{index:05d}",
        motion=np.stack(motion),
        audio=np.stack(audio),
        speech_mask=np.stack([speech_mask(config, phrases) for phrases in plan.phrases]),
        expression_basis="standin",
        events=events.described(turns=events.listed(plan.turns), people=people_events, **said),
        identities=tuple(person.identity for person in persons),
        source="synthetic",
    )


def _talk(
    config: SynthConfig,
    person: Person,
    number: int,
    phrases: list[Phrase],
    cast: Cast | None,
    rng: np.random.Generator,
) -> BuiltinTalk | Talk:
    """Draws what a person says, in a built-in voice or, with a `cast`, in one of the bank."""
    if cast is None:
        return BuiltinTalk.drawn(config, person.voice, phrases, rng)
    return cast.talk(config, number, person.voice.lead_s, phrases, rng)


def _recorded(
    config: SynthConfig, talks: Sequence[BuiltinTalk | Talk], sounds: list[np.ndarray], rngs: list[np.random.Generator]
) -> tuple[list[np.ndarray], dict[str, list]]:
    """Returns both tracks and, for the bank's voices, the event that says how they were made."""
    if isinstance(talks[0], BuiltinTalk):
        return [mix(config, sounds[p], sounds[1 - p], rngs[p]) for p in range(2)], {}
    recordings = [draw_recording(rng) for rng in rngs]
    others = sounds[::-1]
    phrases = [talk.phrases for talk in talks]
    # NumPy and SciPy work on both tracks at once.
    with ThreadPoolExecutor(2) as pool:
        audio = list(pool.map(record_track, recordings, sounds, others, phrases, rngs))
    spoken = zip(talks, recordings, strict=True)
    return audio, {"speech": [talk.speech(recording._asdict()).to_json() for talk, recording in spoken]}


def make_scene(config: SynthConfig, seed: int, index: int, cast: Cast | None = None) -> Record:
    """Makes record `index` of the unpaired set `seed`: one person alone, without audio.

    The `SCENES` come in turn. Motion `[1, T, 108]` is float16; events are there, and with a `cast`
    the phones that the lips make. It is a pure function of its arguments, bit for bit. Raises
    UserError for a negative seed or index.
    """
    _check_numbers(seed=seed, index=index)
    name = list(scenes.SCENES)[index % len(scenes.SCENES)]
    scene, rng = scenes.SCENES[name], _rng(seed, index, _ALONE, _SCENE)
    config = scenes.scene_config(config, scene)
    person = _draw_person(config, f"synthetic_{seed}_alone_{index:05d}", _rng(seed, index, _ALONE, _PERSON))
    laughs = scenes.draw_laughs(config, scene, rng)
    phrases = scenes.draw_phrases(config, scene, laughs, rng)
    talk = _talk(config, person, index, phrases, cast, rng)
    own = behaviour.draw_own(config, person.habits, talk.phrases, talk.syllables, rng)
    if scene.reads:
        own = own._replace(gazes=scenes.draw_reading(config, rng))
    sway, drift = (gain * rng.lognormal(0, 0.2) for gain in (scene.sway, scene.drift))
    answers = behaviour.Answers([], [], [])
    movements = behaviour.together(own, answers)._replace(laughs=laughs, sway=sway, drift=drift)
    lips = talk.lips(config, _num_points(config), GRID_HZ)
    moved = compose(person.habits, lips, movements, _rng(seed, index, _ALONE, _MOTION))
    rng = _rng(seed, index, _ALONE, _TRACKING)
    dropouts = behaviour.draw_dropouts(config, rng)
    people = [{**_person_events(person, talk, own, answers, dropouts), "laughs": events.listed(laughs)}]
    said = {"speech": [talk.speech({}).to_json()]} if isinstance(talk, Talk) else {}
    return Record(
        name=f"synthetic_{seed}_{name}_{index:05d}",
        motion=tracked(config, moved, dropouts, rng)[None],
        audio=None,
        speech_mask=None,
        expression_basis="standin",
        events=events.described(scene=name, people=people, **said),
        identities=(person.identity,),
        source="synthetic",
    )


def _person_events(
    person: Person,
    talk: BuiltinTalk | Talk,
    own: behaviour.Own,
    answers: behaviour.Answers,
    dropouts: list[behaviour.Dropout],
) -> dict[str, Any]:
    # The pitch of a speaker of the bank is the engine's.
    pitch = {"pitch_hz": round(person.voice.pitch_hz, 3)} if isinstance(talk, BuiltinTalk) else {}
    return {
        "blinks_per_min": round(person.habits.blinks_per_min, 3),
        **pitch,
        "lead_s": round(person.voice.lead_s, 4),
        **events.person_events(talk.phrases, talk.syllables, own, answers, dropouts),
    }


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"{name} must not be negative, got {value}")


def _num_points(config: SynthConfig) -> int:
    return config.num_frames * GRID_HZ // round(FPS)


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


def make_records(
    config: SynthConfig, seed: int, num_conversations: int, bank: Bank | None = None
) -> Iterator[tuple[str, Record]]:
    """Yields all conversations of a set with their split, as `write_store` takes them.

    No person is in two splits, and no speaker and sentence of the bank, which is made first.
    """
    parts = splits(num_conversations)
    if bank is not None:
        bank.make()
    for split, numbers in parts.items():
        cast = None if bank is None else Cast(bank, split, seed)
        for index, people in zip(numbers, who_meets(numbers, config.meetings_per_person), strict=True):
            yield split, make_conversation(config, seed, index, people, cast=cast)


def make_scenes(
    config: SynthConfig, seed: int, num_records: int, bank: Bank | None = None
) -> Iterator[tuple[str, Record]]:
    """Yields all records of an unpaired set with their split, each of another person."""
    parts = splits(num_records)
    if bank is not None:
        bank.make()
    for split, numbers in parts.items():
        cast = None if bank is None else Cast(bank, split, seed)
        for index in numbers:
            yield split, make_scene(config, seed, index, cast)


def settings(
    config: SynthConfig, seed: int, num_records: int, *, unpaired: bool = False, bank: Bank | None = None
) -> dict[str, Any]:
    """Returns what a synthetic store was made with; two stores with equal settings are equal."""
    voices = {} if bank is None else {"bank": {**bank.settings, "talk": TALK_VERSION}}
    return {
        "source": "synthetic",
        "version": SYNTH_VERSION,
        "seed": seed,
        "scenes" if unpaired else "conversations": num_records,
        "config": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
        **voices,
    }


def write(
    out: str | os.PathLike,
    num_records: int,
    *,
    minutes: float = 2.0,
    seed: int = 0,
    unpaired: bool = False,
    bank: Bank | None = None,
) -> str:
    """Writes a synthetic store, unless the same one is there already.

    Returns one line that describes it. Raises UserError for bad settings and for a folder that
    holds anything else.

    Args:
        out: The store's folder.
        num_records: How many records it has.
        minutes: The length of each.
        seed: The number of the set.
        unpaired: Makes single people without audio instead of conversations.
        bank: The voices; None: the built-in ones.
    """
    _check_numbers(seed=seed)
    config = SynthConfig(minutes=minutes)
    out, what = Path(out), "single persons" if unpaired else "conversations"
    described = f"{num_records} {what}, {num_records * config.duration_s / 3600:.2f} hours, seed {seed}"
    wanted = settings(config, seed, num_records, unpaired=unpaired, bank=bank)
    if _is_there(out, wanted):
        return f"{shown(out)}: already there ({described})"
    started = time.monotonic()
    records = (make_scenes if unpaired else make_records)(config, seed, num_records, bank)
    write_store(out, _counted(records, num_records, what), settings=wanted)
    return f"{shown(out)}: {described}, made in {time.monotonic() - started:.1f} s"


def _is_there(out: str | os.PathLike, wanted: dict[str, Any]) -> bool:
    """Returns whether a store with these settings is at `out`. Raises UserError for another one."""
    if not (Path(out) / MANIFEST).exists():
        return False
    if read_manifest(out)["settings"] != wanted:
        raise UserError(f"{out} holds a store made with other settings; choose another folder or remove it")
    return True


def _counted(records: Iterable[tuple[str, Record]], total: int, what: str) -> Iterator[tuple[str, Record]]:
    """Passes records on and shows the progress: a bar on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(records, total=total, unit=" " + what, file=sys.stderr)
        return
    for done, item in enumerate(records, start=1):
        yield item
        if done % max(1, total // 10) == 0 or done == total:
            log.info("made %d of %d %s", done, total, what)
