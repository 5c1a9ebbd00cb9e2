"""The sampling that a checkpoint carries: from the config through files to the decode."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import CONFIGS, tiny_model

from unils_jax.checkpoints.adapters import read_adapter, save_adapter
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export, make_meta_cfg
from unils_jax.checkpoints.loading import load, pretrained
from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.inference.sampling import Sampling
from unils_jax.nn.params import split
from unils_jax.systems.base import Generated
from unils_jax.systems.decoding import decode
from unils_jax.systems.registry import SYSTEMS

OWN = Sampling(tau=1.25, cfg=(1.0, 2.0, 3.5), top_p=1.0)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    params = {path: np.asarray(value) for path, value in split(tiny_model("hearing"))[1].items()}
    return Checkpoint(CONFIGS["hearing"], params, "standin", {"checkpoint": "tiny"}, sampling=OWN)


def test_but_changes_what_is_given_alone():
    assert OWN.but() == OWN
    assert OWN.but(cfg=1.0) == Sampling(1.25, 1.0, 1.0)
    assert OWN.but(tau=0.0) == Sampling(0.0, (1.0, 2.0, 3.5), 1.0)
    with pytest.raises(UserError, match="top_p must be from 0.5 to 1, got 2"):
        OWN.but(top_p=2.0)


def test_a_file_carries_it_and_one_of_the_release_has_the_defaults(checkpoint, tmp_path):
    export(checkpoint.merged(), tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.sampling == OWN
    assert make_meta_cfg(again)["SAMPLING"] == vars(OWN) | {"cfg": list(OWN.cfg)}
    assert "SAMPLING" not in make_meta_cfg(replace(checkpoint.merged(), sampling=Sampling()))


def test_an_adapter_carries_it_to_its_base(checkpoint, tmp_path):
    save_adapter(tmp_path / "a.safetensors", checkpoint.config, checkpoint.params, "standin", "a", OWN)
    assert read_adapter(tmp_path / "a.safetensors").info.sampling == OWN
    names = split(tiny_model("prior"))[1]
    base = Checkpoint(CONFIGS["prior"], {p: checkpoint.params[p] for p in names}, "standin", {"checkpoint": "tiny"})
    assert base.with_adapter(tmp_path / "a.safetensors").sampling == OWN


def test_a_file_with_bad_values_is_refused(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    export(checkpoint.merged(), path)
    tree = path.with_suffix(".json")
    tree.write_text(tree.read_text().replace('"tau": 1.25', '"tau": -1.25'))
    with pytest.raises(UserError, match="tau must be 0"):
        load(path)
    tree.write_text(tree.read_text().replace('"tau": -1.25', '"heat": 1.25'))
    with pytest.raises(UserError, match="heat"):
        load(path)


def test_a_decode_draws_by_it_unless_it_says_otherwise(checkpoint, monkeypatch):
    used = []

    def generate(model, inputs, options):
        used.append(options.sampling)
        return Generated(np.zeros((1, 1, 108), np.float32))

    system = replace(SYSTEMS["unils"], generate=generate)
    monkeypatch.setattr(Checkpoint, "system", system)
    decode(checkpoint, np.zeros(640, np.float32))
    decode(checkpoint, np.zeros(640, np.float32), tau=0.5)
    assert used == [OWN, OWN.but(tau=0.5)]


@pytest.mark.parametrize(("name", "config"), [("model", "smoke/dialogue"), ("live", "live/smoke/dialogue_04s")])
def test_the_packaged_model_has_the_sampling_of_its_config(name, config):
    assert vars(load(pretrained(name)).sampling) == load_config(config).sampling.to_dict()
