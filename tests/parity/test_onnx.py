"""The ONNX decode program against the goldens: greedy bits are the authors'."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")

import onnxruntime

from parity.compare import MODEL, assert_bits_equal, assert_close
from unils_jax.checkpoints.onnx.export import build_onnx
from unils_jax.inference.program import make_program
from unils_jax.motion import WINDOW_FRAMES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session(dialogue_model):
    model = build_onnx(make_program(dialogue_model, people=2), {})
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("variant", ["style", "nostyle", "prevonly", "cfg1"])
def test_onnxruntime_decodes_the_goldens_greedily_to_equal_bits(golden, session, variant):
    inputs, outputs = golden("loragen_decode").inputs, golden("loragen_decode").outputs
    tracks = inputs["audio_i8"][0].astype(np.float32) / 128
    shapes = {value.name: value.shape for value in session.get_inputs()}
    given = {name: np.zeros(shapes[name], np.float32) for name in ("style", "prev", "uncond_prev", "uniforms")}
    if variant in {"style", "cfg1"}:
        given["style"][:] = inputs["style_motion_code"][:, 0]
    if variant == "prevonly":
        given["prev"][:] = inputs["prev_motion_code"]
    settings = {"tau": 0.0, "cfg": 1.0 if variant == "cfg1" else 1.5, "one_minus_top_p": 0.03}
    given |= {name: np.full(shapes[name], value, np.float32) for name, value in settings.items()}
    motions, bits = [], []
    length = shapes["audio"][1]
    for first in range(0, tracks.shape[1], length):
        part = tracks[:, first : first + length]
        given["audio"] = np.pad(part, ((0, 0), (0, length - part.shape[1])))
        motion, chosen = session.run(["motion", "bits"], given)
        given["prev"] = given["uncond_prev"] = motion[:, -WINDOW_FRAMES:]
        motions.append(motion[:1])
        bits.append(chosen[0])
    assert_bits_equal(np.stack(bits), outputs[f"{variant}_bits"])
    expected = outputs[f"{variant}_motion"]
    assert_close(np.concatenate(motions, axis=1)[:, : expected.shape[1]], expected, MODEL)
