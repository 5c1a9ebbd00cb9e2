"""Many conversations at a time: the motion of one depends in no bit on the others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_motion, tiny_model

from unils_jax.errors import UserError
from unils_jax.inference.conversations import Request, Sampling, decode, decode_many, make_program
from unils_jax.inference.slots import Slots, Turn
from unils_jax.motion import Window

SETTINGS = (Sampling(), Sampling(tau=0.0), Sampling(cfg=0.5), Sampling(tau=0.7, cfg=3.0, top_p=1.0))


def tracks(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]


def request(seed: int, *lengths: int, **settings) -> Request:
    """Returns a conversation whose settings follow from its seed."""
    style = np.asarray(random_motion(1, 100, seed=seed)) if seed % 2 else None
    return Request(
        *tracks(seed, *lengths),
        style=style,
        sampling=SETTINGS[seed % len(SETTINGS)],
        seed=seed,
        name=str(seed),
        **settings,
    )


REQUESTS = [
    request(i, *lengths)
    for i, lengths in enumerate(
        [(64_001, 1000), (640, 640), (200_000, 150_000), (192_000, 64_000), (5, 7), (64_000, 1)]
    )
]


@pytest.fixture(scope="module")
def program():
    return make_program(tiny_model("merged"), slots=3, people=2)


def decode_all(program, requests) -> dict[str, np.ndarray]:
    return {done.name: motion for done, motion in decode_many(program, requests)}


@pytest.fixture(scope="module")
def alone(program):
    """Decodes every request by itself."""
    return {done.name: motion for one in REQUESTS for done, motion in decode_many(program, [one])}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 2, 4, 0, 3, 1)])
def test_neighbours_and_slot_do_not_change_a_bit(program, alone, order):
    together = decode_all(program, [REQUESTS[i] for i in order])
    assert len(together) == len(REQUESTS)
    for name, motion in together.items():
        np.testing.assert_array_equal(motion, alone[name])
        assert motion.shape == (2, REQUESTS[int(name)].num_frames(Window()), 108)


def test_every_slot_gives_the_same_bits(program):
    slots = Slots(program, 3)
    row, *others = (slots.admit() for _ in range(3))
    audio = [np.stack(tracks(seed, 64_000, 64_000)) for seed in range(3)]
    results = []
    for slot in range(3):
        slots.restart(row)
        turns = [Turn(other, audio[1 + i], SETTINGS[2 * i], i, 1) for i, other in enumerate(others)]
        turns.insert(slot, Turn(row, audio[0], Sampling(), 9, 0))
        chunk = slots.decode(turns)
        results.append([np.asarray(x)[slot] for x in (chunk.motion, chunk.bits, chunk.logits)])
    for result in results[1:]:
        for value, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(value, first)


def test_one_of_many_is_the_simple_decode_to_rounding(alone):
    one = REQUESTS[1]
    motion = decode(tiny_model("merged"), one.audio, one.other, style=one.style, sampling=one.sampling)
    np.testing.assert_allclose(motion, alone[one.name], atol=1e-4)


def test_settings_belong_to_a_conversation(program):
    same = {"style": np.asarray(random_motion(1, 100)), "seed": 7}
    requests = [Request(*tracks(0, 9000, 9000), sampling=s, name=str(i), **same) for i, s in enumerate(SETTINGS)]
    motions = decode_all(program, requests)
    assert len({motion.tobytes() for motion in motions.values()}) == len(SETTINGS)


def test_requests_are_read_as_slots_become_free(program):
    read = []

    def reading():
        for one in REQUESTS:
            read.append(one.name)
            yield one

    next(decode_many(program, reading()))
    assert len(read) < len(REQUESTS)


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (request(0, 640), "two people need two tracks"),
        (Request(None, num_chunks=1), "a dialogue decodes audio and a prior a number of chunks"),
        (request(0, 0, 0), "0 holds no samples"),
        (Request(*tracks(0, 640, 640), style=np.zeros((3, 100, 108))), r"style must be \[1 or 2, 100, 108\]"),
    ],
)
def test_impossible_requests_are_refused(program, one, problem):
    with pytest.raises(UserError, match=problem):
        list(decode_many(program, [one]))


def test_guidance_needs_a_guided_program():
    program = make_program(tiny_model("merged"), guided=False)
    with pytest.raises(UserError, match="cfg 1.5 needs both branches; make the program with guided=True"):
        list(decode_many(program, [Request(*tracks(0, 640))]))


ON_EIGHT_DEVICES = """
import sys
import jax
import numpy as np
from tiny_models import tiny_model
from unils_jax.inference.conversations import Request, decode_many, make_program
assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
requests = [Request(rng.normal(0, 0.1, 9000 * i + 1).astype(np.float32), seed=i, name=str(i)) for i in range(11)]
model = tiny_model("merged")
one = make_program(model)
many = make_program(model, slots=8, devices=jax.devices())
sound = jax.numpy.zeros((8, 2, 64_000))
assert len(many.encode(sound).sharding.device_set) == 8
expected = {r.name: motion for request in requests for r, motion in decode_many(one, [request])}
found = {r.name: motion for r, motion in decode_many(many, requests)}
assert expected.keys() == found.keys() and len(found) == 11
print(max(np.abs(found[name] - motion).max() for name, motion in expected.items()))
"""


@pytest.mark.slow
def test_eight_devices_decode_what_one_does():
    """Slots are shared out over devices, one each: the same program as one slot's on one device."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **flags, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    command = [sys.executable, "-c", ON_EIGHT_DEVICES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0
