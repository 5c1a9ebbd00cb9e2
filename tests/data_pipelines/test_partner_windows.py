"""Windows of two partners: what lies where, each person once, audio normalised over the record, batches of a store."""

import numpy as np
import pytest

from data_pipelines.loader import make_loader, window_items
from data_pipelines.partner_windows import audio_scale, cut_partners, partner_index
from data_pipelines.record import Record
from data_pipelines.store.reader import Store, write_store
from data_pipelines.windows import RecordSource
from unils_jax.errors import UserError
from unils_jax.motion import HEAD, JAW, from_56_channels, to_56_channels


def dialogue(frames: int, name: str = "talk", observed: np.ndarray | None = None) -> Record:
    """Each frame says its number in channel 0, each person his own in channel 1; audio is off centre, by person."""
    rng = np.random.default_rng(frames)
    motion = rng.standard_normal((2, frames, 108)).astype(np.float32)
    motion[:, :, 0] = np.arange(frames)
    motion[:, :, 1] = [[0], [1]]
    motion[:, :, HEAD] += 5
    if observed is not None:
        motion *= observed[:, None]
    audio = rng.normal([[0.1], [-0.2]], [[0.2], [0.02]], (2, frames * 640 - 100)).astype(np.float32)
    return Record(name, motion, audio.clip(-1, 1), None, "standin", observed=observed)


def test_windows_lie_side_by_side_and_short_records_have_none():
    assert partner_index([650, 200, 201, 400]).tolist() == [[0, 0], [0, 200], [0, 400], [2, 0], [3, 0], [3, 200]]


@pytest.mark.parametrize("person", [0, 1])
def test_a_window_holds_its_own_frames_of_both_people_as_tracked(person):
    record = dialogue(650)
    source = RecordSource(record)
    window = cut_partners(source, person, 400, audio_scale(source))
    for name, whose in (("motion", person), ("partner_motion", 1 - person)):
        np.testing.assert_array_equal(window[name], to_56_channels(record.motion[whose, 400:600]))
        assert (window[name][:, 0] == np.arange(400, 600)).all() and window[name][:, 53:].mean() > 4
    for name, whose in (("audio", person), ("partner_audio", 1 - person)):
        track = np.float64(record.audio[whose])
        expected = (track - track.mean()) / np.sqrt(track.var() + 1e-7)
        np.testing.assert_allclose(window[name], expected[400 * 640 : 600 * 640], atol=1e-4)


def test_a_window_behind_the_end_is_an_error_that_names_the_record():
    source = RecordSource(dialogue(300))
    with pytest.raises(UserError, match="'talk' has 300 frames, a window at 200 needs 400"):
        cut_partners(source, 0, 200, audio_scale(source))


def test_channels_there_and_back():
    motion = np.random.default_rng(0).standard_normal((2, 5, 108)).astype(np.float32)
    again = from_56_channels(to_56_channels(motion))
    np.testing.assert_array_equal(again[..., :50], motion[..., :50])
    np.testing.assert_array_equal(again[..., 100:104], motion[..., 100:104])
    assert not again[..., 50:100].any() and not again[..., 104:].any()
    mask = np.zeros(108, bool)
    mask[JAW] = True
    assert np.flatnonzero(to_56_channels(mask)).tolist() == [50, 51, 52]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """Three windows a person, one a person, none, and one dialogue without the second person's motion."""
    path = tmp_path_factory.mktemp("partners") / "store"
    one_sided = np.ones((2, 108), bool)
    one_sided[1] = False
    records = [dialogue(650, "long"), dialogue(210, "short"), dialogue(200, "none"), dialogue(300, "half", one_sided)]
    write_store(path, [("train", record) for record in records])
    return str(path)


def test_every_window_of_each_person_is_an_item_once(store):
    items = window_items(Store(store), "train", "partners").tolist()
    assert sorted(items) == sorted([[0, p, i] for p in (0, 1) for i in (0, 200, 400)] + [[1, 0, 0], [1, 1, 0]])


def test_an_epoch_shows_every_window_in_a_shuffled_order(store):
    loader = make_loader(store, "train", view="partners", batch_size=2, seed=0)
    assert loader.steps_per_epoch == 4
    batches = iter(loader)
    seen = [next(batches) for _ in range(4)]
    assert {n: a.shape for n, a in seen[0].items() if n != "record"} == {
        "motion": (2, 200, 56),
        "partner_motion": (2, 200, 56),
        "audio": (2, 128_000),
        "partner_audio": (2, 128_000),
        "observed": (2, 56),
    }
    assert all(array.dtype == np.float32 for batch in seen for name, array in batch.items() if name != "record")
    order = [(int(r), int(m[0, 1]), int(m[0, 0])) for b in seen for r, m in zip(b["record"], b["motion"], strict=True)]
    assert len(set(order)) == 8 and order != sorted(order)
    assert all((b["partner_motion"][:, 0, 1] == 1 - b["motion"][:, 0, 1]).all() for b in seen)


def test_a_store_without_long_dialogues_is_an_error(tmp_path):
    write_store(tmp_path / "s", [("train", dialogue(200))])
    with pytest.raises(UserError, match="no record of at least 201 frames"):
        make_loader(str(tmp_path / "s"), "train", view="partners", batch_size=1, seed=0)
