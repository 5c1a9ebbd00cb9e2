"""Exported files: bit-exact both ways, the release's keys and config tree, nothing half written, a card beside."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import STAGES, run_unils

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export, make_meta_cfg, release_contents
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.model_card import model_card
from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.training.config import run_config

RELEASED = json.loads((Path(__file__).parents[1] / "support" / "meta_cfg.json").read_text())
NEEDS_TORCH = "needs PyTorch: pip install '.[torch]'"


def same(first: dict, second: dict) -> bool:
    """Equal bit for bit."""
    return set(first) == set(second) and all(
        np.asarray(first[p]).tobytes() == np.asarray(second[p]).tobytes() for p in first
    )


@pytest.fixture(params=["pt", "safetensors"])
def suffix(request):
    if request.param == "pt":
        pytest.importorskip("torch", reason=NEEDS_TORCH)
    return request.param


def paper_run(name: str):
    config = load_config(name)
    config.data.store = "data/set"
    return run_config(config.to_dict())


@pytest.mark.parametrize("name", RELEASED)
def test_the_config_tree_is_the_release_s(name):
    run = paper_run(name)
    checkpoint = Checkpoint(run.model, {}, "flame", {"checkpoint": name}, run=run.to_dict())
    tree = make_meta_cfg(replace(checkpoint, config=replace(run.model, lora=None)))
    assert tree.pop("EXPRESSION_BASIS") == "flame"
    if name.startswith("codec"):  # the release's inference code writes into it, whatever the model
        assert tree["MODEL"].pop("VAE_CONFIG") == RELEASED[name.replace("codec", "prior")]["MODEL"]["VAE_CONFIG"]
    released = {key: value for key, value in RELEASED[name].items() if not key.startswith("WANDB")}
    # The tree of some stages leaves out what the others have.
    assert {key: tree[key] for key in released} == released | {
        "TRAINER": released["TRAINER"] | {"CHECK_INTERVAL": run.checkpoint_every}
    }
    assert set(tree) - set(released) <= {"EXP_STR", "TIME_STR", "DUMP_DIR"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_workdir_returns_from_a_file_bit_for_bit(tiny_runs, tmp_path, suffix, stage, capsys, caplog):
    out = tmp_path / f"model.{suffix}"
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs[stage], "--out", out) == 0
    assert capsys.readouterr().out.count("\n") == 1
    ours, again = load(tiny_runs.workdirs[stage]), load(out)
    assert again.config == ours.config and again.expression_basis == ours.expression_basis == "standin"
    assert same(again.params, ours.params)
    assert ("log-mel" in caplog.text) == (stage == "dialogue")
    assert "basis" in caplog.text
    expected = {f"{out.name}.md", out.name} | ({"model.json"} if suffix == "safetensors" else set())
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_release_file_returns_from_ours_bit_for_bit(release, tmp_path, suffix, stage):
    source, out = getattr(release, stage), tmp_path / f"again.{suffix}"
    assert run_unils("export", "--checkpoint", source, "--out", out) == 0
    first, again = load(source), load(out)
    assert same(first.params, again.params)
    assert again.meta_cfg == first.meta_cfg


@pytest.mark.parametrize("stage", STAGES)
def test_the_file_s_keys_and_values_are_the_golden_s(golden, release, stage):
    weights = golden({"codec": "codec", "prior": "freegen", "dialogue": "loragen"}[stage]).weights
    exported = release_contents(load(getattr(release, stage), audio_encoder=str(release.encoder)))
    assert same(exported.state, weights)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in exported.state.values())


def test_the_same_export_has_the_same_bytes(tiny_runs, tmp_path, suffix):
    outs = [tmp_path / name / f"x.{suffix}" for name in "abc"]
    sources = [tiny_runs.workdirs["dialogue"], tiny_runs.workdirs["dialogue"], outs[0]]
    for source, out in zip(sources, outs, strict=True):
        assert run_unils("export", "--checkpoint", source, "--out", out) == 0
    assert len({out.read_bytes() for out in outs}) == 1


def test_float16_halves_the_bytes_and_comes_back_as_it_was_rounded(tiny_runs, tmp_path, suffix):
    whole, half = tmp_path / f"whole.{suffix}", tmp_path / f"half.{suffix}"
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["dialogue"], "--out", whole) == 0
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["dialogue"], "--out", half, "--float16") == 0
    assert 0.45 < half.stat().st_size / whole.stat().st_size < 0.7
    rounded = {path: value.astype(np.float16).astype(np.float32) for path, value in load(whole).params.items()}
    assert same(load(half).params, rounded)


def test_weights_that_float16_cannot_hold_are_refused(tiny_runs, tmp_path):
    checkpoint = load(tiny_runs.workdirs["codec"])
    params = checkpoint.params | {"codec/motion_mean": np.full(108, 1e5, np.float32)}
    with pytest.raises(UserError, match="not finite"):
        export(replace(checkpoint, params=params), tmp_path / "x.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_an_exported_prior_is_a_parent_like_its_workdir(tiny_runs, tmp_path):
    out = tmp_path / "prior.safetensors"
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["prior"], "--out", out) == 0
    arguments = ("--config", tiny_runs.configs["dialogue"], "--workdir", tmp_path / "run", "--parent", out, "--dry_run")
    assert run_unils("train", *arguments) == 0


def test_averaged_weights_are_the_default_and_raw_ones_a_choice(tiny_runs, tmp_path):
    workdir = tiny_runs.workdirs["codec"]
    for name, flags in (("ema", ()), ("raw", ("--raw",))):
        out = tmp_path / f"{name}.safetensors"
        assert run_unils("export", "--checkpoint", workdir, "--out", out, *flags) == 0
    ema, raw = (load(tmp_path / f"{name}.safetensors").params for name in ("ema", "raw"))
    assert same(ema, load(workdir).params) and same(raw, load(workdir, raw=True).params)
    assert not same(ema, raw)
    assert "without averaging" in (tmp_path / "raw.safetensors.md").read_text()
    assert "without averaging" not in (tmp_path / "ema.safetensors.md").read_text()


def test_a_step_s_folder_exports_that_step(tiny_runs, tmp_path):
    out = tmp_path / "x.safetensors"
    step = tiny_runs.workdirs["codec"] / "checkpoints" / "3"
    assert run_unils("export", "--checkpoint", step, "--out", out) == 0
    assert same(load(out).params, load(step).params)
    card = out.with_name(f"{out.name}.md").read_text()
    assert "3 of 6 steps" in card and "| val | 3 | loss |" in card and "| 6 |" not in card


def test_the_card_tells_data_steps_metrics_loading_licence_and_care(tiny_runs):
    checkpoint = load(tiny_runs.workdirs["dialogue"])
    card = model_card(checkpoint, "x.pt", license="CC BY 4.0")
    for text in ("`store`", "not FLAME's", "6 of 6 steps", "| val | 6 | loss |", "log-mel", "CC BY 4.0", "consent"):
        assert text in card
    assert 'load("x.pt")' in card and 'load_torch_reference("x.pt")' in card
    assert str(tiny_runs.store.parent) not in card


def test_the_card_shows_what_evaluate_measured(tiny_runs, tmp_path, capsys):
    figure = {"mean": 0.4567, "interval": [0.41, 0.5], "truth": 0.8}
    store = {
        "metrics": {"behaviour/speaking/bilabial_closure": figure},
        "data": {"conversations": 12, "split": "test", "made_with": {"source": "synthetic", "seed": 9}},
        "settings": {"protocol": {"name": "unils-clean"}, "motion": "raw"},
    }
    names = (
        "jaw_loudness jaw_shuffled_loudness jaw_to_tracked_jaw jaw_spread_silence_over_speech mouth_closed_in_silence "
        "blinks_per_minute"
    )
    mean = dict.fromkeys(names.split(), 0.25) | {"jaw_to_tracked_jaw": None}
    voices = {"tracks": [{}, {}, {}], "mean": mean, "settings": {"seeds": [0, 1], "motion": "finished"}}
    for name, report in (("store", store), ("voices", voices), ("other", {"metrics": []})):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    out = tmp_path / "model.safetensors"
    scores = [tmp_path / "store.json", tmp_path / "voices.json"]
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["codec"], "--out", out, "--scores", *scores) == 0
    card = (tmp_path / "model.safetensors.md").read_text()
    assert "12 conversations of the test split of a store of source `synthetic`, seed 9" in card
    assert "| bilabial closure, correlation | 0.457 (0.41 to 0.5) | 0.8 |" in card
    assert "3 recorded voices, 2 seeds, finished motion" in card and "| blinks a minute | 0.25 |" in card
    assert "| decoded to tracked jaw while speaking, correlation | - |" in card and str(tmp_path) not in card
    capsys.readouterr()
    other = ["--out", tmp_path / "n.safetensors", "--scores", tmp_path / "other.json"]
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["codec"], *other) == 2
    assert "other.json lacks 'data'" in capsys.readouterr().err and not (tmp_path / "n.safetensors").exists()


def test_the_card_of_a_release_file_claims_nothing(release):
    card = model_card(load(release.dialogue), "y.pt")
    assert "wav2vec2" in card and "FLAME is licensed" in card
    assert "None are recorded" in card and "None was stated" in card and "steps" not in card


def test_the_code_of_the_card_runs(release, tmp_path):
    pytest.importorskip("torch", reason=NEEDS_TORCH)
    out = tmp_path / "x.pt"
    checkpoint = load(release.prior)
    card = model_card(checkpoint, str(out))
    export(checkpoint, out)
    blocks = [block.split("```")[0] for block in card.split("```python")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "nothing to write"),
        (("--out", "x.bin"), "must end in .pt or .safetensors"),
        (("--adapter", "x.pt"), "must end in .safetensors"),
        (("--adapter", "x.safetensors"), "holds no adapter apart from its base"),
        (("--adapter", "x.safetensors", "--merge", "a"), "give one of them"),
        (("--out", "/dev/null/x.pt"), "cannot write to"),
        (("--out", "x.safetensors", "--merge", "a"), "no adapter named 'a'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(tiny_runs, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["prior"], *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("unils: error:") and message in error
    assert not list(tmp_path.iterdir())


def test_a_run_config_that_was_cut_is_named(tiny_runs, tmp_path, capsys):
    workdir = tiny_runs.copy("codec", tmp_path / "run")
    path = workdir / "checkpoints" / "6" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["config"]["data"]
    path.write_text(json.dumps(meta))
    assert run_unils("export", "--checkpoint", workdir, "--out", tmp_path / "out" / "x.safetensors") == 2
    assert "config lacks 'data'" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_log_of_metrics_costs_the_card_its_figures_only(tiny_runs, tmp_path):
    workdir = tiny_runs.copy("codec", tmp_path / "run")
    (workdir / "metrics.jsonl").write_bytes(b"\xff\n" + b"[" * 100_000 + b'\n[1]\n{"step": "x"}\n')
    assert "None are recorded" in model_card(load(workdir), "x.pt")


def test_raw_weights_of_a_file_are_refused(release, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    assert run_unils("export", "--checkpoint", release.codec, "--out", out, "--raw") == 2
    assert "holds one set of weights" in capsys.readouterr().err


def test_without_torch_a_pt_is_refused_with_the_way_out(release, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "x.pt"
    out.write_bytes(b"old")
    assert run_unils("export", "--checkpoint", release.codec, "--out", out) == 2
    assert "pip install '.[torch]' in a checkout" in capsys.readouterr().err
    assert out.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_weights_that_are_not_finite_are_refused_by_name(release, tmp_path):
    checkpoint = load(release.codec)
    broken = checkpoint.params["codec/encoder/out/bias"].copy()
    broken[0] = np.nan
    checkpoint = replace(checkpoint, params={**checkpoint.params, "codec/encoder/out/bias": broken})
    with pytest.raises(UserError, match="not finite: encoder.code_mapping.bias"):
        export(checkpoint, tmp_path / "x.safetensors")


def test_a_file_that_reads_back_differently_never_appears(release, tmp_path, monkeypatch):
    checkpoint, out = load(release.codec), tmp_path / "x.safetensors"
    export(checkpoint, out, license="the old one")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {**checkpoint.params, "codec/motion_mean": checkpoint.params["codec/motion_mean"] + 1}
    monkeypatch.setattr("unils_jax.checkpoints.exporting.load", lambda path: checkpoint)
    with pytest.raises(UserError, match="read back, these differ: motion_mean"):
        export(replace(checkpoint, params=changed), out, license="the new one")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"EXPRESSION_BASIS": "smurf"}, "EXPRESSION_BASIS must be one of"),
        ({"EXPRESSION_BASIS": ["flame"]}, "EXPRESSION_BASIS must be one of"),
        ({"LOGMEL": 7}, "LOGMEL"),
        ({"LOGMEL": {"NUM_MELS": "many"}}, "num_mels"),
        ({"LOGMEL": {"NUM_MELS": 10**12, "CONTEXT_FRAMES": 0}}, "audio_dim"),
        ({"LOGMEL": {"NUM_MELS": 6, "ODD": 0}}, "odd"),
    ],
)
def test_impossible_additions_to_a_config_tree_are_named(tiny_runs, tmp_path, change, message):
    out = tmp_path / "x.safetensors"
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["dialogue"], "--out", out) == 0
    tree = json.loads(out.with_suffix(".json").read_text())
    (tree["MODEL"] if "LOGMEL" in change else tree).update(change)
    out.with_suffix(".json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        load(out)


def test_a_workdirs_config_is_not_overwritten(tiny_runs, tmp_path, capsys):
    workdir = tiny_runs.copy("codec", tmp_path / "codec")
    before = (workdir / "config.json").read_bytes()
    assert run_unils("export", "--checkpoint", workdir, "--out", workdir / "config.safetensors") == 2
    assert "is another file; choose another name" in capsys.readouterr().err
    assert (workdir / "config.json").read_bytes() == before
    assert not (workdir / "config.safetensors").exists()
