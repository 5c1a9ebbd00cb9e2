"""Eight simulated devices, every mesh, with and without accumulation, on the goldens' weights and windows."""

import numpy as np
import pytest
from mesh_runs import assert_alike, run

from parity.conftest import codec_config, prior_config
from unils_jax.models.unils import LoRAConfig, UniLSConfig
from unils_jax.nn.params import split

BATCH_SIZE = 16
MESHES = [(data, fsdp, parts) for data, fsdp in ((8, 1), (4, 2), (2, 4)) for parts in (1, 2)]


def tiled(batch: dict) -> dict:
    """The golden's windows again and again until the batch is full; noise differs from item to item."""
    return {name: np.concatenate([value] * (BATCH_SIZE // len(value))) for name, value in batch.items()}


def check(folder, config, model, batch) -> None:
    params = {path: np.asarray(value) for path, value in split(model)[1].items()}
    found = run(
        folder, config, params, tiled(batch), MESHES, head=config.stage == "codec", min_cut_size=256, quick=True
    )
    assert len(found) == len(MESHES)
    for measured in found.values():
        assert_alike(measured)
    assert found["2,4,1"]["bytes"] < found["4,2,1"]["bytes"] < found["8,1,1"]["bytes"]


@pytest.mark.slow
def test_every_mesh_learns_the_codec_that_one_device_learns(tmp_path, golden, codec_model):
    case = golden("codec")
    config = UniLSConfig(codec_config(case.config["model"]))
    check(tmp_path, config, codec_model, {"motion": case.inputs["motion"]})


@pytest.mark.slow
def test_every_mesh_learns_the_prior_that_one_device_learns(tmp_path, golden, prior_model, solo_batch):
    model = golden("freegen").config["model"]
    config = UniLSConfig(codec_config(model["VAE_CONFIG"]), prior_config(model, None))
    check(tmp_path, config, prior_model, solo_batch)


@pytest.mark.slow
def test_every_mesh_learns_the_dialogue_that_one_device_learns(
    tmp_path, golden, dialogue_config, lora_model, pair_batch
):
    settings = golden("loragen_peft").config["lora"]
    lora = LoRAConfig(settings["r"], float(settings["alpha"]), settings["dropout"])
    config = UniLSConfig(dialogue_config.codec, dialogue_config.prior, dialogue_config.wav2vec2, lora=lora)
    check(tmp_path, config, lora_model, pair_batch)
