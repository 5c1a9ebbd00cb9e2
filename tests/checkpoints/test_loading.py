"""Any checkpoint -> a model: our workdirs, step folders, a release's .pt and .safetensors, audio encoders; damage."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from pt_writer import write_pt
from safetensors.numpy import save_file
from tiny_runs import STAGES, meta_cfg, quick_compiles

from unils_jax.checkpoints.audio_encoders import load_audio_encoder
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.torch_keys import to_paths
from unils_jax.errors import UserError
from unils_jax.models.unils import UniLS
from unils_jax.nn.params import abstract, merge, split
from unils_jax.systems.unils.system import generator_logits
from unils_jax.training.config import run_config

EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


def error_of(*args, **kwargs) -> str:
    with pytest.raises(UserError) as raised:
        load(*args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys() and first
    assert not [path for path in first if not np.array_equal(first[path], second[path])]


@EACH_STAGE
def test_a_workdir_loads_as_its_newest_step(tiny_runs, stage):
    workdir = tiny_runs.workdirs[stage]
    checkpoint = load(workdir)
    assert checkpoint.source == {"checkpoint": str(workdir), "step": 6, "stage": stage}
    assert checkpoint.expression_basis == "standin"
    assert checkpoint.config.stage == stage and checkpoint.config.lora is None
    assert all(np.asarray(value).dtype == np.float32 for value in checkpoint.params.values())
    assert_same(checkpoint.params, load(workdir / "checkpoints" / "6").params)
    _, params = split(checkpoint.model)
    assert_same(params, checkpoint.params)


def test_a_step_folder_loads_as_that_step(tiny_runs):
    early, late = (load(tiny_runs.workdirs["prior"] / "checkpoints" / str(step)) for step in (3, 6))
    assert (early.source["step"], late.source["step"]) == (3, 6)
    assert not np.array_equal(early.params["prior/head/kernel"], late.params["prior/head/kernel"])


def test_the_stage_is_checked_where_one_is_asked_for(tiny_runs, release):
    assert load(tiny_runs.workdirs["codec"], stage="codec").config.stage == "codec"
    for checkpoint in (tiny_runs.workdirs["codec"], release.codec):
        message = error_of(checkpoint, stage="dialogue")
        assert "is a checkpoint of the codec stage, a dialogue is needed; give the dialogue stage's workdir" in message


def test_lora_is_merged_on_load_and_changes_no_logit(tiny_runs):
    """The merged model against the one that trained: base, adapters and their sum as two matrix products."""
    workdir = tiny_runs.workdirs["dialogue"]
    config = run_config(json.loads((workdir / "config.json").read_text()))
    graphdef, shapes = abstract(lambda rngs: UniLS(config.model, rngs=rngs))
    unmerged = raw_items(workdir / "checkpoints" / "6", shapes)
    rng = np.random.default_rng(0)
    motion = rng.normal(0, 0.3, (3, 1, 2, 100, 108)).astype(np.float32)
    batch = dict(zip(("motion", "prev", "style"), motion, strict=True))
    batch["audio"] = rng.normal(0, 0.1, (1, 2, 64_000)).astype(np.float32)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    with quick_compiles():
        logits = jax.jit(lambda graphdef, params: generator_logits(merge(graphdef, params), batch)[0], static_argnums=0)
        untrained = {path: value * (0 if path.endswith("/lora_b") else 1) for path, value in unmerged.items()}
        trained, without = logits(graphdef, unmerged), logits(graphdef, untrained)
        merged = logits(*split(load(workdir).model))
    assert np.abs(trained - merged).max() < 1e-5
    assert np.abs(trained - without).max() > 1e-4


def raw_items(step_folder: Path, shapes: dict, items: tuple[str, ...] = ("ema", "frozen")) -> dict:
    """The parameters of a checkpoint as Orbax itself reads them, adapters apart."""
    handler, params = ocp.StandardCheckpointHandler(), {}
    for item in items:
        folder = step_folder.absolute() / item
        target = {path: jnp.zeros(shapes[path].shape) for path in handler.metadata(folder).tree}
        params |= handler.restore(folder, args=ocp.args.StandardRestore(target))
    handler.close()
    return params


def test_the_averaged_weights_are_loaded_not_the_last_ones(tiny_runs):
    step = tiny_runs.workdirs["codec"] / "checkpoints" / "6"
    loaded = load(step).params
    assert_same(loaded, raw_items(step, loaded))
    last = raw_items(step, loaded, ("params", "frozen"))
    assert not np.array_equal(loaded["codec/encoder/inp/kernel"], last["codec/encoder/inp/kernel"])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("rm -r ema", "is incomplete or damaged at 'ema'"),
        ("rm -r frozen", "is incomplete or damaged at 'frozen'"),
        ("rm ema/_METADATA", "is incomplete or damaged at 'ema'"),
        ("rm ema/manifest.ocdbt", "is incomplete or damaged at 'ema'"),
        ("cut ema/manifest.ocdbt", "is incomplete or damaged at 'ema'"),
        ("rm -r ema/d", "is incomplete or damaged at 'ema'"),
        ("cut ema/_METADATA", "is incomplete or damaged at 'ema'"),
        ("rm -r meta", "holds no checkpoint; give a workdir of `unils train` after its first save"),
        ("rm meta/metadata", "is incomplete or damaged at 'meta'"),
        ("cut meta/metadata", "is incomplete or damaged at 'meta'"),
        ("list meta/metadata", "is incomplete or damaged at 'meta'"),
        ("empty meta/metadata", "is incomplete or damaged at 'meta'"),
        ("widen meta/metadata", "does not fit the model its config describes; keys"),
        ("misspell meta/metadata", "model has no setting 'codek', did you mean 'codec'?"),
    ],
)
def test_an_incomplete_checkpoint_is_named_with_its_part(tiny_runs, tmp_path, damage, problem):
    step = shutil.copytree(tiny_runs.workdirs["codec"] / "checkpoints" / "6", tmp_path / "6")
    verb, _, name = damage.rpartition(" ")
    path = step / name
    if verb == "rm -r":
        shutil.rmtree(path)
    elif verb == "rm":
        path.unlink()
    else:
        content = path.read_bytes()
        changed = {
            "cut": content[: len(content) // 2],
            "list": b"[1, 2]",
            "empty": b"{}",
            "widen": content.replace(b'"width": 16', b'"width": 32'),
            "misspell": content.replace(b'"codec": {', b'"codek": {'),
        }[verb]
        assert changed != content
        path.write_bytes(changed)
    message = error_of(step)
    assert str(step) in message or "model has" in message
    assert problem in message


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "notes.txt").write_text("hello")
    assert "does not exist; give a workdir, a step's folder, a .pt or a .safetensors" in error_of(tmp_path / "x.pt")
    assert "holds no checkpoint" in error_of(tmp_path)
    for name in ("text.pt", "text.safetensors", "notes.txt"):
        assert name in error_of(tmp_path / name)


def test_a_release_file_loads_with_the_sizes_it_names(release, golden):
    for stage, case in zip(STAGES, ("codec", "freegen", "loragen"), strict=True):
        checkpoint = load(getattr(release, stage))
        assert checkpoint.config.stage == stage and checkpoint.expression_basis == "flame"
        assert_same(checkpoint.params, to_paths(golden(case).weights, stage))
    model = golden("loragen").config["model"]
    assert load(release.dialogue).config.prior.depth == model["T_DEPTH"]
    assert load(release.dialogue).config.codec.scales == tuple(model["VAE_CONFIG"]["V_PATCH_NUMS"])


def test_a_safetensors_file_with_its_json_equals_the_pt(release, golden, tmp_path):
    save_file(golden("loragen").weights, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps(meta_cfg(golden("loragen").config["model"])))
    ours, theirs = (
        load(path, audio_encoder=str(release.encoder)) for path in (tmp_path / "x.safetensors", release.dialogue)
    )
    assert ours.config == theirs.config
    assert_same(ours.params, theirs.params)
    (tmp_path / "x.json").unlink()
    assert "x.json: No such file" in error_of(tmp_path / "x.safetensors")


def test_a_file_of_a_wrapped_model_equals_that_of_the_model(release, golden, tmp_path, caplog):
    weights = {f"_orig_mod.{key}": value for key, value in golden("freegen").weights.items()}
    path = write_pt(
        tmp_path / "wrapped.pt", {"model": weights, "meta_cfg": meta_cfg(golden("freegen").config["model"])}
    )
    assert_same(load(path).params, load(release.prior).params)
    assert caplog.text.count("_orig_mod.") == 1


def test_half_precision_weights_become_float32(golden, tmp_path):
    halves = {key: value.astype(np.float16) for key, value in golden("codec").weights.items()}
    path = write_pt(tmp_path / "half.pt", {"model": halves, "meta_cfg": meta_cfg(golden("codec").config["model"])})
    params = load(path).params
    assert all(value.dtype == np.float32 for value in params.values())
    assert np.array_equal(params["codec/motion_mean"], halves["motion_mean"].astype(np.float32))


def test_every_key_that_does_not_fit_is_named(golden, tmp_path):
    weights = dict(golden("codec").weights)
    weights["surprise"] = weights.pop("motion_mean")
    path = write_pt(tmp_path / "x.pt", {"model": weights, "meta_cfg": meta_cfg(golden("codec").config["model"])})
    message = error_of(path)
    assert "1 missing: motion_mean" in message and "1 unexpected: surprise" in message
    model = golden("codec").config["model"]
    deeper = meta_cfg({**model, "T_DEPTH": model["T_DEPTH"] + 1})
    path = write_pt(tmp_path / "y.pt", {"model": golden("codec").weights, "meta_cfg": deeper})
    assert "y.pt does not fit the model its config describes; keys 18 missing: " in error_of(path)


def test_the_audio_encoder_joins_a_release_file(release):
    checkpoint = load(release.dialogue, audio_encoder=str(release.encoder))
    assert checkpoint.config.wav2vec2.width == checkpoint.config.prior.audio_dim
    _, params = split(checkpoint.model)
    assert_same(
        {p: v for p, v in params.items() if p.startswith("audio_encoder/")}, to_paths(release.w2v, "audio_encoder")
    )


def test_without_its_audio_encoder_a_model_is_asked_for_it_with_how_to_get_it(release):
    checkpoint = load(release.dialogue)
    with pytest.raises(
        UserError, match="needs its audio encoder, facebook/wav2vec2-xls-r-300m.*--audio_encoder.*hf download"
    ):
        _ = checkpoint.model


def test_an_audio_encoder_of_another_width_is_refused(release, golden, tmp_path):
    weights, width = dict(golden("loragen").weights), golden("loragen").config["w2v"]["hidden"]
    of_audio = ("self_pos", "other_pos", "context_norm.weight", "context_norm.bias", "k_proj.weight", "v_proj.weight")
    for key in [key for key in weights if key.endswith(of_audio)]:
        weights[key] = np.ascontiguousarray(weights[key][..., :-2])
    path = write_pt(tmp_path / "x.pt", {"model": weights, "meta_cfg": meta_cfg(golden("loragen").config["model"])})
    message = error_of(path, audio_encoder=str(release.encoder))
    assert f"prior.audio_dim must be the encoder's {width}, got {width - 2}" in message
    with pytest.raises(UserError, match="needs its audio encoder"):
        _ = load(path).model


def encoder_folder(release, folder: Path, weights: dict[str, np.ndarray]) -> str:
    folder.mkdir()
    shutil.copy(release.encoder / "config.json", folder)
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def test_audio_encoder_keys_may_have_a_prefix_and_the_old_weight_norm(release, tmp_path):
    config, expected = load_audio_encoder(str(release.encoder))
    old_names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    bare = {key.removeprefix("wav2vec2."): value for key, value in release.w2v.items()}
    prefixed = {f"wav2vec2.{key}": value for key, value in bare.items()} | {"lm_head.weight": np.zeros(3, np.float32)}
    old = dict(bare)
    for new, name in old_names.items():
        old = {key.replace(new, name): value for key, value in old.items()}
    assert {key for key in old if key.endswith(("weight_g", "weight_v"))}
    without_mask = {key: value for key, value in bare.items() if key != "masked_spec_embed"}
    variants = {"bare": bare, "prefixed": prefixed, "old": old, "without_mask": without_mask}
    for name, weights in variants.items():
        found, params = load_audio_encoder(encoder_folder(release, tmp_path / name, weights))
        assert found == config
        used = {path: value for path, value in params.items() if name != "without_mask" or "masked" not in path}
        assert_same(used, {path: expected[path] for path in used})
        assert params.keys() == expected.keys()


def test_a_name_that_is_neither_folder_nor_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="is neither a folder nor a hub name like facebook/wav2vec2-xls-r-300m"):
        load_audio_encoder(str(tmp_path / "no" / "such" / "folder"))


def test_a_hub_name_that_cannot_be_fetched_is_told_with_how_to_fetch_it(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, **_):
        raise LocalEntryNotFoundError("no network\nand no cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="'some/model' is no folder here.*`hf download some/model`"):
        load_audio_encoder("some/model")


def test_loading_runs_no_python_of_config_or_pickle(tiny_runs, release, tmp_path):
    """In a fresh process in which no pickle may look up a global and the config library is missing."""
    workdir = tiny_runs.copy("dialogue", tmp_path / "moved")
    program = f"""
import sys
sys.modules["ml_collections"] = None
from unils_jax.checkpoints.loading import load
import unils_jax.config

def forbidden(event, args):
    if event == "pickle.find_class":
        raise SystemExit("a pickle looked up " + ".".join(map(str, args[1:])))

def no_config(name):
    raise SystemExit("a config was run: " + name)

sys.addaudithook(forbidden)
unils_jax.config.load_config = no_config
load({str(workdir)!r}).model
load({str(release.dialogue)!r}, audio_encoder={str(release.encoder)!r}).model
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
