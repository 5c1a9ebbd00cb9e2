"""Motion of other systems: parameters and vertices score as they are, and what they lack is never made up."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from documented import commands
from flame_golden import golden_arrays
from foreign_data import talking, write_wav
from scipy.spatial.transform import Rotation
from tiny_runs import run_unils
from tracked import TRACKERS, deca, rotvec, truth, write_clip

from data_pipelines.sources.tracking import TrackOptions
from data_pipelines.store.reader import Store, write_store
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from data_pipelines.tracks.mapping import parse_keys
from unils_jax.errors import UserError
from unils_jax.evaluation.metrics import score_person
from unils_jax.evaluation.motion_files import FolderMotion
from unils_jax.evaluation.protocols import PROTOCOLS, Conversation, people_to_score
from unils_jax.evaluation.unils_metrics import MESH_METRICS, Mesh
from unils_jax.motion import HEAD, JAW, save_motion

RELEASE, FRAMES = PROTOCOLS["unils-release"], 240
RNG = np.random.default_rng(7)
REST = RNG.normal(size=(120, 3)) * 0.08
# The upper face moves little, and nothing turns it.
BASIS = RNG.normal(size=(108, 120, 3)) * np.where(np.arange(120) < 60, 4e-4, 5e-5)[:, None]


def head(motion: np.ndarray) -> np.ndarray:
    """Vertices in metres of a head of 120 that channels move linearly, those of the head's rotation not at all."""
    still = np.array(motion, np.float64)
    still[:, HEAD] = 0
    return REST + np.einsum("tc,cvx->tvx", still, BASIS)


pytestmark = pytest.mark.usefixtures("stores")
STORES: dict[str, Store] = {}
MESH = Mesh(head, np.arange(0, 8), np.arange(60, 120))


def conversation(motion: np.ndarray) -> Conversation:
    """A dialogue whose truth is given for both people."""
    both = np.stack([motion, motion]).astype(np.float32)
    speaking = np.arange(len(motion)) // 30 % 2 == np.array([[0], [1]])
    return Conversation("a", both, both[:, :100], None, speaking, np.ones((2, 108), bool), both)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each basis."""
    folder = tmp_path_factory.mktemp("stores")
    record = make_conversation(SynthConfig(minutes=0.2), 0, 0)
    for basis in ("flame", "standin"):
        write_store(folder / basis, [("test", replace(record, expression_basis=basis))])
    STORES.update({basis: Store(folder / basis) for basis in ("flame", "standin")})
    return folder


def opened(folder, basis="flame", mesh=MESH, **options) -> tuple:
    """The folder's motion, and what reads it."""
    motion = FolderMotion(folder, STORES[basis], TrackOptions(**options))
    return motion, motion.open(RELEASE, ["a"], mesh)


def scores(folder, true: np.ndarray, **options) -> tuple[dict, dict, list[str]]:
    """Figures of the first person, those of the truth, and the notes."""
    motion, read = opened(folder, **options)
    dialogue = conversation(true)
    (person,) = people_to_score(dialogue, read(dialogue, 0), RELEASE)
    return *score_person(person, options.get("mesh", MESH), "flame"), motion.notes()


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("fps", [25.0, 30.0])
def test_parameters_of_any_layout_are_read_and_what_they_lack_is_marked(tmp_path, name, fps):
    arrays, channels = TRACKERS[name]
    if name == "mica":
        write_clip(tmp_path, "a", arrays(truth(8, fps)), "frame")
    else:
        write_clip(tmp_path, "a", {**arrays(truth(8, fps)), "fps": np.float64(fps)})
    motion, read = opened(tmp_path, fps=fps if name == "mica" else None)
    given, true = read(conversation(truth(8, 25)), 0), truth(8, 25)
    observed = np.isin(np.arange(108), channels)
    np.testing.assert_array_equal(given.observed[0], observed)
    # At 30 frames a second every sixth frame has a time of ours; others are interpolated.
    np.testing.assert_allclose(given.motion[0][::5, observed], true[::5, observed], atol=1e-5)
    assert not given.motion[0][:, ~observed].any() and given.motion.shape == (1, 200, 108)
    lacks = [note for note in motion.notes() if "lack" in note]
    assert (not lacks) == observed.all() and ("eyes" in str(lacks)) == (name in ("deca", "emoca", "smirk", "emica"))
    assert ("50 of 100 channels of expression" in str(lacks)) == (name in ("deca", "emoca", "smirk"))


def test_figures_are_of_the_channels_that_both_have(tmp_path):
    true, damaged = truth(9.6, 25), 0.8 * truth(9.6, 25)
    write_clip(tmp_path, "a_speaker1", deca(damaged))
    figures, of_truth, notes = scores(tmp_path, true)
    cut = [np.where(np.isin(np.arange(108), TRACKERS["deca"][1]), x, 0) for x in (damaged, true)]
    squared = ((head(cut[0]) - head(cut[1])) ** 2).sum(-1)
    assert figures["unils/both/LVE"] == pytest.approx(1000 * np.sqrt(squared[:, :8].max(1).mean()), rel=1e-4)
    deviation = true[:, JAW].std(ddof=1)
    assert figures["unils/both/JDD"] == pytest.approx(20 * deviation, rel=1e-4)
    eyes = {name for name in figures if "eyes" in name or "gaze" in name}
    assert eyes and all(np.isnan(figures[name]) for name in eyes)
    assert np.isnan(of_truth["behaviour/both/spread_eyes"]) and np.isfinite(of_truth["behaviour/both/spread_jaw"])
    assert "take" in str(notes) and "25 frames/s" in str(notes)


def test_a_part_that_is_zero_from_end_to_end_was_not_predicted(tmp_path):
    """DiffPoseTalk without a head writes zeros; they are no still head."""
    motion = truth(9.6, 25)
    motion[:, HEAD] = 0
    write_clip(tmp_path, "a", deca(motion))
    figures, _, notes = scores(tmp_path, truth(9.6, 25))
    assert np.isnan(figures["unils/both/PDD"]) and figures["unils/both/JDD"] == pytest.approx(0, abs=1e-4)
    assert "head, eyes" in str(notes)


def test_an_array_without_names_is_taken_apart_by_keys(tmp_path):
    """56 channels as some systems have them: expression, jaw, head."""
    true = truth(9.6, 25)
    np.save(tmp_path / "a.npy", np.concatenate([true[:, :50], rotvec(true, "jaw"), rotvec(true, "head")], axis=1))
    figures, _, _ = scores(tmp_path, true, keys=parse_keys("expression=array[0:50],jaw=array[50:53],head=array[53:56]"))
    for name in ("LVE", "PDD", "JDD"):
        assert figures[f"unils/both/{name}"] == pytest.approx(0, abs=1e-3)


def test_frames_in_pickles_are_a_clip(tmp_path):
    """As Learning to Listen leaves them, a pickle a frame with one row of each array."""
    true = truth(9.6, 25)
    (tmp_path / "a").mkdir()
    for i, row in enumerate(deca(true)["exp"]):
        frame = {"exp": row[None], "pose": deca(true)["pose"][i : i + 1], "prob": np.zeros(200)}
        (tmp_path / f"a/{i + 1:08d}.pkl").write_bytes(pickle.dumps(frame))
    figures, _, _ = scores(tmp_path, true)
    assert figures["unils/both/LVE"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("form", ["[T, V, 3]", "[T, 3 V]", "named", "twice as fast"])
def test_vertices_have_the_errors_of_the_parameters_that_they_were_made_from(tmp_path, form):
    true, damaged = truth(9.6, 25), 0.7 * truth(9.6, 25)
    save_motion(tmp_path / "of/a.npz", damaged[None], expression_basis="flame", source={})
    expected, _, _ = scores(tmp_path / "of", true)
    vertices = head(damaged).astype(np.float32)
    (tmp_path / "in").mkdir()
    if form == "named":
        np.savez(tmp_path / "in/a.npz", vertices=vertices, faces=np.zeros((5, 3), np.int64), fps=25.0)
    elif form == "twice as fast":
        between = 0.5 * (vertices + np.concatenate([vertices[1:], vertices[-1:]]))
        np.savez(tmp_path / "in/a.npz", verts=np.stack([vertices, between], 1).reshape(-1, 120, 3), fps=50)
    else:
        np.save(tmp_path / "in/a.npy", vertices if form == "[T, V, 3]" else vertices.reshape(len(vertices), -1))
    figures, of_truth, notes = scores(tmp_path / "in", true)
    for name, value in figures.items():
        if name.rpartition("/")[2] in MESH_METRICS:
            assert value == pytest.approx(expected[name], rel=1e-4), name
        else:
            assert np.isnan(value), name
    assert "LVE, MHD and FDD are of them, all else is left out" in str(notes)


def turned(vertices: np.ndarray) -> np.ndarray:
    turn = Rotation.from_rotvec([0, 0.3, 0]).as_matrix()
    return np.concatenate([vertices[:100], vertices[100:] @ turn.T])


STILL = head(0.5 * truth(8, 25)).astype(np.float32)
GOOD = deca(truth(8, 25))
FAULTS = {
    "turned by up to 17": {"a.npy": turned(STILL).astype(np.float32)},
    "moved by up to 200 mm": {"a.npy": STILL + np.float32([0, 0.2, 0])},
    "1e+03 times as large as the head; they must be in metres": {"a.npy": 1000 * STILL},
    "holds 119 vertices, the head has 120": {"a.npy": STILL[:, :119]},
    "must be finite floating numbers": {"a.npy": np.where(np.arange(200)[:, None, None] == 7, np.nan, STILL)},
    "the first without motion is 9": {"a.npz": {**GOOD, "exp": np.where(np.arange(200)[:, None] == 9, np.nan, 0.1)}},
    "must have as many frames": {"a.npz": {**GOOD, "pose": np.zeros((199, 6))}},
    "nothing but zeros": {"a.npz": {"exp": np.zeros((200, 50)), "pose": np.zeros((200, 6))}},
    "no array has a name of the face": {"a.npz": {"landmarks": np.zeros((200, 68))}},
    "fps must be 1 to 1000": {"a.npy": STILL, "fps": 0.0},
    "both hold the motion of a; keep one": {"a.npy": STILL, "a.npz": GOOD},
    "lacks 1 of 1 motion files: a.npz": {"b.npy": STILL},
}


@pytest.mark.parametrize("why", FAULTS)
def test_every_fault_is_named_with_its_file(tmp_path, why):
    files = dict(FAULTS[why])
    fps = files.pop("fps", None)
    for name, value in files.items():
        np.savez(tmp_path / name, **value) if isinstance(value, dict) else np.save(tmp_path / name, value)
    with pytest.raises(UserError) as told:
        _, read = opened(tmp_path, fps=fps)
        read(conversation(truth(8, 25)), 0)
    assert why in str(told.value) and (str(tmp_path) in str(told.value) or "no array" in why)
    assert "\n" not in str(told.value)


def test_vertices_need_a_head_and_parameters_a_store_of_flame(tmp_path):
    np.save(tmp_path / "a.npy", STILL)
    with pytest.raises(UserError, match=r"a.npy: it holds vertices.* give --flame"):
        opened(tmp_path, mesh=None)[1](conversation(truth(8, 25)), 0)
    write_clip(tmp_path / "in", "a", GOOD)
    with pytest.raises(UserError, match="of the 'flame' expression basis, the store .* of 'standin'"):
        opened(tmp_path / "in", basis="standin")[1](conversation(truth(8, 25)), 0)


def test_the_documented_commands_score_another_system(tmp_path, monkeypatch, golden):
    """As in docs/evaluation.md: recordings of two people become a store, the other system's files are scored on it."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "flame.npz", **golden_arrays(golden))
    for name in ("one", "two"):
        for k in (1, 2):
            motion = truth(10, 25, 10 * k + len(name))
            jaw, sound, _ = talking(250, k)
            motion[:, JAW] = jaw[:, None]
            write_clip(
                tmp_path / "tracked", f"{name}_speaker{k}", {**TRACKERS["vhap"][0](motion), "fps": np.float64(25)}
            )
            write_wav(tmp_path / f"tracked/{name}_speaker{k}.wav", sound)
            turns = [f"SPEAKER {name} 1 {s} 2 <NA> <NA> {1 + s // 2 % 2} <NA> <NA>\n" for s in (0, 2, 4, 6, 8)]
            (tmp_path / f"tracked/{name}.rttm").write_text("".join(turns))
            # DiffPoseTalk's names; its face moves by nine tenths.
            pose = np.concatenate([rotvec(0.9 * motion, "head"), rotvec(0.9 * motion, "jaw")], axis=1)
            theirs = {"exp": 0.9 * motion[:, :50], "pose": pose, "shape": np.ones((250, 100))}
            write_clip(tmp_path / "theirs", f"{name}_speaker{k}", theirs)
    convert, score = commands("evaluation.md", "Any system's motion")
    assert run_unils(*convert) == 0
    assert run_unils(*(word.replace("generic_model.pkl", "flame.npz") for word in score)) == 0
    report = json.loads((tmp_path / "theirs.json").read_text())
    assert report["data"]["conversations"] == 2 and report["settings"]["protocol"]["name"] == "unils-clean"
    metrics = {name: entry["mean"] for name, entry in report["metrics"].items()}
    assert metrics["unils/speaking/LVE"] > 0 and metrics["behaviour/both/spread_eyes"] is None
    entry = report["metrics"]["behaviour/both/spread_jaw"]
    assert entry["mean"] == pytest.approx(0.9 * entry["truth"], rel=1e-2)
    assert "lack 50 of 100 channels of expression, eyes" in str(report["notes"])
    assert "deca" in str(report["notes"])
