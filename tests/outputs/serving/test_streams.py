"""Streams over a socket: the bits of the one-shot decode, and errors that end one stream alone."""

import base64
import contextlib
import json
import logging
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the server: pip install '.[serve]'")

from served import (
    AHEAD,
    WINDOW,
    address,
    audio_message,
    connected,
    error_of,
    one_shot,
    open_message,
    opened,
    received,
    serving,
    until,
)
from tiny_models import noise
from websockets.exceptions import ConnectionClosed, InvalidStatus

from unils_jax.audio import Resampler
from unils_jax.inference.finishing import finish
from unils_jax.inference.sampling import Sampling
from unils_jax.outputs.serving.access import Access

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.fixture(scope="module")
def server(unoptimised):
    with serving(max_ahead_s=30.0) as running:
        yield running


def send(client, own: np.ndarray, other: np.ndarray | None = None, size: int = 1000) -> None:
    for start in range(0, len(own), size):
        client.send(audio_message(0, own[start : start + size]))
        if other is not None:
            client.send(audio_message(1, other[start : start + size]))


@pytest.mark.parametrize("size", [333, 16_000])
def test_a_stream_is_its_one_shot_decode_bit_for_bit(server, size):
    own, other = noise(30_001), noise(30_001, 1)
    with opened(server, seed=3, tau=0.7) as client:
        send(client, own, other, size)
        client.send(json.dumps({"type": "flush"}))
        motion = received(client)
    np.testing.assert_array_equal(motion, one_shot(own, other, seed=3, sampling=Sampling(0.7)))
    assert motion.shape == (2, 47, 108)


def test_neighbours_change_nothing(server):
    tracks = [(noise(20_000, i), noise(20_000, i + 9)) for i in range(3)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(server, seed=i)) for i in range(3)]
        for start in range(0, 20_000, 2000):
            for client, (own, other) in zip(clients, tracks, strict=True):
                send(client, own[start : start + 2000], other[start : start + 2000], 700)
        for i, client in enumerate(clients):
            client.send('{"type": "flush"}')
            np.testing.assert_array_equal(received(client), one_shot(*tracks[i], seed=i))


def test_samples_of_another_rate_and_format_are_resampled_as_the_whole_is(server):
    whole = (noise(66_150) * 32768).astype("<i2")
    resampler = Resampler(44_100)
    expected = [resampler.push(whole[None].astype(np.float32) / 32768)[0], resampler.finish(1)[0]]
    with opened(server, tracks=1, sample_rate=44_100, format="s16le", people=1, smoothed=True) as client:
        for start in range(0, len(whole), 777):
            client.send(b"\0" + whole[start : start + 777].tobytes())
        client.send('{"type": "flush"}')
        motion = received(client)
    own = np.concatenate(expected)
    decoded = one_shot(own, np.zeros_like(own))
    np.testing.assert_array_equal(motion, finish(decoded, "standin", causal=True, window_frames=WINDOW).motion[:1])


def test_reset_begins_anew_and_a_style_is_taken(server):
    own, style = noise(8_000), noise(30 * 108, 5).reshape(1, 30, 108)
    text = base64.b64encode(style.tobytes()).decode()
    with opened(server, tracks=1) as client:
        send(client, noise(5_000, 8))
        client.send('{"type": "reset"}')
        client.send(json.dumps({"type": "style", "style": text}))
        send(client, own)
        client.send('{"type": "flush"}')
        assert json.loads(client.recv(timeout=60))["type"] == "ready"
        np.testing.assert_array_equal(received(client), one_shot(own, np.zeros_like(own), style=style))
        client.send('{"type": "close"}')
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)
        assert client.close_code == 1000


def test_motion_comes_before_the_stream_ends(server):
    with opened(server, tracks=1) as client:
        send(client, noise((WINDOW + AHEAD) * 640))
        assert len(client.recv(timeout=60)) == 12 + 2 * WINDOW * 108 * 4


STYLE = base64.b64encode(np.full((30, 108), np.nan, "<f4").tobytes()).decode()
WRONG = {
    "audio before open": ([b"\0\0\0"], "bad_order", 1002),
    "no JSON": (["{"], "bad_message", 1007),
    "deep JSON": (["[" * 100_000], "bad_message", 1007),
    "no open": (['{"type": "flush"}'], "bad_order", 1002),
    "another version": ([open_message(version=2)], "bad_message", 1007),
    "an unknown field": ([open_message(path="/etc/passwd\n")], "bad_message", 1007),
    "a NaN in JSON": (['{"type": "open", "version": 1, "tau": NaN}'], "bad_message", 1007),
    "a rate": ([open_message(sample_rate=44_101)], "bad_message", 1007),
    "a temperature": ([open_message(tau=-1)], "bad_message", 1007),
    "a style of NaN": ([open_message(style=STYLE)], "bad_message", 1007),
    "a second open": ([open_message(), open_message()], "bad_order", 1002),
    "NaN": ([open_message(), audio_message(0, np.full(9, np.nan))], "bad_audio", 1007),
    "too loud": ([open_message(), audio_message(0, np.full(9, 1e30))], "bad_audio", 1007),
    "a track": ([open_message(), b"\7" + bytes(8)], "bad_message", 1007),
    "half a sample": ([open_message(), b"\0" + bytes(7)], "bad_message", 1007),
    "nothing": ([open_message(), b""], "bad_message", 1007),
    "audio after flush": ([open_message(), '{"type": "flush"}', b"\0" + bytes(8)], "bad_order", 1002),
    "another type": ([open_message(), '{"type": "shell"}'], "bad_message", 1007),
    "one track alone": ([open_message()] + [b"\0" + bytes(200_000)] * 20, "too_far_apart", 1008),
}


def test_wrong_messages_close_their_stream_alone(server):
    own, other = noise(len(WRONG) * 2000), noise(len(WRONG) * 2000, 1)
    with opened(server, seed=1) as witness:
        for i, (name, (messages, code, close_code)) in enumerate(WRONG.items()):
            send(witness, own[i * 2000 : (i + 1) * 2000], other[i * 2000 : (i + 1) * 2000])
            with connected(server) as client:
                for message in messages:
                    client.send(message)
                assert error_of(client) == (code, close_code), name
        witness.send('{"type": "flush"}')
        np.testing.assert_array_equal(received(witness), one_shot(own, other, seed=1))


def test_the_client_in_the_docs_runs_as_it_is(server, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    (program,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 36
    soundfile.write(tmp_path / "a.wav", noise(24_000), 24_000)
    command = [sys.executable, "-c", program, str(tmp_path / "a.wav"), address(server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("frames 0 to 9: jaw [") and lines[-1] == '{"type": "end", "frames": 25}'


def test_a_huge_message_closes_its_connection(server):
    with opened(server) as client, pytest.raises(ConnectionClosed):
        client.send(b"\0" + bytes(300_000))
        client.recv(timeout=60)
    assert client.close_code == 1009


def test_a_full_house_refuses_with_1013(server):
    until(lambda: not server.house.sessions)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(server)) for _ in range(4)]
        with connected(server) as late:
            late.send(open_message())
            assert error_of(late) == ("full", 1013)
        clients[0].close()
        until(lambda: len(server.house.sessions) < 4)
        with opened(server):
            pass


def test_tokens_and_origins_are_checked():
    token = "a-token-of-twenty-bytes"
    right = {"Authorization": f"Bearer {token}"}
    with serving(Access("127.0.0.1", (token,), ("https://example.org",))) as server:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong-token-of-bytes"}, 401),
            ({**right, "Origin": "https://elsewhere.org"}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused, connected(server, additional_headers=headers):
                pass
            assert refused.value.response.status_code == status
        for options in (
            {"additional_headers": {**right, "Origin": "https://example.org"}},
            {"additional_headers": {**right, "Origin": f"http://127.0.0.1:{server.port}"}},
            {"subprotocols": ["unils.v1", f"token.{token}"]},
        ):
            with connected(server, **options) as client:
                client.send(open_message())
                assert json.loads(client.recv(timeout=60))["type"] == "ready"


def test_limits_of_time_and_address():
    with serving(idle_s=1.5, open_s=0.7, streams_per_address=1) as server:
        with connected(server) as silent:
            assert error_of(silent) == ("idle", 4408)
        with opened(server) as first, connected(server) as second:
            second.send(open_message())
            assert error_of(second) == ("too_many", 1013)
            assert error_of(first) == ("idle", 4408)


def test_a_client_ahead_of_time_is_paused():
    with serving(max_ahead_s=0.5) as server:
        with opened(server, tracks=1) as client:
            begun = time.monotonic()
            # Two and a half seconds of audio in no time: taken at the pace of speech beyond the first half second.
            send(client, noise(40_000))
            client.send('{"type": "flush"}')
            motion = received(client)
            assert time.monotonic() - begun > 1.8
        np.testing.assert_array_equal(motion, one_shot(noise(40_000), np.zeros(40_000, np.float32)))


def test_stopping_gives_open_streams_what_is_theirs():
    own = noise(20_000)
    with serving() as server, opened(server, tracks=1) as client:
        send(client, own)
        first = client.recv(timeout=60)
        (session,) = server.house.sessions.values()
        until(lambda: session._received_s[0] * 16_000 >= len(own))  # what was not read yet is not the stream's
        server.stop()
        parts = [np.frombuffer(first, "<f4", offset=12).reshape(2, -1, 108)]
        while not isinstance(message := client.recv(timeout=60), str):
            parts.append(np.frombuffer(message, "<f4", offset=12).reshape(2, -1, 108))
        assert json.loads(message) == {"type": "end", "frames": 32}
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), one_shot(own, np.zeros_like(own)))
        assert error_of(client) == ("going_away", 1001)


def test_addresses_answer_and_log_lines_are_escaped(server, caplog):
    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=20) as answer:
            return answer.read().decode()

    assert get("/healthz") == "ok\n" and get("/readyz") == "ready\n"
    figures = get("/metrics")
    assert "unils_streams " in figures and "unils_chunks_total" in figures and "unils_decode_seconds_sum" in figures
    with caplog.at_level(logging.INFO), connected(server) as client:
        client.send(open_message(format="x\nstream 9: forged \u2028\x1b[31m"))
        assert error_of(client) == ("bad_message", 1007)
    assert not [r.getMessage() for r in caplog.records if any(not c.isprintable() for c in r.getMessage())]


def test_half_open_connections_are_not_kept(server, monkeypatch):
    monkeypatch.setattr("unils_jax.outputs.serving.server.OPENING_S", 0.2)
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b"GET / HTTP/1.1\r\n")
        half.settimeout(10)
        with pytest.raises(ConnectionResetError):
            if not half.recv(1):
                raise ConnectionResetError
