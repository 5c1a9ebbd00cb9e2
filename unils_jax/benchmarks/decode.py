"""Measures motion per second from audio and its latency, against the PyTorch reference.

The reference decodes as the release does.
"""

import gc
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unils_jax.benchmarks.ahead.machines import Machine
from unils_jax.benchmarks.ahead.report import compiled_for
from unils_jax.benchmarks.timing import (
    TorchModule,
    interleaved,
    markdown,
    peak_bytes,
    program_bytes,
    ratio,
    seconds_of,
    torch_reference_of,
)
from unils_jax.benchmarks.trace import DECODE_PARTS, as_shares, scope_seconds, shares_line
from unils_jax.errors import UserError
from unils_jax.inference.program import StepInputs, make_program, planned_program
from unils_jax.inference.sampling import Controls, Sampling, make_controls
from unils_jax.models.unils import UniLS, UniLSConfig
from unils_jax.motion import FPS, MOTION_DIM
from unils_jax.nn.params import abstract, merge
from unils_jax.training.throughput.flops import Work, count, count_jaxpr

log = logging.getLogger(__name__)

FIRST_TRIES = 3
WAITING_S = 10.0


@dataclass(frozen=True)
class Case:
    """A workload of the decode benchmark."""

    people: int  # of a conversation: 1 or 2
    conversations: int  # decoded at a time
    encodes: bool  # from audio; False: from the audio encoder's features

    @property
    def name(self) -> str:
        """The people and conversations, in words."""
        people = {1: "one person", 2: "both people"}[self.people]
        return people if self.conversations == 1 else f"{self.conversations} x {people}"

    @property
    def audio(self) -> str:
        """Where the audio features come from, in words."""
        return "encoded" if self.encodes else "features given"


def cases(batch: int) -> list[Case]:
    """Returns the cases: one person, both people, both people of `batch` conversations.

    Each comes with and without the audio encoder.
    """
    sizes = [(1, 1), (2, 1)] + ([(2, batch)] if batch > 1 else [])
    return [Case(people, conversations, encodes) for encodes in (True, False) for people, conversations in sizes]


@dataclass(frozen=True)
class Measurement:
    """How the cases are measured."""

    rounds: int
    latencies: int  # the most chunks that are waited for one by one
    peak: float  # the device's FLOP/s in matrix products
    dtype: str = "float32"  # of our decode
    against_torch: bool = False  # also measures the PyTorch reference, one conversation at a time


def bench_decode(
    config: UniLSConfig,
    params: Mapping[str, np.ndarray],
    measured: Sequence[Case],
    how: Measurement,
) -> list[dict[str, Any]]:
    """Measures every case, in order, on a dialogue with these sizes and parameters.

    Guidance is on (cfg 1.5, tau 1), audio is noise. The reference decodes one person at a time,
    nothing cached, the audio encoded anew for each: the release's way.
    """
    reference = torch_reference_of(config, params).eval() if how.against_torch else None
    graphdef, _ = abstract(lambda rngs: UniLS(config, rngs=rngs))
    model = merge(graphdef, {path: jnp.asarray(value) for path, value in params.items()})
    rows = []
    for case in measured:
        log.info("%s, audio %s, %s", case.name, case.audio, how.dtype)
        ours = OurDecode(model, case, how.dtype)
        contenders = {"ours": ours.run}
        if reference is not None and case.conversations == 1:
            contenders["torch"] = torch_decode(reference, case, np.asarray(ours.audio[0]))
            contenders["torch"](1)
        # The program is compiled by now: this is a conversation's latency, not a process's.
        first = [seconds_of(ours.first_chunk) for _ in range(FIRST_TRIES)]
        waits = wait_for_each(ours.run, how.latencies)
        seconds = interleaved(contenders, how.rounds)
        profile = scope_seconds(ours.compiled, partial(ours.run, 1), DECODE_PARTS)
        rows.append(
            describe(case, how.dtype, ours, seconds, how.peak)
            | {
                "first_frame_s": statistics.median(first),
                "chunk_p50_s": float(np.percentile(waits, 50)),
                "chunk_p95_s": float(np.percentile(waits, 95)),
                "waits_s": waits,
                "profile": {name: as_shares(values) for name, values in profile.items() if name != "phase"},
            }
        )
        # The next case must not find this one's memory still taken.
        del ours, contenders
        gc.collect()
    return rows


def plan_decode(config: UniLSConfig, case: Case, dtype: str, machine: Machine) -> dict[str, Any]:
    """Compiles a case's program for a machine that is not there; see `compiled_for`.

    Raises UserError where the conversations do not divide over its devices.
    """
    slots, devices = case.conversations, machine.devices()
    if slots % len(devices):
        raise UserError(f"--batch must be a multiple of the {len(devices)} devices of {machine.name}, got {slots}")
    program, inputs = planned_program(
        lambda rngs: UniLS(config, rngs=rngs), slots=slots, people=case.people, dtype=dtype, devices=devices
    )
    traced = program.trace(inputs, devices)
    work = count_jaxpr(traced.jaxpr)
    log.info("compiling %s, %s", case.name, dtype)
    compiled, seconds = machine.compile(traced)
    return {
        "program": f"decode, {case.name}, {dtype}",
        "batch_size": slots,
        "mesh": None if program.mesh is None else dict(program.mesh.shape),
        "settings": "",
        "compile_s": seconds,
        "step_flops": work.total,
        "frames": slots * case.people * program.window.frames,
        **compiled_for(machine, compiled, work.total, work.total),
    }


class OurDecode:
    """The decode program of a case, compiled, with inputs.

    The audio is noise; there is no style and no previous motion.
    """

    def __init__(self, model: UniLS, case: Case, dtype: str):
        slots, people = case.conversations, case.people
        self.program = make_program(model, slots=slots, people=people, dtype=dtype)
        window = self.program.window
        self.audio = np.random.default_rng(0).standard_normal((slots, 2, window.num_samples), np.float32) / 10
        self.sound: Any = self.audio if case.encodes else jax.block_until_ready(self.program.encode(self.audio))
        self.controls: Controls = make_controls(
            [Sampling()] * slots, range(slots), [0] * slots, len(self.program.scales)
        )
        self.clips = np.zeros((people, window.context_frames, MOTION_DIM), np.float32)
        zero = self._features()
        self.free = jnp.array(zero)
        inputs = self._inputs(zero, jnp.array(zero))
        self.work: Work = count(self.program.chunk, inputs)
        lowered = self.program.lower(inputs)
        started = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - started
        self.memory = program_bytes(self.compiled)
        self.style, self.prev = zero, jnp.array(zero)
        self.run(1)
        self.memory["peak"] = peak_bytes()

    def _inputs(self, style: jax.Array, prev: jax.Array) -> StepInputs:
        return StepInputs(self.sound, style, prev, self.free, self.controls)

    def _features(self) -> jax.Array:
        features = self.program.features(self.clips)
        return jnp.tile(features[None], (self.program.slots, 1, 1, 1))

    def run(self, chunks: int) -> None:
        """Decodes chunk after chunk, each the previous motion of the next.

        Returns when the last chunk's motion is there.
        """
        for _ in range(chunks):
            chunk, self.prev = self.program.chunk(self._inputs(self.style, self.prev))
        chunk.motion.block_until_ready()

    def first_chunk(self) -> np.ndarray:
        """Decodes what a new conversation waits for once it has its first window of audio.

        That is: clips to features, one chunk, motion to the host.
        """
        style, prev = self._features(), self._features()
        return np.asarray(self.program.chunk(self._inputs(style, prev))[0].motion)


def torch_decode(reference: TorchModule, case: Case, audio: np.ndarray) -> Callable[[int], None]:
    """Returns a function that decodes n chunks of a window `audio [2, N]` with the reference.

    Each person is decoded apart, as the release's inference does it.
    """
    # The extra `torch`: this benchmark runs without it, too.
    import torch  # noqa: PLC0415

    from unils_jax.benchmarks.torch_runs import decode  # noqa: PLC0415

    class Given(torch.nn.Module):
        """The audio encoder's features instead of it, always in the first person's order."""

        def __init__(self, features: torch.Tensor):
            super().__init__()
            self.features = features

        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return self.features

    # Features given: the encoder is replaced, so that both sides skip the same work.
    device = next(reference.parameters()).device
    tracks = torch.tensor(audio, device=device)
    encoder = reference.audio_encoder
    with torch.no_grad():
        given = encoder if case.encodes else Given(encoder(tracks))

    def run(chunks: int) -> None:
        reference.audio_encoder = given
        for _ in range(chunks):
            for person in range(case.people):
                decode(reference, tracks if person == 0 else tracks.flip(0))
        if device.type == "cuda":
            torch.cuda.synchronize()
        reference.audio_encoder = encoder

    return run


def wait_for_each(run: Callable[[int], None], most: int) -> list[float]:
    """Returns the seconds of `most` chunks, waited for one by one.

    Where they last beyond WAITING_S there are fewer, but at least three.
    """
    # Percentiles of a few slow chunks say little, but more would take minutes.
    waits: list[float] = []
    while len(waits) < min(most, 3) or (len(waits) < most and sum(waits) < WAITING_S):
        waits.append(seconds_of(run, 1))
    return waits


def describe(
    case: Case, dtype: str, ours: OurDecode, seconds: Mapping[str, Sequence[float]], peak: float
) -> dict[str, Any]:
    """Returns the figures that follow from the seconds a chunk took in the rounds."""
    chunk_s, window_frames = statistics.median(seconds["ours"]), ours.program.window.frames
    frames = case.people * case.conversations * window_frames
    figures = {
        "case": case.name,
        "audio": case.audio,
        "dtype": dtype,
        "frames_per_s": frames / chunk_s,
        "times_real_time": window_frames / FPS * case.conversations / chunk_s,
        "chunk_flops": ours.work.total,
        "share_of_peak": ours.work.total / chunk_s / peak,
        "compile_s": ours.compile_s,
        "memory_bytes": ours.memory,
        "seconds": {name: list(values) for name, values in seconds.items()},
    }
    if "torch" in seconds:
        figures["torch_frames_per_s"] = frames / statistics.median(seconds["torch"])
        figures["times_torch"] = ratio(seconds, "ours", "torch")
    return figures


def table(result: Mapping[str, Any]) -> str:
    """Returns the README's table of a result of `unils bench decode`."""
    rows = []
    for row in result["cases"]:
        cells = {
            "decoded at a time": row["case"],
            "audio": row["audio"],
            "dtype": row["dtype"],
            "frames/s": row["frames_per_s"],
            "x real time": row["times_real_time"],
            "first frame ms after its 4 s": 1000 * row["first_frame_s"],
            "chunk p50 / p95 ms": f"{1000 * row['chunk_p50_s']:,.0f} / {1000 * row['chunk_p95_s']:,.0f}",
            "GFLOP/chunk": row["chunk_flops"] / 1e9,
            "share of peak": f"{row['share_of_peak']:.0%}",
            "program GB": sum(v for name, v in row["memory_bytes"].items() if name != "peak") / 1e9,
            "compile s": row["compile_s"],
        }
        if result["against"]:
            cells |= {"torch frames/s": row.get("torch_frames_per_s"), "x torch": row.get("times_torch")}
        rows.append(cells)
    profiles = [f"{row['case']}, {row['audio']}: {shares_line(row['profile'])}" for row in result["cases"]]
    return "\n\n".join([markdown(rows), *profiles])
