"""What the tests of decoding share: a view on every chunk of a decode, and the uncached reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from unils_jax.inference.program import Chunk, Program
from unils_jax.models.quantizer import full_features, next_scale_inputs
from unils_jax.models.unils import UniLS


@dataclass(frozen=True)
class Call:
    """One run of the chunk program: who ran it, what went in (copied, `prev` is donated), what came out."""

    program: Program
    sound: Any
    style: np.ndarray
    prev: np.ndarray
    uncond_prev: np.ndarray
    chunk: Chunk


@contextmanager
def recorded_chunks() -> Iterator[list[Call]]:
    """Every chunk that is decoded inside the context, in order."""
    calls: list[Call] = []
    run = Program.chunk

    def recording(program: Program, sound, style, prev, uncond_prev, controls, bits=None):
        inputs = [np.array(x) for x in (style, prev, uncond_prev)]
        chunk, after = run(program, sound, style, prev, uncond_prev, controls, bits)
        calls.append(Call(program, sound, *inputs, chunk))
        return chunk, after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "chunk", recording)
        yield calls


def uncached(model: UniLS, sound: Array | None, style: Array, prev: Array, free: Array, bits: Array) -> list[Array]:
    """What the training forward makes of a chunk whose `bits [R, L, C]` are known, nothing cached: the logits of the
    conditional and of the unconditional branch, and the motion. `sound [2, N]` is of one slot, R its people;
    conditions are features."""
    heard = []
    if sound is not None and model.prior.audio_condition == "mixed":
        heard = [jnp.repeat(model.audio_encoder(sound[:1] + sound[1:]), len(bits), axis=0)]
    elif sound is not None:
        tracks = model.audio_encoder(sound)
        heard = [tracks[: len(bits)], tracks[::-1][: len(bits)]][: 2 if model.prior.audio_condition == "pair" else 1]
    inputs = next_scale_inputs(bits, model.codec.scales)
    deaf = model.codec.features(jnp.zeros((len(bits), 100, 108)))
    conditional = model.prior(style, prev, inputs, *heard)
    unconditional = model.prior(deaf, free, inputs, *map(jnp.zeros_like, heard))
    return [conditional, unconditional, model.codec.decode(full_features(bits, model.codec.scales))]
