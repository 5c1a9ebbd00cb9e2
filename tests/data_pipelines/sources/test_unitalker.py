"""UniTalker's sets: what is read, what is left out, and what strangers' files may not do."""

import json
import pickle

import numpy as np
import pytest
import soundfile
from talker_data import write_set
from tiny_runs import run_unils

from data_pipelines.conversion.unitalker_pca import fit_pca, write_pca
from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.unitalker import TalkerSplit, clip_length, read_pca
from unils_jax.audio import write_wav
from unils_jax.errors import UserError
from unils_jax.files import npy_shape, read_npy_file

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture
def two_sets(tmp_path):
    first = write_set(tmp_path / "a", "one", [(0, 25, noise(50, 4), noise(32_000))], noise(2, 4), scale=2.0)
    second = write_set(tmp_path / "b", "two", [(1, 30, noise(60, 3, 3), noise(32_000))], noise(3, 3, 3))
    return [first, second]


def test_subjects_of_all_sets_stand_in_one_table_with_the_pivot_last(two_sets):
    split = TalkerSplit(two_sets, "val")
    assert split.num_identities == 2 + 3 + 1
    clips = [split.read(entry) for entry in split.entries]
    assert [clip.identity for clip in clips] == [0, 3]
    assert clips[1].motion.shape == (60, 9)
    annotation = np.load(two_sets[0].folder / "annot0.npy")
    np.testing.assert_array_equal(clips[0].motion, 2 * annotation)
    again = pickle.loads(pickle.dumps(split))
    assert again.describe() == split.describe() != TalkerSplit(two_sets[::-1], "val").describe()


def test_a_wav_of_another_rate_is_as_long_as_its_head_says(two_sets):
    folder = two_sets[0].folder
    write_wav(folder / "long.wav", noise(24_000))
    index = json.loads((folder / "train.json").read_text())
    index["data"][0]["audio_path"] = "long.wav"
    (folder / "train.json").write_text(json.dumps(index))
    split = TalkerSplit(two_sets, "train")
    clip = split.read(split.entries[0])
    assert (len(clip.motion), len(clip.audio)) == split.length(split.entries[0]) == (38, 24_000)


@pytest.mark.parametrize("kind", ["flac", "cut.wav", "ogg"])
def test_a_length_is_that_of_the_sound_that_is_read(two_sets, kind):
    folder, name = two_sets[0].folder, f"own.{kind}"
    soundfile.write(folder / name, noise(30_000), 16_000)
    data = (folder / name).read_bytes()
    if kind == "flac":  # its second half is damaged
        data = data[: len(data) // 2] + bytes(500) + data[len(data) // 2 + 500 :]
    elif kind == "cut.wav":  # its header counts more than there is
        data = data[:40_044]
    (folder / name).write_bytes(data)
    index = json.loads((folder / "train.json").read_text())
    index["data"][0]["audio_path"] = name
    (folder / "train.json").write_text(json.dumps(index))
    split = TalkerSplit(two_sets, "train")
    clip = split.read(split.entries[0])
    assert (len(clip.motion), len(clip.audio)) == split.length(split.entries[0])


def test_clips_are_cut_at_20_seconds_and_dropped_below_half_a_second(two_sets):
    entry = TalkerSplit(two_sets, "train").entries[0]
    assert clip_length(700, 16_000 * 30, entry) == (500, 320_000)
    assert clip_length(13, 8_000, entry) == (12, 8_000)  # 12.5 rounded to even
    with pytest.raises(SkippedEntry, match="too short"):
        clip_length(12, 16_000, entry)


def rewrite(folder, change) -> None:
    index = json.loads((folder / "train.json").read_text())
    change(index)
    (folder / "train.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda i: i["data"][0].update(annot_path="../../etc/passwd"), "annot_path must stay in the set's folder"),
        (lambda i: i["data"][0].update(audio_path="/etc/passwd"), "audio_path must stay in the set's folder"),
        (lambda i: i["data"][0].update(id=2), "id must be from 0 to 1, got 2"),
        (lambda i: i["data"][0].update(id=True), "id must be int"),
        (lambda i: i["data"][0].update(fps=50), "fps must be one of 25, 30, 60, 100, got 50"),
        (lambda i: i["data"].append(3), "record 1: must be an object"),
        (lambda i: i["data"].append(i["data"][0] | {"annot_type": "other"}), "mixes the kinds one, other"),
        (lambda i: i.pop("info"), "must hold info.id_list and data"),
        (lambda i: i.update(data={}), "must be lists"),
    ],
)
def test_an_index_that_is_off_is_refused(two_sets, change, problem):
    rewrite(two_sets[0].folder, change)
    with pytest.raises(UserError, match=problem):
        TalkerSplit(two_sets, "train")


def test_splits_must_list_the_same_subjects(two_sets):
    rewrite(two_sets[0].folder, lambda index: index["info"]["id_list"].append("more"))
    with pytest.raises(UserError, match="lists other subjects than train.json"):
        TalkerSplit(two_sets, "test")


def test_a_missing_index_and_an_unknown_split_are_named(two_sets, tmp_path):
    (two_sets[0].folder / "train.json").unlink()
    with pytest.raises(UserError, match="train.json cannot be read"):
        TalkerSplit(two_sets, "train")
    with pytest.raises(UserError, match="split must be one of train, val, test"):
        TalkerSplit(two_sets, "dev")
    with pytest.raises(UserError, match="at least one set"):
        TalkerSplit([], "train")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("annot0.npy", np.array([{}], object), "pickled objects, which are never read"),
        ("annot0.npy", noise(50, 5), "must hold 4 numbers a frame"),
        ("annot0.npy", np.full((50, 4), np.nan, np.float32), "NaN or infinite"),
        ("annot0.npy", b"\x93NUMPY\x01\x00", "damaged"),
        ("audio0.npy", noise(2, 16_000), r"must hold samples \[N\]"),
        ("audio0.npy", np.full(32_000, np.inf, np.float32), "NaN or infinite"),
        ("audio0.npy", None, "does not exist"),
    ],
)
def test_a_damaged_record_is_dropped_with_its_reason(two_sets, name, content, reason):
    path = two_sets[0].folder / name
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    split = TalkerSplit(two_sets, "train")
    with pytest.raises(SkippedEntry, match=reason):
        split.read(split.entries[0])


def test_an_array_that_claims_more_than_its_file_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", noise(10, 4))
    whole = (tmp_path / "a.npy").read_bytes()
    assert npy_shape(tmp_path / "a.npy") == read_npy_file(tmp_path / "a.npy").shape == (10, 4)
    (tmp_path / "a.npy").write_bytes(whole.replace(b"(10, 4)", b"(9999999999, 4)"))
    for read in (npy_shape, read_npy_file):
        with pytest.raises(UserError, match="a.npy holds 'array'"):
            read(tmp_path / "a.npy")


def test_templates_of_other_subjects_are_refused(two_sets):
    np.save(two_sets[0].folder / "id_template.npy", noise(1, 4))
    with pytest.raises(UserError, match=r"must hold finite templates \[2, ...\]"):
        _ = TalkerSplit(two_sets, "train").templates


def test_a_pca_of_a_set_is_written_and_read(tmp_path):
    pytest.importorskip("sklearn", reason="fits a PCA: pip install '.[pca]'")
    template = noise(1, 6)
    basis, weights = noise(2, 6), 5 * noise(100, 2)
    annotation = template + weights @ basis + 0.3
    one = write_set(tmp_path / "a", "one", [(0, 25, annotation, noise(64_000))], template, scale=0.5)
    assert write_pca(one.folder / "pca.npz", one, 2, 40, seed=0) == 100
    components, mean = read_pca(one.folder)
    assert components.shape == (2, 6) and components.dtype == mean.dtype == np.float32
    rows = 0.5 * (annotation - template) - mean
    np.testing.assert_allclose(rows @ components.T @ components, rows, atol=2e-3)
    with pytest.raises(UserError, match="num_components must be from 1 to the batch's 40 rows"):
        write_pca(one.folder / "pca.npz", one, 50, 40, seed=0)
    assert [path.name for path in one.folder.iterdir() if "tmp" in path.name] == []


def test_the_command_line_puts_a_pca_into_its_set(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="fits a PCA: pip install '.[pca]'")
    annotation, template, short = noise(60, 6), noise(1, 6), (0, 25, noise(5, 6), noise(64_000))
    one = write_set(tmp_path / "a", "one", [(0, 25, annotation, noise(64_000)), short], template)
    flags = ("--components", "2", "--batch_size", "30")
    assert run_unils("data", "pca", f"{one.folder}=0.5", *flags) == 0
    assert "2 components of 60 training frames" in capsys.readouterr().out
    components, mean = read_pca(one.folder)
    assert components.shape == (2, 6)
    np.testing.assert_allclose(mean, 0.5 * (annotation - template).mean(0), atol=1e-6)
    for wrong, told in (
        (("--out", tmp_path / "x.txt"), "must end in .npz"),
        (("--components", "40"), "num_components must be from 1"),
        (("--seed", "-1"), "--seed must not be negative"),
    ):
        assert run_unils("data", "pca", one.folder, *flags, *wrong) == 2
        assert told in capsys.readouterr().err
    assert run_unils("data", "pca", tmp_path / "nowhere") == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_pca_file_of_another_shape_is_refused(tmp_path):
    np.savez(tmp_path / "pca.npz", components_to_data=noise(2, 6), original_data_mean=noise(5))
    with pytest.raises(UserError, match="must hold components_to_data"):
        read_pca(tmp_path)


def test_a_pca_needs_a_full_batch():
    pytest.importorskip("sklearn", reason="fits a PCA: pip install '.[pca]'")
    with pytest.raises(UserError, match="a batch must be full"):
        fit_pca(noise(10, 4), 2, 20, np.arange(10))
