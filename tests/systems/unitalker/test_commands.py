"""`unils decode` and `unils evaluate` for UniTalker, on a tiny model with random weights."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file
from talker_data import write_set
from tiny_runs import run_unils

from data_pipelines.store.reader import Store
from data_pipelines.windows import whole_sequence
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.loading import load, pretrained
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.motion import JAW, MOTION_KIND, load_motion
from unils_jax.nn.params import abstract
from unils_jax.systems.unitalker.annotations import lip_errors, vertex_space
from unils_jax.systems.unitalker.inference import cross_fade, predict, speak, window_bounds
from unils_jax.systems.unitalker.model import UniTalkerConfig, frames_of, prepare_audio
from unils_jax.systems.unitalker.system import UNITALKER

VERTICES, WEIGHTS = "BIWI_23370_vertices", "3DETF_blendshape_weight"
KINDS, DIMS = (MOTION_KIND, VERTICES, WEIGHTS), {MOTION_KIND: 108, VERTICES: 12, WEIGHTS: 5}
ENCODER = Wav2Vec2Config(8, 1, 2, 16, conv_dims=(4,) * 7, pos_conv_kernel=4, pos_conv_groups=2)
SIZES = UniTalkerConfig(KINDS, tuple(DIMS.values()), (0, 4, 0), ENCODER, num_identities=6, width=8, pca_dim=3)
LIPS = np.array([0, 2])
pytestmark = pytest.mark.usefixtures("unoptimised")


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    """A file of ours with three annotations, one of them with a PCA, in the stand-in basis."""
    config = SIZES
    params = {
        p: rng(1).normal(0, 0.3, shape.shape).astype(np.float32)
        for p, shape in abstract(UNITALKER.builder(config))[1].items()
    }
    checkpoint = Checkpoint(config, params, "standin", {"checkpoint": "tiny", "stage": "unitalker"})
    path = tmp_path_factory.mktemp("talker") / "talker.safetensors"
    export(checkpoint, path)
    return path


def head(talker: Path, kind: str):
    """The model with the head of one annotation, as the commands load it: nothing compiles twice."""
    return load(talker).select(kind).model


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> tuple[Path, Path]:
    """A second of one voice and a little less of another."""
    folder = tmp_path_factory.mktemp("voices")
    for name, samples in (("a", 16_000), ("b", 14_000)):
        sound = rng(samples).normal(0, 0.1, samples).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", sound, 16_000, subtype="FLOAT")
    return folder / "a.wav", folder / "b.wav"


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def decode(checkpoint: Path, *flags: str | Path) -> int:
    return run_unils("decode", "--raw", "--checkpoint", checkpoint, *flags)


def test_both_people_speak_from_their_own_audio_into_a_motion_file(talker, tracks, tmp_path):
    out, (a, b) = tmp_path / "m.npz", tracks
    assert decode(talker, "--audio", a, "--audio2", b, "--raw", "--out", out) == 0
    file = load_motion(out)
    assert file.motion.shape == (2, 25, 108) and file.expression_basis == "standin"
    assert file.source["annotation"] == MOTION_KIND and file.source["subject"] is None
    padded = np.pad(sound(b), (0, 2_000))
    model = head(talker, MOTION_KIND)
    for motion, track in zip(file.motion, (sound(a), padded), strict=True):
        np.testing.assert_allclose(motion, speak(model, track, MOTION_KIND, 25, np.zeros(108)), atol=1e-5)


def test_a_subject_is_its_own_row_and_nobody_the_last(talker, tracks, tmp_path):
    found = []
    for subject in ((), ("--subject", "5"), ("--subject", "0")):
        assert decode(talker, "--audio", tracks[0], *subject, "--out", tmp_path / "m.npz") == 0
        found.append(load_motion(tmp_path / "m.npz").motion)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_vertices_and_weights_say_what_they_are(talker, tracks, tmp_path, caplog):
    out, face = tmp_path / "n.npz", rng(2).normal(0, 1, (4, 3)).astype(np.float32)
    np.save(tmp_path / "face.npy", face)
    flags = ("--audio", tracks[0], "--out", out, "--annotation")
    assert decode(talker, *flags, VERTICES, "--template", tmp_path / "face.npy") == 0
    file = np.load(out)
    expected = speak(head(talker, VERTICES), sound(tracks[0]), VERTICES, 25, face.reshape(-1))
    np.testing.assert_allclose(file["vertices"], expected.reshape(1, 25, 4, 3), atol=1e-5)
    assert (str(file["kind"]), float(file["fps"]), str(file["units"])) == (VERTICES, 25, "0.2 of BIWI's")
    assert json.loads(str(file["source"]))["template"] == str(tmp_path / "face.npy")
    assert decode(talker, *flags, WEIGHTS) == 0 and "displacements" not in caplog.text
    file = np.load(out)
    assert file["weights"].shape == (1, 30, 5) and float(file["fps"]) == 30
    assert decode(talker, *flags, VERTICES) == 0 and "displacements" in caplog.text
    np.testing.assert_allclose(np.load(out)["vertices"], (expected - face.reshape(-1)).reshape(1, 25, 4, 3), atol=1e-5)


@pytest.mark.slow
def test_long_audio_is_cut_into_cross_faded_windows(talker):
    audio = rng(3).normal(0, 0.1, 26 * 16_000).astype(np.float32)
    model = head(talker, WEIGHTS)
    found = speak(model, audio, WEIGHTS, 30, np.zeros(5))
    whole, pieces = prepare_audio(audio, normalize=True), []
    for first, last in window_bounds(len(audio)):
        window = prepare_audio(whole[first:last], normalize=True)
        pieces.append(predict(model, window, WEIGHTS, frames_of(last - first, 30.0), np.zeros(5)))
    assert len(pieces) == 2
    np.testing.assert_array_equal(found, cross_fade(pieces, 30))


@pytest.fixture
def published(talker, tmp_path) -> tuple[Path, Path]:
    """The file without its PCA, as the release publishes it, and the set that has it."""
    state, folder = load_file(talker), tmp_path / "set"
    folder.mkdir()
    arrays = {name: state[f"pca_layer_dict.{VERTICES}.{key}"] for name, key in PCA_KEYS}
    np.savez(folder / "pca.npz", **arrays)
    path = tmp_path / "published.safetensors"
    save_file({key: value for key, value in state.items() if not key.startswith("pca_layer_dict")}, path)
    path.with_suffix(".json").write_text(talker.with_suffix(".json").read_text())
    return path, folder


PCA_KEYS = (("components_to_data", "feat_to_data"), ("original_data_mean", "data_bias"))


def test_a_published_file_takes_the_pca_of_its_set_and_asks_for_it_only_where_it_is_needed(
    talker, published, tracks, tmp_path, capsys
):
    path, folder = published
    flags = ("--audio", tracks[0], "--annotation", VERTICES, "--out")
    assert decode(path, *flags, tmp_path / "a.npz") == 2
    assert f"leaves out the PCA of {VERTICES}; give its set" in capsys.readouterr().err
    assert decode(path, *flags, tmp_path / "a.npz", "--pca", folder) == 0
    assert decode(talker, *flags, tmp_path / "b.npz") == 0
    first, second = (np.load(tmp_path / name)["vertices"] for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(first, second)
    assert decode(path, "--audio", tracks[0], "--out", tmp_path / "m.npz") == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--annotation", "lips"), rf"--annotation must be one of {MOTION_KIND}, {VERTICES}.*got 'lips'"),
        (("--subject", "6"), "--subject must be from 0 to 5, got 6"),
        (("--style", "x.npz", "--batch", "2"), "--style, --batch is of UniLS"),
        (("--template", "x.npy"), "has 25 fps, no template and no PCA"),
        (("--annotation", WEIGHTS, "--template", "face.npy"), "must hold 5 finite numbers"),
        (("--annotation", WEIGHTS, "--pca", "."), "needs no PCA"),
        (("--annotation", WEIGHTS, "--video", "v.mp4"), "--video shows motion_108 alone"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    talker, tracks, tmp_path, monkeypatch, capsys, flags, told
):
    monkeypatch.chdir(tmp_path)
    np.save("face.npy", np.zeros(3))
    assert decode(talker, "--audio", tracks[0], "--out", "o.npz", *flags) == 2
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["face.npy"]


def test_another_model_refuses_unitalkers_flags(tracks, tmp_path, capsys):
    assert run_unils("decode", "--audio", tracks[0], "--out", tmp_path / "m.npz", "--subject", "1") == 2
    assert "--subject is of UniTalker" in capsys.readouterr().err


def evaluate(talker: Path, *flags: str | Path) -> int:
    return run_unils("evaluate", "--checkpoint", talker, *flags)


def test_a_store_is_scored_with_the_motion_of_each_persons_own_audio(talker, tiny_store, tmp_path, capsys):
    out = tmp_path / "report.json"
    flags = ("--data", tiny_store, "--limit", "1", "--out", out)
    assert evaluate(talker, *flags) == 0
    report = json.loads(out.read_text())
    settings = report["settings"]["protocol"]
    assert settings["identity"] == "the pivot" and "own audio alone" in settings["heard"]
    assert report["settings"]["seeds"] == [] and "style" not in settings
    item = whole_sequence(Store(str(tiny_store)).read("test", 0))
    motion = speak(head(talker, MOTION_KIND), item["audio"][0], MOTION_KIND, 25, np.zeros(108))
    errors = np.square(motion - item["motion"][0].astype(np.float32)).mean(0)
    assert report["metrics"]["dualtalk/mse/expression"]["mean"] == pytest.approx(errors[:50].mean(), rel=1e-3)
    assert report["metrics"]["dualtalk/mse/jaw"]["mean"] == pytest.approx(errors[JAW].sum() / 3, rel=1e-3)
    assert evaluate(talker, *flags, "--seeds", "2") == 2
    assert "UniTalker draws nothing" in capsys.readouterr().err


@pytest.fixture
def sets(tmp_path) -> dict[str, str]:
    """Two sets of seconds, three and two subjects: all rows but the pivot; and the lips of the first kind."""
    written = {}
    for kind, fps, subjects in ((VERTICES, 25, 3), (WEIGHTS, 30, 2)):
        records = [
            (
                subject % subjects,
                fps,
                rng(i).normal(0, 0.3, (fps, DIMS[kind])).astype(np.float32),
                rng(9 + i).normal(0, 0.1, 16_000).astype(np.float32),
            )
            for i, subject in enumerate((1, 2, 0))
        ]
        records.append((0, fps, np.zeros((5, DIMS[kind]), np.float32), np.zeros(8_000, np.float32)))  # too short
        write_set(tmp_path / kind, kind, records, rng(4).normal(0, 1, (subjects, DIMS[kind])))
        written[kind] = f"{tmp_path / kind}=0.5"
    (tmp_path / "resources").mkdir()
    np.save(tmp_path / "resources" / "04_BIWI_mouth_idx.npy", LIPS)
    return written


def test_lip_errors_per_annotation_are_means_over_records_of_the_true_subjects(talker, sets, tmp_path, caplog):
    out, resources = tmp_path / "lips.json", tmp_path / "resources"
    assert evaluate(talker, "--sets", sets[VERTICES], "--resources", resources, "--out", out) == 0
    # Of six rows the first set alone has three: whose they are is not known.
    assert json.loads(out.read_text())["settings"]["identities"] == "the pivot"
    assert "all people are the pivot" in caplog.text
    assert (
        evaluate(talker, "--sets", *sets.values(), "--resources", resources, "--out", out) == 2
    )  # no assets of the second kind
    np.savez(resources / "EmoTalk.npz", blendshape=np.full((5, 4, 3), 0.5), meanshape=np.zeros((4, 3)))
    np.save(resources / "03_emo_talk_mouth_idx.npy", LIPS)
    assert evaluate(talker, "--sets", *sets.values(), "--resources", resources, "--out", out) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["identities"] == "as annotated"
    assert report["data"] == {"records": 6, "left_out_as_short": 2}
    assert set(report["metrics"]) == {VERTICES, WEIGHTS} == set(report["per_set"])
    errors, still, model = [], [], load(talker).select(VERTICES, WEIGHTS).model
    for i, subject in enumerate((1, 2, 0)):
        folder = tmp_path / VERTICES
        template = 0.5 * np.load(folder / "id_template.npy")[subject]
        truth, audio = 0.5 * np.load(folder / f"annot{i}.npy"), np.load(folder / f"audio{i}.npy")
        audio = prepare_audio(audio, normalize=True)
        found = predict(model, audio, VERTICES, len(truth), template.astype(np.float32), subject)
        for shown, into in ((found, errors), (np.broadcast_to(template, truth.shape), still)):
            pair = (jnp.asarray(x[None], jnp.float32) for x in (shown, truth))
            into.append([float(value[0]) for value in lip_errors(vertex_space(LIPS), *pair)])
    for name, column in (("LVE", 0), ("LVD", 1)):
        figures = report["metrics"][VERTICES][name]
        assert figures["mean"] == pytest.approx(np.mean(errors, 0)[column], rel=1e-4)
        assert figures["still"] == pytest.approx(np.mean(still, 0)[column], rel=1e-5)
        assert figures["interval"][0] <= figures["mean"] <= figures["interval"][1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "names no sets; give them with --sets"),
        (("--sets", "nowhere"), "nowhere/test.json cannot be read"),
        (("--sets", "x", "--data", "y"), "--data names a store, --sets and --resources"),
        (("--seeds", "2"), "draws nothing"),
    ],
)
def test_mistakes_of_an_evaluation_on_sets_are_told(talker, tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    assert evaluate(talker, *flags) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_other_models_are_scored_on_stores_alone(tmp_path, capsys):
    assert run_unils("evaluate", "--checkpoint", pretrained(), "--out", tmp_path / "r.json") == 2
    assert "give the store with --data" in capsys.readouterr().err


def test_a_head_that_is_not_there_is_named(talker, sets, tmp_path, capsys):
    folder = Path(sets[WEIGHTS].rpartition("=")[0])
    for split in ("train", "test"):
        text = (folder / f"{split}.json").read_text()
        (folder / f"{split}.json").write_text(text.replace(WEIGHTS, "visemes"))
    assert evaluate(talker, "--sets", sets[WEIGHTS], "--out", tmp_path / "r.json") == 2
    assert f"has no head for visemes; it knows {MOTION_KIND}, {VERTICES}, {WEIGHTS}" in capsys.readouterr().err
