"""Positions, masks and rotary embedding against the goldens of the full and the small model's layout."""

import jax.numpy as jnp
import numpy as np
import pytest

from parity.compare import TABLE, assert_close
from unils_jax.models.codec import CodecConfig
from unils_jax.models.prior import attention_mask, audio_positions, scale_levels, token_positions
from unils_jax.motion import Window
from unils_jax.nn.attention import rotary_table, rotate

FULL_SCALES = CodecConfig().scales
LAYOUTS = pytest.mark.parametrize(("name", "scales"), [("full", FULL_SCALES), ("s", (1, 25, 50, 100))])


@LAYOUTS
def test_positions_of_prefix_and_scales_match(golden, name, scales):
    np.testing.assert_array_equal(token_positions(scales), golden("misc").outputs[f"{name}_rope_pos"])


@LAYOUTS
def test_attention_mask_matches(golden, name, scales):
    np.testing.assert_array_equal(attention_mask(scales), golden("misc").outputs[f"{name}_attn_allowed"].astype(bool))


@LAYOUTS
def test_scale_index_of_every_token_matches(golden, name, scales):
    np.testing.assert_array_equal(scale_levels(scales), golden("misc").outputs[f"{name}_lvl_idx"][0])


def test_audio_positions_match(golden):
    expected = golden("misc").outputs["audio_rope_pos_199"]
    np.testing.assert_array_equal(audio_positions(len(expected), Window(FULL_SCALES[-1])), expected)


@pytest.mark.parametrize(("positions", "output"), [("rope_positions", "rope_out"), (None, "rope_out_nopos")])
def test_rotation_at_given_and_at_consecutive_positions_matches(golden, positions, output):
    case = golden("misc")
    x = jnp.asarray(case.inputs["rope_x"])
    rotary = rotary_table(case.inputs[positions] if positions else np.arange(x.shape[1]), x.shape[-1])
    assert_close(rotate(x, rotary), case.outputs[output], TABLE)
