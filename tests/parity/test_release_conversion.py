"""The release's records through reader and store: windows bit for bit as the release's data sets cut them."""

import numpy as np
import pytest
from foreign_data import npz, write_lmdb

from data_pipelines.conversion.convert import convert, make_plan
from data_pipelines.sources.unils_lmdb import ReleaseSource
from data_pipelines.store.reader import Store
from data_pipelines.windows import cut_window, whole_sequence
from parity.test_release_windows import Replay, checksum


@pytest.fixture(scope="module")
def data(golden):
    return golden("data")


@pytest.fixture(scope="module")
def stores(data, tmp_path_factory) -> dict[str, Store]:
    """Both sets, written as the release has them and converted; every record is in train and in test."""
    folder = tmp_path_factory.mktemp("goldens")
    values = {}
    for person in "AB":
        values[f"spk{person}"] = npz(
            motioncode=data.inputs[f"motioncode_{person}"].astype(np.float16),
            audio=data.inputs[f"audio_{person}_i8"].astype(np.float32) / 128,
            speech_mask=data.inputs[f"mask_{person}"],
        )
    unpaired = {"spkA": npz(motioncode=data.inputs["motioncode_A"].astype(np.float16))}
    sets = {
        "motion": (unpaired, {split: [["spkA", 170, "more"]] for split in ("train", "test")}),
        "pair": (values, {split: {"pair": ["path/spkA", "path/spkB", 170]} for split in ("train", "test")}),
    }
    stores = {}
    for name, (held, index) in sets.items():
        source = ReleaseSource(*write_lmdb(folder / name, held, index))
        assert convert(source, folder / f"{name}_store", make_plan(source)).finished
        stores[name] = Store(folder / f"{name}_store")
    return stores


@pytest.mark.parametrize("kind", ["motion", "pair"])
def test_training_windows_of_a_converted_release_are_the_releases(data, stores, kind):
    info = data.config["info"]
    draws = Replay(info[f"{kind}_train1_randint_calls"])
    window = cut_window(stores[kind].source("train", 0), int(info[f"{kind}_train_index"][1][-1]), draws)
    for ours, theirs in (("motion", "motion_code"), ("prev", "prev_motion_code"), ("style", "style_motion_code")):
        expected = data.outputs[f"{kind}_train1.{theirs}"]
        assert window[ours].dtype == expected.dtype
        np.testing.assert_array_equal(window[ours] if kind == "pair" else window[ours][0], expected)
    if kind == "pair":
        sums = [checksum(window["audio"][person]) for person in range(2)]
        assert sums == [tuple(row) for row in data.outputs["pair_train1.audio_checksum"]]
    assert draws.calls == []


@pytest.mark.parametrize("kind", ["motion", "pair"])
def test_test_items_of_a_converted_release_are_the_releases(data, stores, kind):
    item = whole_sequence(stores[kind].read("test", 0))
    for ours, theirs in (("motion", "motion_code"), ("style", "style_motion_code")):
        expected = data.outputs[f"{kind}_test0.{theirs}"]
        np.testing.assert_array_equal(item[ours] if kind == "pair" else item[ours][0], expected)
    if kind == "pair":
        np.testing.assert_array_equal(item["speech_mask"], data.outputs["pair_test0.speech_mask"].astype(bool))
        sums = [checksum(item["audio"][person]) for person in range(2)]
        assert sums == [tuple(row) for row in data.outputs["pair_test0.audio_checksum"]]
