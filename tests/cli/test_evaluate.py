"""`unils evaluate` from the command line: checkpoints and motion files, both bases, and mistakes in one line."""

import dataclasses
import json

import numpy as np
import pytest
from flame_golden import golden_arrays
from tiny_runs import quick_compiles

from data_pipelines.store.reader import Store, write_store
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.checkpoints.loading import load
from unils_jax.cli.main import main
from unils_jax.evaluation.protocols import PROTOCOLS, conversation_of
from unils_jax.inference.conversations import decode
from unils_jax.motion import save_motion

FILES = ("report.json", "report.md", "report.html")


def records(basis: str):
    """Two training conversations, one of validation, three of test, the last too short to score."""
    for i, split in enumerate(("train", "val", "test", "test", "test")):
        record = make_conversation(SynthConfig(minutes=0.2), 0, i)
        yield split, dataclasses.replace(record, expression_basis=basis)
    cut = {"motion": record.motion[:, :80], "audio": record.audio[:, : 80 * 640]}
    cut["speech_mask"] = record.speech_mask[:, :80]
    yield "test", dataclasses.replace(record, name="short", expression_basis=basis, **cut)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for basis in ("standin", "flame"):
        write_store(folder / basis, records(basis))
    return folder


def run(*flags) -> int:
    return main(["evaluate", *map(str, flags)])


def read(path) -> dict:
    return json.loads(path.read_text())


def write_motion(folder, store, change=lambda motion: motion, basis=None):
    """Motion files of the store's test split: the truth, changed."""
    folder.mkdir()
    store = Store(store)
    for i, entry in enumerate(store.records("test")):
        motion = change(store.read("test", i).motion.astype(np.float32))
        basis = basis or store.expression_basis
        save_motion(folder / f"{entry['name']}.npz", motion, expression_basis=basis, source={"by": "hand"})
    return folder


def test_a_checkpoint_is_scored_and_the_same_seed_gives_the_same_report(tmp_path, stores, tiny_runs, capsys):
    reports = []
    for name in ("one", "two"):
        out = tmp_path / name / "report.json"
        flags = ("--data", stores / "standin", "--seeds", "2", "--limit", "2", "--out", out)
        assert run("--checkpoint", tiny_runs.workdirs["dialogue"], *flags) == 0
        assert {path.name for path in out.parent.iterdir()} == set(FILES)
        reports.append(read(out))
    assert capsys.readouterr().out.count("\n") == 2  # one line each
    for report in reports:
        assert report.pop("time")["seconds"] > 0 and report.pop("host")["cpus"] >= 1
    assert reports[0] == reports[1]
    report = reports[0]
    assert report["settings"]["seeds"] == [42, 43]
    assert report["settings"]["protocol"]["name"] == "unils-release"
    assert len(report["per_conversation"]) == report["data"]["conversations"] == 2
    lve = report["metrics"]["unils/speaking/LVE"]
    assert lve["mean"] > 0 and lve["interval"][0] <= lve["mean"] <= lve["interval"][1] and lve["seed_std"] >= 0
    assert report["metrics"]["behaviour/both/blinks_per_minute"]["truth"] > 0
    assert any("stand-in head" in note for note in report["notes"])


@pytest.mark.slow
def test_bfloat16_says_what_share_of_the_bits_it_changes(tmp_path, stores, tiny_runs, capsys):
    flags = ("--data", stores / "standin", "--limit", "1", "--dtype", "bfloat16", "--out", tmp_path / "report.json")
    assert run("--checkpoint", tiny_runs.workdirs["dialogue"], *flags) == 0
    changed = read(tmp_path / "report.json")["settings"]["bits_changed"]
    assert 0 < changed < 0.05 and f"{changed:.2%} of the bits changed by the dtype" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_checkpoint_decodes_scores_alike_as_motion_files(tmp_path, stores, tiny_runs):
    protocol = PROTOCOLS["unils-clean"]
    store, model = Store(stores / "standin"), load(tiny_runs.workdirs["dialogue"]).model
    folder = tmp_path / "motion"
    for i, entry in enumerate(store.records("test")[:1]):
        conversation = conversation_of(store.read("test", i), protocol)
        motion = decode(model, *conversation.audio, style=conversation.style, seed=42)
        save_motion(folder / f"{entry['name']}.npz", motion, expression_basis="standin", source={})
    flags = ("--data", stores / "standin", "--protocol", "unils-clean", "--limit", "1")
    assert run("--checkpoint", tiny_runs.workdirs["dialogue"], *flags, "--out", tmp_path / "a.json") == 0
    assert run("--motion", folder, *flags, "--out", tmp_path / "b.json") == 0
    first, second = read(tmp_path / "a.json"), read(tmp_path / "b.json")
    assert first["metrics"] == second["metrics"] and first["pictures"] == second["pictures"]


def test_the_truth_as_motion_files_scores_zero_without_centring_by_the_user(tmp_path, stores):
    folder = write_motion(tmp_path / "truth", stores / "standin")
    out = tmp_path / "report.json"
    assert run("--motion", folder, "--data", stores / "standin", "--protocol", "unils-clean", "--out", out) == 0
    report = read(out)
    for name, entry in report["metrics"].items():
        if name.startswith("unils"):
            # The truth is centred in float16, as the release does; the motion file's in float32.
            assert entry["mean"] == pytest.approx(0, abs=0.01), name
        if name.startswith("behaviour") and entry.get("truth") is not None:
            assert entry["mean"] == pytest.approx(entry["truth"], rel=0.02, abs=1e-6), name
    assert report["metrics"]["fid/both/expression_fid"]["mean"] == pytest.approx(0, abs=1e-6)
    assert report["settings"]["source"] == {"by": "hand"}
    assert [item["name"] for item in report["skipped"]] == ["short"]


@pytest.mark.slow
def test_damage_is_ordered_in_every_role(tmp_path, stores):
    def noisy(motion: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(size=motion.shape) * motion.std(axis=1, keepdims=True)
        return motion + 0.05 * noise.astype(np.float32)

    def scaled(factor: float):
        return lambda motion: (
            motion.mean(1, keepdims=True) + np.float32(factor) * (motion - motion.mean(1, keepdims=True))
        )

    scores = []
    for i, change in enumerate((lambda motion: motion, noisy, scaled(0.5), scaled(0.0))):
        folder = write_motion(tmp_path / str(i), stores / "standin", change)
        out = tmp_path / f"{i}.json"
        assert run("--motion", folder, "--data", stores / "standin", "--limit", "1", "--out", out) == 0
        scores.append({name: entry["mean"] for name, entry in read(out)["metrics"].items()})
    for role in ("speaking", "listening"):
        fids = [f"fid/{role}/{name}" for name in ("expression_fid", "pose_fid")]
        for name in (*(f"unils/{role}/{name}" for name in ("FDD", "PDD", "JDD")), *fids):
            values = [score[name] for score in scores]
            assert values == sorted(values) and len(set(values)) == 4, (name, values)


def test_flame_motion_needs_the_flame_file_for_vertices(tmp_path, stores, golden):
    store, out = stores / "flame", tmp_path / "report.json"
    folder = write_motion(tmp_path / "motion", store, lambda motion: 0.9 * motion)
    np.savez(tmp_path / "flame.npz", **golden_arrays(golden))
    assert run("--motion", folder, "--data", store, "--limit", "1", "--out", out) == 0
    bare = read(out)
    assert "unils/speaking/LVE" not in bare["metrics"] and bare["settings"]["mesh"] is None
    assert any("LVE, MHD and FDD are left out" in note for note in bare["notes"])
    assert any("Blinks are left out" in note for note in bare["notes"])
    flags = ("--flame", tmp_path / "flame.npz", "--limit", "1", "--out", out)
    assert run("--motion", folder, "--data", store, *flags) == 0
    report = read(out)
    assert report["metrics"]["unils/speaking/LVE"]["mean"] > 0 and report["settings"]["mesh"] == "FLAME"
    same = {name: entry for name, entry in report["metrics"].items() if name in bare["metrics"]}
    assert same == bare["metrics"]


def test_a_release_file_asks_for_its_audio_encoder(tmp_path, stores, release, capsys):
    assert run("--checkpoint", release.dialogue, "--data", stores / "flame", "--out", tmp_path / "r.json") == 2
    assert "--audio_encoder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_release_file_is_scored_with_its_audio_encoder(tmp_path, stores, release):
    flags = ("--data", stores / "flame", "--limit", "1", "--out", tmp_path / "r.json")
    with quick_compiles():
        assert run("--checkpoint", release.dialogue, "--audio_encoder", release.encoder, *flags) == 0
    report = read(tmp_path / "r.json")
    assert report["metrics"]["unils/listening/PDD"]["mean"] > 0
    assert report["settings"]["audio_encoder"] == str(release.encoder)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--protocol", "fast"], "--protocol must be one of unils-release, unils-clean"),
        (["--seeds", "0", "--limit", "0"], "--seeds must be at least 1, got 0; --limit must be at least 1"),
        (["--seeds", "2"], "--motion holds one motion a record"),
        (["--split", "tset"], "split must be one of"),
        (["--out", "report.txt"], "must end in .json"),
        (["--flame", "generic_model.pkl"], "leave --flame away"),
        (["--fps", "0"], "--fps must be 1 to 1000"),
        (["--keys", "mouth=x"], "--keys must be PART=NAME"),
        (["--checkpoint", "x"], "not allowed with argument"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, stores, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "motion").mkdir()
    try:
        status = run("--motion", tmp_path / "motion", "--data", stores / "standin", *flags)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert told in error and error.strip().count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["motion"]


def test_missing_and_foreign_motion_files_are_named(tmp_path, stores, capsys):
    store, out = stores / "standin", tmp_path / "report.json"
    folder = write_motion(tmp_path / "motion", store)
    victim = folder / "synthetic_0_00003.npz"
    victim.rename(tmp_path / "away.npz")
    assert run("--motion", folder, "--data", store, "--out", out) == 2
    assert "lacks 1 of 3 motion files: synthetic_0_00003.npz" in capsys.readouterr().err
    foreign = write_motion(tmp_path / "foreign", store, basis="flame")
    assert run("--motion", foreign, "--data", store, "--out", out) == 2
    assert "of the 'flame' expression basis" in capsys.readouterr().err
    victim.write_bytes(b"no motion")
    assert run("--motion", folder, "--data", store, "--out", out) == 2
    assert "synthetic_0_00003.npz is no .npz archive" in capsys.readouterr().err
    assert not out.exists()


def test_a_stage_without_audio_is_refused(tmp_path, stores, tiny_runs, capsys):
    flags = ("--data", stores / "standin", "--out", tmp_path / "r.json")
    assert run("--checkpoint", tiny_runs.workdirs["prior"], *flags) == 2
    assert "a dialogue or dualtalk or unitalker is needed" in capsys.readouterr().err


def test_a_split_with_nothing_to_score_is_refused(tmp_path, tiny_store, capsys):
    folder = tmp_path / "motion"
    folder.mkdir()
    store = tmp_path / "store"
    write_store(store, [(split, r) for split, r in records("standin") if split != "test" or r.name == "short"])
    assert run("--motion", folder, "--data", store, "--out", tmp_path / "r.json") == 2
    assert "holds no conversation to score; short: 80 frames are left" in capsys.readouterr().err
