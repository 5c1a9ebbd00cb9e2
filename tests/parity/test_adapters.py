"""Adapter files against the golden's: the same names, the same values."""

from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file

from unils_jax.checkpoints.adapters import save_adapter
from unils_jax.models.unils import LoRAConfig
from unils_jax.nn.params import split


def test_a_file_holds_the_released_names_and_values(golden, dialogue_config, lora_model, tmp_path):
    case, path = golden("loragen_peft"), tmp_path / "a.safetensors"
    lora = case.config["lora"]
    config = replace(dialogue_config, lora=LoRAConfig(lora["r"], float(lora["alpha"]), lora["dropout"]))
    save_adapter(path, config, split(lora_model)[1], "flame", "a")
    found, released = load_file(path), load_file(case.folder / "lora.safetensors")
    # Peft leaves the two vectors in the base, where a prior that a dialogue is trained from has none.
    assert set(found) - set(released) == {"attn_blocks.self_pos", "attn_blocks.other_pos"}
    for key, value in released.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
