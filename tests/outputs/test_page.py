"""What `unils view` writes, without a browser: `test_viewer_browser.py` opens it in one."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from flame_golden import golden_flame_asset

from unils_jax.audio import write_wav
from unils_jax.cli import motion as motion_command
from unils_jax.cli.main import main
from unils_jax.errors import UserError
from unils_jax.face.standin import standin_asset
from unils_jax.inference.finishing import finish
from unils_jax.motion import JAW, SAMPLE_RATE, save_motion
from unils_jax.outputs import page
from unils_jax.outputs.page import make_page


@pytest.fixture(autouse=True)
def script(monkeypatch):
    """These tests need no built script."""
    for user in (page, motion_command):
        monkeypatch.setattr(user, "page_script", lambda: ("console.log('</script>')", "The MIT License -- three.js"))


def wandering(num_people: int, num_frames: int) -> np.ndarray:
    """Motion that changes everywhere, slowly, as tracked faces do."""
    rng = np.random.default_rng(5)
    steps = rng.standard_normal((num_people, num_frames, 108)) * 0.05
    return np.cumsum(steps, axis=1).astype(np.float32)


def embedded(path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="page-data">(.*?)</script>', text, re.S)[1])


def unpacked(packed: dict) -> np.ndarray:
    stored = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    width = np.dtype(packed["type"]).itemsize
    values = np.ascontiguousarray(stored.reshape(width, -1).T).view(packed["type"]).reshape(packed["shape"])
    return values if packed["step"] is None else values * np.array(packed["step"])


def coefficients(packed: dict) -> np.ndarray:
    """Motion is embedded as differences from frame to frame, modulo 2^16."""
    levels = np.cumsum(unpacked({**packed, "step": None}), axis=1, dtype=np.int16)
    return levels * np.array(packed["step"])


def test_coefficients_are_kept_to_a_thousandth_of_what_is_asked(tmp_path):
    motion = wandering(2, 60)
    make_page(
        tmp_path / "p.html", motion, standin_asset(), expression_basis="standin", truth=motion[:, :40] * 2, state="raw"
    )
    data = embedded(tmp_path / "p.html")
    K = data["numExpression"]
    values, truth = (coefficients(data[name]) for name in ("motion", "truth"))
    assert K == 24 and values.shape == (2, 60, K + 8)
    np.testing.assert_allclose(values[..., :K], motion[..., :K], atol=6e-5)
    np.testing.assert_allclose(values[..., K:], motion[..., 100:], atol=6e-5)
    np.testing.assert_allclose(truth[:, :40, K + 3 : K + 4], 2 * motion[:, :40, JAW], atol=1e-4)
    assert (truth[:, 40:] == truth[:, 39:40]).all(), "the truth is shorter: it holds its last frame"
    basis = unpacked(data["head"]["basis"])
    assert np.abs(basis).max() > 1e-3 and len(basis) == K + 2, "shapes, and lids that follow each eye"


def test_borders_are_mended_where_the_model_s_windows_have_them(tmp_path):
    motion = np.zeros((1, 40, 108), np.float32)
    motion[0, 10:, JAW.start] = 0.2
    jaws = []
    for frames in (10, 100):
        make_page(tmp_path / "p.html", motion, standin_asset(), expression_basis="standin", window_frames=frames)
        data = embedded(tmp_path / "p.html")
        jaws.append(coefficients(data["motion"])[0, :, data["numExpression"] + 3])
        expected = finish(motion, "standin", window_frames=frames).motion[0, :, JAW.start]
        np.testing.assert_allclose(jaws[-1], expected, atol=1e-4)
    assert np.abs(jaws[0] - jaws[1]).max() > 0.05


def test_a_minute_of_two_people_takes_under_three_megabytes(tmp_path, golden):
    """Besides audio and script; with truth, on the stand-in and on a head of FLAME's kind with a hundred shapes."""
    motion = wandering(2, 1500)
    summary = make_page(tmp_path / "s.html", motion, standin_asset(), expression_basis="standin", truth=motion)
    assert summary.total == (tmp_path / "s.html").stat().st_size and summary.motion < 3e6
    asset = golden_flame_asset(golden)
    summary = make_page(tmp_path / "f.html", motion, asset, expression_basis="flame", embed_flame=True)
    assert summary.motion < 3e6


def test_the_page_is_closed_to_the_outside_and_names_what_is_in_it(tmp_path):
    audio = [np.sin(np.arange(SAMPLE_RATE) / 9).astype(np.float32), np.zeros(SAMPLE_RATE, np.float32)]
    make_page(
        tmp_path / "p.html",
        wandering(2, 25),
        standin_asset(),
        audio,
        expression_basis="standin",
        names=["<b>A</b>", "B\n\x1b\udce9"],
        title="</title><script>alert(1)</script>\udce9",
    )
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "The MIT License" in text.partition("<head>")[0]
    assert text.count("</script>") == 2 and text.count("<script") == 2, "neither names nor the script end an element"
    assert not re.findall(r"(?:src|href)\s*=", text)
    data = embedded(tmp_path / "p.html")
    assert data["people"][0]["name"] == "<b>A</b>"
    assert data["people"][1]["name"] == r"B\n\x1b\udce9" and data["title"].endswith(r"</script>\udce9")
    speaking = [unpacked(person["speaking"]) for person in data["people"]]
    assert speaking[0].all() and not speaking[1].any()
    assert unpacked(data["people"][0]["peaks"]).shape == (50,)


def test_embedded_audio_is_lossless_and_as_long_as_the_motion(tmp_path):
    import io

    import soundfile

    audio = [(0.5 * np.sin(np.arange(8000) / 7)).astype(np.float32)]
    make_page(tmp_path / "p.html", wandering(2, 25), standin_asset(), audio, expression_basis="standin")
    file = io.BytesIO(base64.b64decode(embedded(tmp_path / "p.html")["audio"]["data"]))
    samples, rate = soundfile.read(file)
    assert (samples.shape, rate) == ((SAMPLE_RATE,), SAMPLE_RATE)
    np.testing.assert_allclose(samples[:8000], audio[0], atol=1 / 32000)
    assert not samples[8000:].any()


def test_flame_is_embedded_only_when_asked_for_and_then_stamped(tmp_path, golden):
    asset, motion = golden_flame_asset(golden), wandering(1, 9)
    with pytest.raises(UserError, match="--embed_flame"):
        make_page(tmp_path / "p.html", motion, asset, expression_basis="flame")
    assert not list(tmp_path.iterdir())
    make_page(tmp_path / "p.html", motion, asset, expression_basis="flame", embed_flame=True)
    assert 'name="licence-of-geometry"' in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert any("FLAME" in notice for notice in embedded(tmp_path / "p.html")["notices"])


def test_motion_of_another_basis_is_shown_by_jaw_gaze_and_head_and_the_page_says_so(tmp_path):
    make_page(tmp_path / "p.html", wandering(1, 9), standin_asset(), expression_basis="flame")
    data = embedded(tmp_path / "p.html")
    assert data["numExpression"] == 0 and data["motion"]["shape"] == [1, 9, 8] and data["blink"] is None
    assert "only jaw, gaze and head" in data["notices"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": np.zeros((3, 9, 108), np.float32)}, r"1 or 2"),
        ({"motion": np.full((1, 9, 108), np.inf, np.float32)}, "NaN"),
        ({"truth": np.zeros((2, 9, 108), np.float32)}, "as many people"),
        ({"names": ["a", "b"]}, "names"),
        ({"audio": [np.zeros(9, np.float32)] * 2}, "one track a person"),
        ({"path": "p.htm"}, r"\.html"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    given = {"path": "p.html", "motion": wandering(1, 9), "expression_basis": "standin", **change}
    with pytest.raises(UserError, match=message):
        make_page(tmp_path / given.pop("path"), given.pop("motion"), standin_asset(), **given)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_in_one_line(tmp_path, capsys):
    save_motion(tmp_path / "m.npz", wandering(2, 10), expression_basis="standin", source={})
    write_wav(tmp_path / "a.wav", np.zeros(6400, np.float32))
    words = ["view", str(tmp_path / "m.npz"), "--out", str(tmp_path / "p.html"), "--audio", str(tmp_path / "a.wav")]
    assert main(words) == 0
    assert re.fullmatch(r".*p\.html: 2 x 10 frames, .* MB .*\n", capsys.readouterr().out)
    assert embedded(tmp_path / "p.html")["title"] == "m"


def test_the_command_embeds_flame_with_a_warning_or_not_at_all(tmp_path, capsys, caplog, golden, monkeypatch):
    monkeypatch.setattr("unils_jax.face.head.load_flame", lambda path: golden_flame_asset(golden))
    monkeypatch.chdir(tmp_path)
    save_motion("m.npz", wandering(1, 3), expression_basis="flame", source={})
    for flags in (["--flame", "generic_model.pkl"], ["--embed_flame"]):
        assert main(["view", "m.npz", "--out", "p.html", *flags]) == 2
        error = capsys.readouterr().err
        assert "--embed_flame" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npz"]
    assert main(["view", "m.npz", "--out", "p.html", "--flame", "generic_model.pkl", "--embed_flame"]) == 0
    assert "bound by that licence" in caplog.text
    assert "licence-of-geometry" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_without_the_script_the_command_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(page.importlib.resources, "files", lambda _: tmp_path)
    save_motion(tmp_path / "m.npz", wandering(1, 2), expression_basis="standin", source={})
    assert main(["view", str(tmp_path / "m.npz"), "--out", str(tmp_path / "p.html")]) == 2
    error = capsys.readouterr().err
    assert "make viewer" in error and "Node" in error and error.count("\n") == 1
