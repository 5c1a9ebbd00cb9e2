"""Batches of one kind and length out of sets and stores: what an epoch holds, and that its order is a function."""

import json

import numpy as np
import pytest
from talker_data import write_set

from data_pipelines.sources.unitalker import TalkerSet
from data_pipelines.speech_loader import make_speech_loader, parse_sets
from unils_jax.errors import UserError
from unils_jax.motion import MOTION_KIND

SETTINGS = {"seed": 3, "clip_step_s": 0.0, "normalize": True, "as_pivot": False}
ONE = {"process_index": 0, "process_count": 1}


@pytest.fixture
def sets(tmp_path) -> list[TalkerSet]:
    rng = np.random.default_rng(0)

    def records(seconds: list[float], fps: int, dim: int) -> list:
        return [(0, fps, rng.normal(0, 1, (round(s * fps), dim)), rng.normal(0, 1, round(s * 16_000))) for s in seconds]

    one = write_set(tmp_path / "a", "one", records([1.4, 1.4, 2.5, 0.2], 25, 4), np.zeros((2, 4)), repeats=3)
    return [one, write_set(tmp_path / "b", "two", records([1.2], 30, 6), np.ones((1, 6)))]


def loader(sets, stores=(), batch_size=2, **changes):
    return make_speech_loader(sets, stores, "train", batch_size=batch_size, **{**SETTINGS, **ONE, **changes})


def test_an_epoch_shows_every_clip_as_often_as_its_set_says(sets):
    found = loader(sets, batch_size=1)
    assert found.names == ["a/annot0.npy", "a/annot1.npy", "a/annot2.npy", "b/annot0.npy"]  # the short one is left out
    assert found.kinds == {"one": 4, "two": 6} and found.num_identities == 4
    for epoch in range(3):
        shown = [number for batch in found.plan(epoch) for number in batch]
        assert np.bincount(shown).tolist() == [3, 3, 3, 1]
    assert found.plan(0) != found.plan(1) and found.plan(1) == loader(sets, batch_size=1).plan(1)
    assert found.steps_per_epoch == 10


def test_batches_are_of_one_kind_and_length(sets):
    found = loader(sets)
    batches = [batch for batch, _ in zip(found.batches(0), range(found.steps_per_epoch), strict=False)]
    assert len(batches) == 3 + 2 + 1  # a clip alone fills its batch twice
    for batch in batches:
        kind = batch["annotation"]
        assert batch["motion"].shape[2] == found.kinds[kind] == batch["template"].shape[1]
        assert batch["motion"].shape[1] == round(batch["audio"].shape[1] / 16_000 * (25 if kind == "one" else 30))
        np.testing.assert_allclose(batch["audio"].std(1), 1, atol=1e-3)
        assert set(batch["identity"]) == {0 if kind == "one" else 2}


def test_clips_are_cut_down_to_a_multiple_of_the_step(sets):
    found = loader(sets, clip_step_s=1.0)
    assert [item.frames for item in found.items] == [25, 25, 50, 30]
    assert [item.samples for item in found.items] == [16_000, 16_000, 32_000, 16_000]


def test_processes_share_the_rows_of_one_batch(sets):
    whole = next(loader(sets).batches(2))
    parts = [next(loader(sets, process_index=i, process_count=2).batches(2)) for i in range(2)]
    assert {part.pop("annotation") for part in parts} == {whole.pop("annotation")}
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_a_position_goes_on_and_is_refused_for_other_data(sets):
    batches = loader(sets).at_step(0)
    for _ in range(7):
        next(batches)
    state = batches.get_state()
    expected = next(batches)["record"]
    again = loader(sets).at_step(0)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["record"], expected)
    assert json.loads(state)["step"] == 7
    with pytest.raises(UserError, match="is of other stores, weights, seed, batch size, view or window"):
        loader(sets, seed=4).at_step(0).set_state(state)
    batches.close()
    again.close()


def test_people_of_a_store_are_an_annotation(sets, tiny_store):
    found = loader(sets, [(str(tiny_store), 2.0)])
    people = [item for item in found.items if item.kind == MOTION_KIND]
    assert people and {(item.frames, item.samples, item.dim, item.fps) for item in people} == {(200, 128_000, 108, 25)}
    clip = found.sources[1].read(people[0])
    assert clip.motion.shape == (200, 108) and clip.motion.dtype == np.float32 and clip.audio.shape == (128_000,)
    assert not clip.template.any() and clip.identity >= 3
    assert found.num_identities == 3 + len(found.sources[1].rows) + 1
    nobody = loader(sets, [(str(tiny_store), 1.0)], as_pivot=True)
    assert set(nobody.batch([0, 1])["identity"]) == {-1}


def test_sets_of_a_config_are_paths_with_scale_and_repeats():
    assert [(str(one.folder), one.scale, one.repeats) for one in parse_sets(("x", "y=0.2", "z/w=0.001*4"))] == [
        ("x", 1.0, 1),
        ("y", 0.2, 1),
        ("z/w", 0.001, 4),
    ]
    with pytest.raises(UserError, match="got 'x=0'; .*got 'y=1.a'"):
        parse_sets(("x=0", "y=1*a"))


def test_data_without_a_clip_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    one = write_set(tmp_path / "a", "one", [(0, 25, rng.normal(0, 1, (5, 4)), np.zeros(3200))], np.zeros((1, 4)))
    with pytest.raises(UserError, match="no clip of at least 0.5 s"):
        loader([one])
