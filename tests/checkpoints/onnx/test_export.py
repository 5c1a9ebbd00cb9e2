"""The decode program as an ONNX file: windows by onnxruntime are windows by us."""

import re

import numpy as np
import pytest
from decode_tools import recorded_chunks
from tiny_models import tiny_model

pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")

import onnxruntime

from unils_jax.checkpoints.onnx.export import build_onnx, example, step_inputs
from unils_jax.cli.main import main
from unils_jax.inference.conversations import decode
from unils_jax.inference.program import make_program
from unils_jax.inference.sampling import Sampling, make_controls, uniforms
from unils_jax.motion import SAMPLES_PER_FRAME

pytestmark = pytest.mark.slow


class Engine:
    """Decodes a conversation with nothing but the file, as another engine would."""

    def __init__(self, program):
        model = build_onnx(program, {})
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.program, self.inputs = program, step_inputs(program)

    def decode(self, tracks: list[np.ndarray], sampling: Sampling, seed: int = 0, clips: dict | None = None):
        """The motion and the bits of each window."""
        window, people = self.program.window, self.program.people
        zero = np.zeros(self.inputs["style"][0], np.float32)
        given = {"style": zero, "prev": zero, "uncond_prev": zero} | (clips or {})
        length = window.frames * SAMPLES_PER_FRAME
        motions, bits = [], []
        for index in range(-(-max(map(len, tracks)) // length)):
            part = [track[index * length : (index + 1) * length] for track in tracks]
            given["audio"] = np.stack([np.pad(x, (0, length - len(x))) for x in part]).astype(np.float32)
            controls = make_controls([sampling], [seed], [index], len(self.program.scales))
            given["uniforms"] = np.asarray(uniforms(controls, people, self.inputs["uniforms"][0][1:]))
            given |= {name: np.asarray(getattr(controls, name)[0]) for name in ("tau", "cfg", "one_minus_top_p")}
            motion, chosen = self.session.run(["motion", "bits"], given)
            given["prev"] = given["uncond_prev"] = np.concatenate([given["prev"], motion], 1)[:, -zero.shape[1] :]
            motions.append(motion)
            bits.append(chosen)
        return np.concatenate(motions, axis=1), np.stack(bits)


def noise(seconds: float) -> list[np.ndarray]:
    return list(0.1 * np.random.default_rng(1).standard_normal((2, int(16_000 * seconds))).astype(np.float32))


@pytest.mark.parametrize("kind", ["merged", "hearing", "own", "mixed"])
def test_greedy_and_sampled_bits_of_two_windows_are_equal(kind):
    model, tracks = tiny_model(kind), noise(6.5)
    engine = Engine(make_program(model, people=2))
    falling = tuple(np.linspace(1.5, 0.5, len(engine.program.scales)).tolist())
    for sampling in (Sampling(tau=0.0), Sampling(), Sampling(tau=0.8, cfg=1.0, top_p=1.0), Sampling(tau=falling)):
        with recorded_chunks() as calls:
            motion = decode(model, *tracks, sampling=sampling, seed=3)
        found, bits = engine.decode(tracks, sampling, seed=3)
        assert np.array_equal(bits, np.stack([np.asarray(call.chunk.bits[0]) for call in calls]))
        np.testing.assert_allclose(found[:, : motion.shape[1]], motion, atol=1e-4)


def test_a_prior_whose_bits_depend_on_one_another_is_decoded_bit_by_bit():
    program = make_program(tiny_model("chained"), people=1)
    engine, given = Engine(program), example(program, Sampling())
    assert "audio" not in engine.inputs
    motion, bits = engine.session.run(["motion", "bits"], given)
    other = engine.session.run(["bits"], given | {"uniforms": 1 - given["uniforms"]})[0]
    assert motion.shape == (1, 100, 108) and bits.dtype == bool and (bits != other).mean() > 0.1


def test_the_packaged_model_is_exported_and_compared(tmp_path, capsys):
    from unils_jax.checkpoints.loading import PRETRAINED

    path = tmp_path / "model.onnx"
    assert (
        main(["export", "--checkpoint", str(PRETRAINED / "model.safetensors"), "--out", str(path), "--people", "1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "decodes 0 of 11,584 bits otherwise" in said
    assert min(map(int, re.search(r"(\d+) frames/s next to our (\d+)$", said.strip()).groups())) > 0
    notes = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert notes["frames"] == "100" and notes["expression_basis"] == "standin" and "jaw" in notes["channels"]
