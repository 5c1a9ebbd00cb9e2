"""What the tests of decoding share: a view on every chunk of a decode, and the uncached reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from unils_jax.inference.program import Chunk, Program, StepInputs
from unils_jax.inference.sampling import Input
from unils_jax.models.quantizer import full_features, next_scale_inputs
from unils_jax.models.unils import UniLS


@dataclass(frozen=True)
class Call:
    """One run of the chunk program: its program, the inputs (copied, `prev` is donated), the chunk."""

    program: Program
    audio: Input | None
    style: np.ndarray
    prev: np.ndarray
    uncond_prev: np.ndarray
    chunk: Chunk


@contextmanager
def recorded_chunks() -> Iterator[list[Call]]:
    """Yields a list of every chunk that is decoded inside the context, in order."""
    calls: list[Call] = []
    run = Program.chunk

    def recording(program: Program, inputs: StepInputs):
        clips = [np.array(x) for x in (inputs.style, inputs.prev, inputs.uncond_prev)]
        chunk, after = run(program, inputs)
        calls.append(Call(program, inputs.audio, *clips, chunk))
        return chunk, after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "chunk", recording)
        yield calls


def uncached(
    model: UniLS, audio: Array | None, style: Array, prev: Array, uncond_prev: Array, bits: Array
) -> list[Array]:
    """Computes a chunk whose `bits [R, L, C]` are known by the training forward, nothing cached.

    Returns the logits of the conditional and of the unconditional branch, and the motion. `audio [2, N]` is of one
    slot, R its people; conditions are features.
    """
    tracks = []
    if audio is not None and model.prior.audio_condition == "mixed":
        tracks = [jnp.repeat(model.audio_encoder(audio[:1] + audio[1:]), len(bits), axis=0)]
    elif audio is not None:
        both = model.audio_encoder(audio)
        tracks = [both[: len(bits)], both[::-1][: len(bits)]][: 2 if model.prior.audio_condition == "pair" else 1]
    inputs = next_scale_inputs(bits, model.codec.scales)
    no_style = model.codec.features(jnp.zeros((len(bits), model.prior.window.context_frames, 108)))
    conditional = model.prior(style, prev, inputs, *tracks)
    unconditional = model.prior(no_style, uncond_prev, inputs, *map(jnp.zeros_like, tracks))
    return [conditional, unconditional, model.codec.decode(full_features(bits, model.codec.scales))]
