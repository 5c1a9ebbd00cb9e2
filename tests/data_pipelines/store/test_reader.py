"""The store: what goes in comes out, statistics are right, and damage is named."""

import json
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from random_records import record

from data_pipelines.record import Record
from data_pipelines.store.index import Index, concatenate, load_index, save_index
from data_pipelines.store.reader import Store, write_store
from data_pipelines.store.writer import Dtypes
from data_pipelines.windows import RecordSource, cut_window
from unils_jax.errors import UserError
from unils_jax.motion import center_head


@pytest.fixture(scope="module")
def records() -> list[tuple[str, Record]]:
    return [
        ("train", record("a", 130, seed=1)),
        ("train", record("b", 170, seed=2)),
        ("val", record("c", 120, seed=3)),
        ("test", record("d", 110, seed=4)),
    ]


@pytest.fixture
def store(tmp_path, records) -> Store:
    write_store(tmp_path / "store", iter(records), settings={"seed": 3})
    return Store(tmp_path / "store")


def test_records_come_back_bit_for_bit(store, records):
    for split, i, expected in (("train", 0, records[0][1]), ("train", 1, records[1][1]), ("test", 0, records[3][1])):
        got = store.read(split, i)
        for name in ("motion", "audio", "speech_mask"):
            assert getattr(got, name).dtype == getattr(expected, name).dtype
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        assert (got.name, got.expression_basis, got.events) == (expected.name, "standin", expected.events)


def test_all_that_is_known_of_a_record_comes_back(tmp_path):
    observed = np.ones((2, 108), bool)
    observed[0, 40:60], observed[1] = False, False
    full = record("a", 260)
    motion = full.motion * observed[:, None].astype(np.float16)
    known = replace(
        full, motion=motion, observed=observed, identities=("ann", ""), source="lab/42", events={"nods": [1.5]}
    )
    write_store(tmp_path / "store", [("train", known), ("train", record("b"))])
    store = Store(tmp_path / "store")
    got = store.read("train", 0)
    np.testing.assert_array_equal(got.observed, observed)
    np.testing.assert_array_equal(got.motion, motion)
    assert (got.identities, got.source, got.events) == (("ann", ""), "lab/42", {"nods": [1.5]})
    alone = store.source("train", 0, 1).read()
    assert alone.identities == ("",) and alone.audio is None and alone.speech_mask is None
    np.testing.assert_array_equal(alone.motion, motion[1:])
    entry, other = store.records("train")
    np.testing.assert_array_equal(entry.pop("observed"), observed)
    expected = {"name": "a", "frames": 260, "people": 2, "audio": True, "speech_mask": True, "source": "lab/42"}
    assert entry == expected | {"identities": ("ann", ""), "shard": 0}
    assert other["observed"] is None and other["identities"] == () and store.read("train", 1).observed is None
    amounts = store.manifest["splits"]["train"]
    assert amounts["person_hours"] == pytest.approx((2 * 260 + 2 * 130) / 25 / 3600)
    assert amounts["motion_hours"] == pytest.approx((260 + 2 * 130) / 25 / 3600)
    assert amounts["audio_hours"] == amounts["person_hours"]


def test_missing_channels_leave_the_statistics_alone(tmp_path):
    observed = np.ones((2, 108), bool)
    observed[0, 104:], observed[1] = False, False
    a, b = record("a", seed=1), record("b", seed=2)
    partial = replace(a, motion=a.motion * observed[:, None].astype(np.float16), observed=observed)
    write_store(tmp_path / "store", [("train", partial), ("train", b)])
    mean, std = Store(tmp_path / "store").statistics()
    eyes = center_head(b.motion).astype(np.float64).reshape(-1, 108)
    rest = np.concatenate([center_head(a.motion)[0].astype(np.float64), eyes])
    for channels, frames in ((slice(104, 108), eyes), (slice(0, 104), rest)):
        np.testing.assert_allclose(mean[channels], frames[:, channels].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(std[channels], frames[:, channels].std(axis=0), atol=1e-6)


@pytest.mark.parametrize("missing_samples", [0, 77, 16000, -16000])
def test_windows_read_from_chunks_are_those_of_the_whole_record(tmp_path, missing_samples):
    whole = record("a", 380)
    samples = 380 * 640 - missing_samples
    audio = np.random.default_rng(0).integers(-3000, 3000, (2, samples)).astype(np.int16)
    whole = replace(whole, audio=audio)
    write_store(tmp_path / "store", [("train", record("z", 90)), ("train", whole)])
    store = Store(tmp_path / "store", cache_bytes=100_000)
    np.testing.assert_array_equal(store.read("train", 1).audio, audio)
    for start, styles in (
        (0, (0, 280)),
        (24, (25, 26)),
        (25, (125, 0)),
        (100, (249, 250)),
        (280, (100, 124)),
        (225, (1, 2)),
    ):
        draws = [iter([start, *styles]) for _ in range(2)]
        ours = cut_window(store.source("train", 1), 0, lambda low, high: next(draws[0]))  # noqa: B023
        expected = cut_window(RecordSource(whole), 0, lambda low, high: next(draws[1]))  # noqa: B023
        assert set(ours) == {"motion", "prev", "style", "audio", "speech_mask"}
        for name, array in expected.items():
            assert ours[name].dtype == array.dtype
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert 0 < store.motion_files.kept_bytes <= 100_000


def test_a_window_reads_the_chunks_it_needs_and_no_others(tmp_path):
    write_store(tmp_path / "store", [("train", record("a", 1250))])
    store, read = Store(tmp_path / "store"), []
    for files in (store.motion_files, store.audio_files):
        inner = files.read
        files.read = lambda shard, positions, inner=inner: read.extend(positions) or inner(shard, positions)
    draws = iter([130, 500, 1000])
    cut_window(store.source("train", 0), 100, lambda low, high: next(draws))
    # Frames 30-230 and 500-600, 1000-1100 for motion, two people a chunk; 130-230 for audio.
    assert sorted(read[:-2]) == [0, 1, 2, 3, 2 * 4, 2 * 8 + 1] and read[-2:] == [2, 3]


def test_an_index_of_200000_records_loads_at_once(tmp_path, store):
    one = store.index("train")
    rows = 200_000
    many = {name: np.repeat(array[:1], rows, axis=0) for name, array in vars(one).items() if name in INDEX_ARRAYS}
    texts = "".join(f"record_{i}\nsource\n\n\n" for i in range(rows)).encode()
    save_index(tmp_path / "i.npz", Index(**many, texts=np.frombuffer(texts, np.uint8)), {})
    started = time.process_time()
    index, _ = load_index(tmp_path / "i.npz")
    assert index.name(rows - 1) == "record_199999" and len(concatenate([index, one])) == rows + 2
    assert time.process_time() - started < 2.0


INDEX_ARRAYS = (
    *("frames", "people", "samples", "has_mask", "observed", "head_mean"),
    *("shard", "first_motion", "first_audio"),
)


def test_records_without_audio_and_mask_come_back_without(tmp_path):
    single = Record("s", np.ones((1, 120, 108), np.float32), None, None, "flame")
    write_store(tmp_path / "store", [("train", single)], dtypes=Dtypes("float32", "float32"))
    got = Store(tmp_path / "store").read("train", 0)
    assert got.audio is None and got.speech_mask is None and got.motion.dtype == np.float32


def test_audio_can_be_left_on_the_disk(store):
    got = store.read("train", 0, with_audio=False)
    assert got.audio is None and got.speech_mask is not None


def test_the_manifest_tells_names_and_lengths_without_reading(store):
    assert store.lengths("train").tolist() == [130, 170]
    assert [entry["name"] for entry in store.records("val")] == ["c"]
    train = store.manifest["splits"]["train"]
    assert (train["count"], train["frames"]) == (2, 300)
    assert train["hours"] == pytest.approx(300 / 25 / 3600)
    assert store.manifest["settings"] == {"seed": 3} and store.expression_basis == "standin"


def test_statistics_are_those_of_the_centred_training_split(store, records):
    frames = [center_head(r.motion).astype(np.float64).reshape(-1, 108) for split, r in records if split == "train"]
    mean, std = store.statistics()
    np.testing.assert_allclose(mean, np.concatenate(frames).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, np.concatenate(frames).std(axis=0), atol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_statistics_with_head_rotation_as_it_was_are_those_of_the_frames(tmp_path):
    observed = np.ones((2, 108), bool)
    observed[1, 100:] = False
    whole, partial = (record(name, 130 + 40 * seed, seed=seed) for seed, name in enumerate(("a", "b")))
    partial = replace(partial, motion=partial.motion * observed[:, None].astype(np.float16) * 3, observed=observed)
    write_store(tmp_path / "store", [("train", whole), ("train", partial), ("val", record("c"))])
    found = Store(tmp_path / "store").channel_statistics(centred=False)
    frames = np.concatenate([*whole.motion, partial.motion[0]]).astype(np.float64)[:, 100:]
    # Centring rounds every float16 value by up to 2^-11 of its size.
    np.testing.assert_allclose(found.mean[100:], frames.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found.std[100:], frames.std(axis=0), atol=1e-3)
    assert np.abs(found.mean[100:103] - Store(tmp_path / "store").channel_statistics().mean[100:103]).min() > 0.5


def test_a_store_pickles_before_and_after_reading(store, records):
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(copy.read("val", 0).motion, records[2][1].motion)
        store.read("val", 0)


def test_an_existing_folder_with_something_in_it_is_left_alone(tmp_path, records):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        write_store(tmp_path, records)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path, records):
    (tmp_path / "store").mkdir()
    write_store(tmp_path / "store", records)
    assert Store(tmp_path / "store").lengths("test").tolist() == [110]


def test_a_failure_half_way_leaves_nothing(tmp_path, records):
    def failing():
        yield records[0]
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_store(tmp_path / "store", failing())
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_when_writing(tmp_path, records):
    bad = Record("bad", np.full((1, 120, 108), np.nan, np.float32), None, None, "flame")
    other_basis = Record("f", np.ones((1, 120, 108), np.float32), None, None, "flame")
    for items, message in (
        ([("train", bad)], "record 'bad'.*NaN"),
        ([("dev", records[0][1])], "split of a record must be one of"),
        ([], "records of one expression_basis, got no record"),
        ([records[0], ("train", other_basis)], "another expression_basis"),
    ):
        with pytest.raises(UserError, match=message):
            write_store(tmp_path / "store", items)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        write_store(tmp_path / "file" / "store", records)


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(UserError, match="is no store: .*manifest.json does not exist; give the folder"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [("{", "manifest.json is damaged"), ("[]", "manifest.json is damaged"), ("{}", "manifest.json is damaged")],
)
def test_a_damaged_manifest_is_named(store, content, message):
    (store.path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Store(store.path)


def test_a_manifest_of_another_version_is_refused(store):
    manifest = store.manifest | {"format_version": 99}
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="format_version 99"):
        Store(store.path)


def test_missing_and_truncated_files_are_named(store):
    file = store.path / "train.array_record-00000"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="'a'.*train.array_record-00000 has .* bytes, its manifest says"):
        store.read("train", 0)
    file.unlink()
    with pytest.raises(UserError, match="train.array_record-00000 is missing"):
        store.read("train", 0)


@pytest.mark.parametrize("folder", ["", "audio/"])
def test_overwritten_bytes_are_found_and_named(store, folder):
    file = store.path / f"{folder}train.array_record-00000"
    content = bytearray(file.read_bytes())
    content[20000:25000] = bytes(5000)
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=f"record 'a' .number 0 of train in .* from {folder}train.array_record"
    ) as error:
        store.read("train", 0)
    assert "\n" not in str(error.value)


def test_records_and_splits_that_are_not_there_are_refused(store):
    with pytest.raises(UserError, match="there is no record 2"):
        store.read("train", 2)
    with pytest.raises(UserError, match="split must be one of"):
        store.lengths("dev")


@pytest.mark.parametrize(
    ("inside", "remedy"),
    [
        (None, "makes one, `unils data convert` one of your data"),
        ("conversion/settings.json", "its conversion is not finished: run the same `unils data convert` again"),
        ("CONVERSION.md", "its conversion found nothing to use, see"),
        ("a.wav", "give the folder that `unils data convert` or `unils data synth` wrote"),
    ],
)
def test_what_is_no_store_says_what_to_do_about_it(tmp_path, inside, remedy):
    if inside:
        (tmp_path / "s" / inside).parent.mkdir(parents=True)
        (tmp_path / "s" / inside).touch()
    with pytest.raises(UserError, match="is no store") as caught:
        Store(tmp_path / "s")
    assert remedy in str(caught.value)
    assert ("data synth --out" in str(caught.value)) == (inside is None)
