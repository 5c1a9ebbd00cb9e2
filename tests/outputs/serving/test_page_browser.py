"""The live page in a real browser, whose microphone plays a file."""

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs the server: pip install '.[serve]'")

from browser import chromium, until
from served import serving

from unils_jax.outputs.serving.page import write_page

pytestmark = [pytest.mark.usefixtures("unoptimised"), pytest.mark.slow]


def test_speech_into_the_microphone_becomes_motion_on_the_page(files, tmp_path):
    time = np.arange(10 * 16_000) / 16_000
    speech = 0.3 * np.sin(2 * np.pi * 200 * time) * (np.sin(2 * np.pi * 0.5 * time) > 0)
    soundfile.write(tmp_path / "voice.wav", speech, 16_000, subtype="PCM_16")
    flags = (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}",
    )
    with serving(page=files) as server, chromium(tmp_path / "profile", flags=flags) as session:
        session.get(f"http://127.0.0.1:{server.port}/")
        until(lambda: session.execute_script("return !!window.unils"), "the page", 60)
        session.find_element("id", "start").click()
        # Of the last ten seconds; a browser that draws in software makes few pictures a second.
        until(lambda: len(session.execute_script("return unils.state().drawn")) > 10, "motion", 60)
        file = tmp_path / "voice.wav"
        session.find_element("id", "file").send_keys(str(file))
        until(lambda: max(level[0] for level in session.execute_script("return unils.state().levels")) > 0.1, "a file")
        state = session.execute_script("return unils.state()")
        session.save_screenshot(str(tmp_path / "live.png"))
        assert state["connected"] and max(level[1] for level in state["levels"]) > 0.05
        assert state["p50"] > 0.5 and state["delay"] < 5
        jaws = np.array([drawn["jaw"] for drawn in state["drawn"]])
        assert jaws.shape[1] == 2 and (jaws.std(axis=0) > 0).all()
        frames = [drawn["frame"] for drawn in state["drawn"]]
        assert np.all(np.diff(frames) >= -2)
        session.find_element("id", "start").click()
        until(lambda: not server.house.sessions, "the stream to end")
        errors = [entry["message"] for entry in session.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors


def test_a_page_for_another_server_is_written(files, tmp_path):
    assert write_page(str(tmp_path / "site"), "standin", "wss://faces.example.org") == [
        "index.html",
        "live.js",
        "capture.js",
    ]
    page = (tmp_path / "site" / "index.html").read_text()
    assert "connect-src wss://faces.example.org;" in page and "unsafe" not in page.split("</head>")[0]
