"""Adapters apart from their base: what a file holds, whose base it fits, how it comes back."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import CONFIGS, jitted, tiny_model
from tiny_runs import run_unils

from unils_jax.checkpoints.adapters import METADATA, base_hash, read_adapter, save_adapter, split_adapter
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.errors import UserError
from unils_jax.nn.params import split


def same(first: dict, second: dict) -> bool:
    """Equal bit for bit."""
    bytes_of = [{path: np.asarray(value).tobytes() for path, value in params.items()} for params in (first, second)]
    return bytes_of[0] == bytes_of[1]


@pytest.fixture(scope="module")
def tiny():
    """A dialogue with its adapters apart, and the prior under it, as loaded checkpoints."""
    config = CONFIGS["dialogue"]
    params = {path: np.asarray(value) for path, value in split(tiny_model("dialogue"))[1].items()}
    dialogue = Checkpoint(config, params, "flame", {"checkpoint": "tiny"})
    prior = Checkpoint(CONFIGS["prior"], split_adapter(params)[0], "flame", {"checkpoint": "tiny"})
    return dialogue, prior


def written(folder, dialogue, name="warm"):
    path = folder / f"{name}.safetensors"
    save_adapter(path, dialogue.config, dialogue.params, dialogue.expression_basis, name)
    return path


def edited(path, out, change=None, **info):
    """A copy of an adapter file with other metadata, and with `change` done to its tensors."""
    with safe_open(path, "np") as file:
        values = json.loads(file.metadata()[METADATA])
    tensors = load_file(path)
    if change is not None:
        change(tensors)
    save_file(tensors, out, metadata={METADATA: json.dumps(values | info)})
    return out


def test_an_adapter_returns_with_all_that_it_needs(tiny, tmp_path):
    dialogue, prior = tiny
    adapter = read_adapter(written(tmp_path, dialogue))
    assert (adapter.info.name, adapter.info.lora, adapter.info.logmel) == (
        "warm", dialogue.config.lora, dialogue.config.logmel
    )  # fmt: skip
    assert adapter.info.base == base_hash(prior.config, prior.params)
    assert same(adapter.params, split_adapter(dialogue.params)[1])


def test_base_and_adapter_make_the_dialogue_again(tiny, tmp_path):
    dialogue, prior = tiny
    again = prior.with_adapter(written(tmp_path, dialogue), merge=False)
    assert again.config == dialogue.config
    assert same(again.params, dialogue.params)
    merged = prior.with_adapter(tmp_path / "warm.safetensors")
    assert merged.config.lora is None
    assert same(merged.params, dialogue.merged().params)


def test_one_base_serves_several_adapters_and_stays_as_it_was(tiny, tmp_path):
    dialogue, prior = tiny
    before = {path: value.copy() for path, value in prior.params.items()}
    other = {p: v + 1 if p.endswith("lora_b") else v for p, v in dialogue.params.items()}
    other = Checkpoint(dialogue.config, other, "flame", dialogue.source)
    paths = [written(tmp_path, dialogue, "warm"), written(tmp_path, other, "cold")]
    warm, cold = (prior.with_adapter(path) for path in paths)
    assert same(warm.params, dialogue.merged().params) and same(cold.params, other.merged().params)
    assert not same(warm.params, cold.params)
    assert same(prior.params, before)


def test_a_dialogue_s_own_adapter_gives_way(tiny, tmp_path):
    dialogue, _ = tiny
    path = written(tmp_path, dialogue)
    changed = {p: v * 2 if "lora_" in p or "_audio_" in p else v for p, v in dialogue.params.items()}
    base = Checkpoint(dialogue.config, changed, "flame", dialogue.source)
    assert same(base.with_adapter(path, merge=False).params, dialogue.params)


def test_merged_and_apart_give_the_same_logits(tiny, tmp_path):
    dialogue, prior = tiny
    path = written(tmp_path, dialogue)
    features = np.zeros((1, 100, 8), np.float32), np.ones((1, 100, 8), np.float32), np.zeros((1, 4, 8), np.float32)
    sound = np.ones((2, 1, 199, 6), np.float32)
    logits = [
        jitted(prior.with_adapter(path, merge=merge).model.prior, lambda m, *x: m(*x), *features, *sound)
        for merge in (True, False)
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("change", ["weight", "sizes"])
def test_another_base_is_refused(tiny, tmp_path, change):
    dialogue, prior = tiny
    path = written(tmp_path, dialogue)
    params, config = dict(prior.params), prior.config
    if change == "weight":
        params["codec/encoder/inp/kernel"] = np.nextafter(params["codec/encoder/inp/kernel"], np.float32(9))
    else:  # the same shapes, another model
        config = type(config)(config.codec, type(config.prior)(16, 2, 4))
    with pytest.raises(UserError, match="trained on another base"):
        Checkpoint(config, params, "flame", prior.source).with_adapter(path)


def test_a_codec_and_another_basis_are_refused(tiny, tmp_path):
    dialogue, prior = tiny
    path = written(tmp_path, dialogue)
    codec = Checkpoint(CONFIGS["codec"], {}, "flame", prior.source)
    with pytest.raises(UserError, match="needs a prior as its base"):
        codec.with_adapter(path)
    with pytest.raises(UserError, match="is of the 'flame' basis"):
        Checkpoint(prior.config, prior.params, "standin", prior.source).with_adapter(path)


def test_merged_weights_hold_no_adapter(tiny, tmp_path):
    merged = tiny[0].merged()
    with pytest.raises(UserError, match="holds no adapter apart from its base"):
        save_adapter(tmp_path / "a.safetensors", merged.config, merged.params, "flame", "a")
    assert not list(tmp_path.iterdir())


def drop_one(tensors):
    del tensors["logits_head.1.lora_A.default.weight"]


def add_one(tensors):
    tensors["sos_embed.odd"] = np.zeros(2, np.float32)


def reach_into_the_base(tensors):
    tensors["sos_embed"] = np.zeros((1, 1, 7), np.float32)


def grow_one(tensors):
    tensors["logits_head.1.lora_A.default.weight"] = np.zeros((2, 99), np.float32)


@pytest.mark.parametrize("change", [drop_one, add_one, grow_one, reach_into_the_base])
def test_keys_that_do_not_fit_are_named(tiny, tmp_path, change):
    dialogue, prior = tiny
    path = edited(written(tmp_path, dialogue), tmp_path / "b.safetensors", change)
    with pytest.raises(UserError, match="b.safetensors.*(logits_head.1.lora_A|sos_embed)"):
        prior.with_adapter(path)


@pytest.mark.parametrize(
    "info",
    [
        {"lora": {"rank": 10**12, "alpha": 1.0, "dropout_rate": 0.1}},
        {"lora": {"rank": 2, "alpha": float("nan"), "dropout_rate": 0.1}},
        {"lora": "large"},
        {"audio_dim": 10**12},
        {"audio_dim": "six"},
        {"logmel": {"num_mels": 10**9, "context_frames": 10**9}},
        {"expression_basis": ["flame"]},
        {"expression_basis": "smurf"},
        {"base": 7},
        {"odd": 1},
    ],
)
def test_impossible_metadata_are_one_clear_line(tiny, tmp_path, info):
    dialogue, prior = tiny
    path = edited(written(tmp_path, dialogue), tmp_path / "b.safetensors", **info)
    with pytest.raises(UserError) as raised:
        prior.with_adapter(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_what_is_no_adapter_is_named(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="no such file"):
        read_adapter(path)
    path.write_bytes(b"\xff" * 50)
    with pytest.raises(UserError, match="not a readable .safetensors"):
        read_adapter(path)
    for metadata in (None, {METADATA: "{"}, {METADATA: "[]"}, {METADATA: "[" * 100_000}):
        save_file({"x": np.zeros(2, np.float32)}, path, metadata=metadata)
        with pytest.raises(UserError, match="is no adapter with its base named"):
            read_adapter(path)


def test_a_failed_write_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    dialogue, _ = tiny
    path = written(tmp_path, dialogue)
    before = path.read_bytes()
    changed = {p: v + 1 if p.endswith("lora_b") else v for p, v in dialogue.params.items()}
    old = read_adapter(path)
    monkeypatch.setattr("unils_jax.checkpoints.adapters.read_adapter", lambda _: old)
    with pytest.raises(UserError, match="cannot write .*warm.safetensors: it does not read back"):
        save_adapter(path, dialogue.config, changed, "flame", "warm")
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def named(tiny_runs, tmp_path):
    """A copy of the tiny prior's workdir with the tiny dialogue's adapter, `warm`, in its folder of adapters."""
    prior = tiny_runs.copy("prior", tmp_path / "prior")
    out = prior / "adapters" / "warm.safetensors"
    assert run_unils("export", "--checkpoint", tiny_runs.workdirs["dialogue"], "--adapter", out) == 0
    return prior


def test_a_run_s_prior_and_adapter_are_its_dialogue(tiny_runs, named):
    dialogue = load(tiny_runs.workdirs["dialogue"])
    for adapter in ("warm", named / "adapters" / "warm.safetensors"):
        loaded = load(named, adapter=adapter)
        assert loaded.config == dialogue.config and same(loaded.params, dialogue.params)
    apart = load(tiny_runs.workdirs["dialogue"], merge=False)
    assert same(load(named, adapter="warm", merge=False).params, apart.params)
    assert asdict(apart.config)["lora"]["rank"] == 2


def test_an_unknown_name_lists_the_known(named):
    with pytest.raises(UserError, match="no adapter named 'cold'.*known: warm"):
        load(named, adapter="cold")


def test_decode_takes_an_adapter_by_name(named, tiny_runs, release, tmp_path):
    outs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    sources = [(named, "--adapter", "warm"), (tiny_runs.workdirs["dialogue"],)]
    for out, source in zip(outs, sources, strict=True):
        assert run_unils("decode", "--checkpoint", *source, "--audio", release.audio, "--out", out) == 0
    motions = [np.load(out)["motion"] for out in outs]
    np.testing.assert_array_equal(*motions)


def test_a_release_file_of_the_prior_is_a_base_too(named, tiny_runs, tmp_path):
    assert (
        run_unils("export", "--checkpoint", tiny_runs.workdirs["prior"], "--out", tmp_path / "prior.safetensors") == 0
    )
    shutil.copytree(named / "adapters", tmp_path / "adapters")
    loaded = load(tmp_path / "prior.safetensors", adapter="warm")
    assert same(loaded.params, load(tiny_runs.workdirs["dialogue"]).params)
    merged = tmp_path / "merged.safetensors"
    assert run_unils("export", "--checkpoint", tmp_path / "prior.safetensors", "--merge", "warm", "--out", merged) == 0
    assert same(load(merged).params, loaded.params)
