"""Nods and smiles of a listener within a second of their causes, on motion made for it and on synthetic records."""

import numpy as np
import pytest

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.evaluation.reaction_metrics import Reactions, count_reactions, nod_causes, nod_onsets, smile_onsets
from unils_jax.motion import HEAD, STANDIN_SHAPES

FRAMES = 250


@pytest.fixture
def still() -> np.ndarray:
    return np.zeros((FRAMES, 108), np.float32)


def shape(name: str) -> int:
    return list(STANDIN_SHAPES).index(name)


@pytest.mark.parametrize("hertz, size, nods", [(3.0, 0.1, 1), (3.0, 0.01, 0), (0.3, 0.1, 0)])
def test_a_nod_is_a_quick_swing_of_the_pitch_that_is_large_enough(still, hertz, size, nods):
    time = np.arange(25) / 25
    still[100:125, HEAD.start] = size * np.sin(2 * np.pi * hertz * time) * np.hanning(25)
    onsets = nod_onsets(still)
    assert len(onsets) == nods
    assert all(95 <= onset <= 115 for onset in onsets)


def test_a_smile_moves_corners_and_cheeks_and_a_drift_of_the_corners_is_none(still):
    rise = np.hanning(50)
    for name in ("smile_left", "smile_right"):
        still[60:110, shape(name)] = STANDIN_SHAPES[name] * rise
    drift = still.copy()
    drift[60:110, shape("cheek_raise")] = STANDIN_SHAPES["cheek_raise"] * rise / 1.6
    still[60:110, shape("cheek_raise")] = STANDIN_SHAPES["cheek_raise"] * rise * 0.9
    assert [57 <= onset <= 70 for onset in smile_onsets(still)] == [True]
    assert len(smile_onsets(drift)) == 0


def test_answers_are_onsets_in_the_second_after_a_cause_and_chance_is_any_second():
    onsets, moments = np.array([30, 120]), np.zeros(FRAMES, bool)
    moments[:50] = True
    # 1 s: answered at 30. 4 s: at 120. 5 s: nothing until 150. 9.5 s: less than a second is left.
    counts = count_reactions(onsets, np.array([1.0, 4.0, 5.0, 9.5, -1.0]), moments)
    assert counts == Reactions(answered=2, causes=3, chance=25, moments=50)


def test_only_phrases_that_meet_a_silent_listener_invite_a_nod():
    said = [[0.0, 2.0, False, False], [3.0, 5.0, True, False], [6.0, 6.4, False, True]]
    assert nod_causes(said, own_phrases=[[1.5, 2.5, False, False]]).tolist() == [5.0]


@pytest.fixture(scope="module")
def records() -> list:
    return [make_conversation(SynthConfig(minutes=1.0), 5, index) for index in range(8)]


def people(records: list):
    """Everybody's motion, silence, own events and the partner's."""
    for record in records:
        for person in range(2):
            events = record.events["people"]
            yield (
                record.motion[person].astype(np.float32),
                ~record.speech_mask[person],
                events[person],
                events[1 - person],
            )


def test_listeners_of_synthetic_records_nod_and_smile_more_often_after_causes_than_by_chance(records):
    nods, smiles = np.zeros(4), np.zeros(4)
    for motion, listening, own, other in people(records):
        nods += count_reactions(nod_onsets(motion), nod_causes(other["phrases"], own["phrases"]), listening)
        starts = np.array([smile[0] for smile in other["smiles"]])
        smiles += count_reactions(smile_onsets(motion), starts, np.ones(len(motion), bool))
    for answered, causes, chance, moments in (nods, smiles):
        assert answered / causes > 2 * chance / moments


def test_more_than_three_of_four_true_nods_and_smiles_are_found(records):
    found: dict[str, list[bool]] = {"nods": [], "smiles": []}
    for motion, _, own, _ in people(records):
        onsets = {"nods": nod_onsets(motion), "smiles": smile_onsets(motion)}
        true = {"nods": own["answer_nods"], "smiles": own["smiles"] + own["answer_smiles"]}
        for what, starts in onsets.items():
            found[what] += [bool((abs(starts - 25 * event[0]) < 20).any()) for event in true[what]]
    assert np.mean(found["nods"]) > 0.75 and np.mean(found["smiles"]) > 0.75
