"""The live page hears speech: how late its faces move, by its own clock and from outside."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

pytest.importorskip("uvicorn", reason="needs the server: pip install '.[serve]'")

from browser import chromium, until
from served import serving

from unils_jax.audio import frame_loudness
from unils_jax.checkpoints.loading import load, pretrained
from unils_jax.inference.program import make_program
from unils_jax.outputs.serving.session import Session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("UNILS_TIMED"),
        reason="times a browser: set UNILS_TIMED=1 on a machine that does nothing else",
    ),
]

TEXT = (
    "I have been looking for you all morning.  Where did you go?   We wanted to talk about the garden, "
    "and about the old house by the river.   My mother bought it, many years ago.   Do you remember?"
)
HEARD_S = 25.0
STEP_S = 0.02  # of the outside clock's grid
MAX_LAG_S = 3.0


@dataclass
class Outside:
    """What the test's own clock saw: sound at the server, the jaw that the page shows. Times are monotonic."""

    heard: list[tuple[float, float, np.ndarray]] = field(default_factory=list)  # time, seconds, samples of the user
    jaw: list[tuple[float, float]] = field(default_factory=list)

    def samples(self) -> np.ndarray:
        return np.concatenate([samples for _, _, samples in self.heard])

    def lag_s(self) -> tuple[float, float]:
        """By how much the shown jaw follows the sound that comes in, and the correlation there.

        Both are put on one grid of the test's clock; the sound is its loudness while it is said.
        """
        ends = np.array([at for at, _, _ in self.heard])
        loudness = np.array([20 * np.log10(max(np.sqrt(np.mean(s**2)), 1e-3)) for _, _, s in self.heard])
        at, jaw = np.array(self.jaw).T
        grid = np.arange(ends[0], ends[-1], STEP_S)
        lags = np.arange(0, MAX_LAG_S, STEP_S)
        # What was recorded during a message's length arrives at its end: its middle is the sound's time.
        loudness = np.interp(grid, ends - self.heard[0][1] / 2, loudness)
        loudness = np.convolve(loudness, np.ones(5) / 5, "same")
        inside = (grid > at[0]) & (grid + MAX_LAG_S < at[-1])
        values = [np.corrcoef(loudness[inside], np.interp(grid[inside] + lag, at, jaw))[0, 1] for lag in lags]
        best = int(np.argmax(values))
        return float(lags[best]), float(values[best])


@pytest.fixture(scope="module")
def voice(tmp_path_factory) -> Path:
    """Synthetic speech with pauses, 16 kHz."""
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    if shutil.which("flite"):
        command = ["flite", "-voice", "slt", "-t", TEXT, "-o", str(path)]
    elif shutil.which("espeak-ng"):
        command = ["espeak-ng", "-g", "2", "-w", str(path), TEXT]
    else:
        pytest.skip("needs a speech engine: apt-get install flite, or espeak-ng")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    samples, rate = soundfile.read(path)
    samples = resample_poly(samples, 16_000, rate)
    soundfile.write(path, 0.5 * samples / np.abs(samples).max(), 16_000, subtype="PCM_16")
    return path


@pytest.fixture
def heard_at_the_server(monkeypatch) -> Outside:
    outside, take = Outside(), Session._take_audio

    def listening(session: Session, payload: bytes) -> None:
        if payload[0] == 1:
            samples = np.frombuffer(payload, "<i2", offset=1) / 32768
            outside.heard.append((time.monotonic(), len(samples) / 16_000, samples))
        take(session, payload)

    monkeypatch.setattr(Session, "_take_audio", listening)
    return outside


def spoken(session: Any, outside: Outside, seconds: float) -> Iterator[dict]:
    """Watches the page from outside for a while; yields its state every second."""
    begun, told = time.monotonic(), time.monotonic()
    while time.monotonic() - begun < seconds:
        jaw = session.execute_script("const d = unils.state().drawn.at(-1); return d ? d.jaw[1] : null")
        if jaw is not None:
            outside.jaw.append((time.monotonic(), jaw))
        if time.monotonic() - told > 1:
            told = time.monotonic()
            yield session.execute_script("return unils.state()")
        time.sleep(0.03)


def correlation_with_the_file(path: Path, outside: Outside, jaws: dict[float, float]) -> float:
    """Correlates the jaw of frames with the loudness of the file, which the microphone plays in a circle."""

    def envelope(samples: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean(samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2, axis=1))

    file, _ = soundfile.read(path)
    heard = outside.samples()
    endless = np.tile(file, 2 + len(heard) // len(file)).astype(np.float32)
    # Where in the file the microphone began: the best fit of both loudnesses, to 10 ms.
    played, got = envelope(endless), envelope(heard)
    shifts = [np.corrcoef(played[s : s + len(got)], got)[0, 1] for s in range(len(file) // 160)]
    shift = int(np.argmax(shifts))
    assert shifts[shift] > 0.6, "the microphone does not play the file"
    loudness = frame_loudness(endless[160 * shift :])
    at, jaw = np.array(sorted(jaws.items())).T
    frames = np.arange(np.ceil(at[0]), np.floor(at[-1])).astype(int)
    jaw = np.interp(frames, at, jaw)
    # Lips lead the sound by a frame or two.
    return float(np.corrcoef(jaw, np.maximum(loudness[frames + 1], -50))[0, 1])


def test_the_face_follows_a_voice_as_late_as_the_page_says(files, voice, heard_at_the_server, tmp_path):
    outside = heard_at_the_server
    # Without 3D, which a browser without a graphics card draws in software: a busy machine makes a picture in seconds.
    flags = (
        "--disable-3d-apis",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={voice}",
    )
    model = make_program(load(pretrained("live")).model, slots=1, people=2)
    jaws: dict[float, float] = {}
    with (
        serving(page=files, model=model) as server,
        chromium(tmp_path / "profile", width=760, height=560, flags=flags) as session,
    ):
        session.get(f"http://127.0.0.1:{server.port}/")
        until(lambda: session.execute_script("return !!window.unils"), "the page", 60)
        session.find_element("id", "start").click()
        until(lambda: len(session.execute_script("return unils.state().drawn")) > 10, "motion", 60)
        latencies, heads = [], {}
        for state in spoken(session, outside, HEARD_S):
            for drawn in state["drawn"]:
                jaws[drawn["frame"]] = drawn["jaw"][1]
                heads[drawn["frame"]] = drawn["head"][0]
            latencies.append((state["p50"], state["p95"]))
    p50, p95 = latencies[-1]
    lag, correlation = outside.lag_s()
    follows = correlation_with_the_file(voice, outside, jaws)
    still = np.array([heads[frame] for frame in sorted(heads)]).std(axis=0).max()
    print(f"page p50 {p50:.3f} s, p95 {p95:.3f} s; outside {lag:.2f} s (correlation {correlation:.2f});")
    print(f"jaw and loudness {follows:.2f}; the avatar's head moves by {np.degrees(still):.1f} degrees")
    assert 0.5 < p50 <= p95
    assert follows > 0.4 and correlation > 0.25
    assert abs(lag - p50) < 0.25, "the page's clock and the test's disagree"
    assert still > 0.002
