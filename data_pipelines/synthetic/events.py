"""The latent events of a synthetic record as JSON-able lists with named columns."""

from collections.abc import Iterable
from typing import Any

from data_pipelines.synthetic import behaviour
from data_pipelines.synthetic.conversation import Phrase, Turn
from data_pipelines.synthetic.voice import Syllable

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


def person_events(
    phrases: list[Phrase],
    syllables: list[list[Syllable]],
    own: behaviour.Own,
    answers: behaviour.Answers,
    dropouts: list[behaviour.Dropout],
) -> dict[str, Any]:
    """Returns all events of a person as JSON-able values; lists of events have `EVENT_COLUMNS`."""
    spoken = [syllable for phrase in syllables for syllable in phrase]
    return {
        "phrases": listed(phrases),
        "syllables": listed(spoken),
        "backchannels": listed(phrase[:2] for phrase in phrases if phrase.backchannel),
        "accents": listed(((s.vowel_s + s.end_s) / 2, s.loudness) for s in spoken if s.accent),
        **{name: listed(values) for name, values in own._asdict().items()},
        **{f"answer_{name}": listed(values) for name, values in answers._asdict().items()},
        "dropouts": listed(dropouts),
    }


def described(**events: str | list) -> dict[str, Any]:
    """Returns the events that occur with the names of their columns."""
    present = {name for person in events["people"] for name in person} | events.keys()
    columns = {name: list(fields) for name, fields in EVENT_COLUMNS.items() if name in present}
    return {"columns": columns, **events}


def listed(events: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Returns events as JSON-able lists, times and sizes rounded."""
    return [[round(v, 4) if isinstance(v, float) else v for v in event] for event in events]
