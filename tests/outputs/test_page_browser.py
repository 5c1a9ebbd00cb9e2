"""The page of `unils view` in a real browser: what is seen and heard is what the motion file says."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from browser import Page, chromium, until
from flame_golden import golden_flame_asset

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.errors import UserError
from unils_jax.face.flame import vertices
from unils_jax.face.standin import standin_asset
from unils_jax.motion import FPS, HEAD, JAW, center_head, load_motion, save_motion, smooth
from unils_jax.outputs.drawn_head import standin_head
from unils_jax.outputs.page import make_page, page_script
from unils_jax.outputs.video import _frames_of_vertices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def conversation(tmp_path_factory):
    """A motion file of a synthetic conversation, its truth twice as large, and both voices."""
    record = make_conversation(SynthConfig(minutes=0.2), 3, 0)
    path = tmp_path_factory.mktemp("motion") / "motion.npz"
    truth = center_head(record.motion).astype(np.float32)
    save_motion(path, 0.5 * truth, expression_basis="standin", source={})
    return load_motion(path).motion, truth, [track.astype(np.float32) / 32768 for track in record.audio]


@pytest.fixture(scope="module")
def path(tmp_path_factory, conversation):
    try:
        page_script()
    except UserError:
        pytest.skip("the page's script is not built: run `make viewer` (needs Node)")
    path = tmp_path_factory.mktemp("page") / "page.html"
    motion, truth, audio = conversation
    given = {"truth": truth, "title": "a </script> & b", "state": "raw"}
    make_page(path, motion, standin_asset(), audio, expression_basis="standin", **given)
    return path


@pytest.fixture(scope="module")
def session(tmp_path_factory, path):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture
def page(session, path):
    page = Page(session, path)
    yield page
    assert page.errors() == []


def at(motion: np.ndarray, seconds: float) -> np.ndarray:
    """Motion [P, 108] between frames, each of which shows the middle of its 40 ms."""
    place = np.clip(seconds * FPS - 0.5, 0, motion.shape[1] - 1)
    before = int(place)
    after = min(before + 1, motion.shape[1] - 1)
    return motion[:, before] * (1 - (place - before)) + motion[:, after] * (place - before)


def picture(page: Page) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(page.session.get_screenshot_as_png())).convert("RGB")).astype(int)


def test_the_jaw_on_the_page_is_that_of_the_motion_file(page, conversation):
    motion, truth, _ = conversation
    everybody = np.concatenate([motion, truth])
    for seconds in (0.0, 3.217, 8.5):
        people = page.seek(seconds)["people"]
        assert len(people) == 4
        np.testing.assert_allclose([p["jaw"] for p in people], at(everybody, seconds)[:, JAW][:, 0], atol=1e-3)
        np.testing.assert_allclose([p["head"] for p in people], at(everybody, seconds)[:, HEAD], atol=1e-3)


def test_the_vertices_on_the_page_are_those_of_the_video(page, conversation):
    motion = conversation[0]
    frame = int(motion[0, :, JAW].argmax())
    page.seek((frame + 0.5) / FPS)
    expected = next(_frames_of_vertices(standin_head(), motion[:, frame : frame + 1]))
    for person in range(2):
        points = np.array(page.run(f"return unils.points({person})")).reshape(-1, 3)
        np.testing.assert_allclose(points, expected[person], atol=5e-5)


def test_smoothing_on_the_page_is_that_of_the_videos(page, conversation):
    page.key("s")
    until(lambda: page.state()["smooth"], "smoothing")
    for frame in (0, 2, 150, conversation[0].shape[1] - 1):
        people = page.seek((frame + 0.5) / FPS)["people"][:2]
        np.testing.assert_allclose([p["jaw"] for p in people], smooth(conversation[0])[:, frame, JAW][:, 0], atol=1e-3)


def test_an_open_mouth_is_seen(page, conversation):
    jaw = conversation[1][0, :, JAW][:, 0]
    pictures, boxes = [], []
    for frame in (int(jaw.argmin()), int(jaw.argmax())):
        page.seek((frame + 0.5) / FPS)
        boxes.append(page.run("return unils.lips(2)"))
        pictures.append(picture(page))
    left, top = (int(min(box[side] for box in boxes)) for side in ("left", "top"))
    right, bottom = (int(max(box[side] for box in boxes)) for side in ("right", "bottom"))
    assert right - left > 20 and bottom - top > 10
    shut, opened = (image[top:bottom, left:right] for image in pictures)
    assert np.abs(shut - opened).max(axis=-1).mean() > 15
    assert (opened.max(axis=-1) < 70).sum() > (shut.max(axis=-1) < 70).sum() + 10, "a dark mouth"


def check_clocks(page: Page, motion: np.ndarray) -> float:
    """The audio time of what was drawn last, after comparing it with the time of the motion that was drawn."""
    state = page.state()
    assert abs(state["time"] - state["audioWhenDrawn"]) <= 0.04
    expected = at(motion, state["time"])[:, JAW][:, 0]
    np.testing.assert_allclose([p["jaw"] for p in state["people"][:2]], expected, atol=1e-3)
    return state["audioWhenDrawn"]


def test_motion_keeps_time_with_the_sound(page, conversation):
    from selenium.webdriver.common.action_chains import ActionChains

    motion = conversation[0]
    page.session.find_element("id", "play").click()
    until(lambda: page.state()["time"] > 0.3, "sound")
    times = [
        until(lambda last=last: page.state()["time"] > last and check_clocks(page, motion), "time to pass")
        for last in (0.3, 0.6, 0.9, 1.2)
    ]
    assert page.state()["playing"] and times == sorted(times)

    timeline = page.session.find_element("css selector", ".timeline")
    ActionChains(page.session).move_to_element_with_offset(timeline, 200, 0).click().perform()  # from its middle
    width = timeline.size["width"]
    clicked = (width / 2 + 200 - 62) / (width - 62) * motion.shape[1] / FPS
    until(lambda: page.state()["time"] >= clicked - 0.04, "the scrub")
    assert clicked - 0.04 <= check_clocks(page, motion) < clicked + 3
    page.session.find_element("id", "play").click()
    until(lambda: not page.state()["playing"], "a pause")
    state = page.seek(2.5)
    assert state["time"] == state["audio"] == 2.5
    check_clocks(page, motion)


def test_it_stops_at_the_end_and_plays_again_from_the_beginning(page, conversation):
    end = conversation[0].shape[1] / FPS
    page.seek(end - 0.2)
    page.key(" ")
    until(lambda: page.state()["time"] > end - 0.05 and not page.state()["playing"], "the end")
    page.key(" ")
    until(lambda: page.state()["playing"] and 0 < page.state()["time"] < 3, "the beginning")


def test_keys_do_what_the_page_says(page, conversation):
    from selenium.webdriver.common.keys import Keys

    def moved_to(seconds):
        return lambda: page.state()["time"] == pytest.approx(seconds, abs=1e-3)

    end = conversation[0].shape[1] / FPS
    page.seek(2.0)
    for keys, seconds in (
        ((Keys.ARROW_RIGHT,), 2.04),
        ((Keys.SHIFT, Keys.ARROW_RIGHT), 3.04),
        ((Keys.ARROW_LEFT,), 3.0),
        ((Keys.SHIFT, Keys.ARROW_LEFT), 2.0),
        ((Keys.END,), end),
        ((Keys.HOME,), 0.0),
    ):
        page.key(*keys)
        until(moved_to(seconds), f"{keys} to go to {seconds}")
    for key, name, value in (("+", "speed", 1.5), ("-", "speed", 1), ("t", "truth", False), ("s", "smooth", True)):
        page.key(key)
        until(lambda name=name, value=value: page.state()[name] == value, f"{key} to set {name} to {value}")
    page.key(" ")
    until(lambda: page.state()["playing"] and page.state()["time"] > 0, "space to play")
    page.key(" ")
    until(lambda: not page.state()["playing"], "space to pause")
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.key("d")
    until(lambda: page.run("return getComputedStyle(document.body).backgroundColor") != before, "another theme")


def test_dragging_turns_the_heads_and_r_turns_them_back(page):
    from selenium.webdriver.common.action_chains import ActionChains

    page.seek(1.0)
    front = page.run("return unils.lips(0)")
    stage = page.session.find_element("css selector", ".stage")
    ActionChains(page.session).move_to_element(stage).click_and_hold().move_by_offset(120, 0).release().perform()
    turned = until(lambda: (box := page.run("return unils.lips(0)")) != front and box, "the view to turn")
    assert turned["right"] - turned["left"] < 0.97 * (front["right"] - front["left"])
    page.key("r")
    until(lambda: page.run("return unils.lips(0)")["left"] == pytest.approx(front["left"], abs=1.0), "the front view")


def test_it_fits_a_narrow_screen_in_light_and_dark(page):
    page.session.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page.seek(1.0)
        assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [400, 400]
        boxes = page.run(
            "return [...document.querySelectorAll('.tile, .bar > *, .timeline')]"
            ".map(e => e.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) > 8 and all(-1 <= box["left"] and box["right"] <= 401 for box in boxes)
        lips = [page.run(f"return unils.lips({i})") for i in range(4)]
        assert all(box["right"] - box["left"] > 15 for box in lips)
        for scheme, bright in (("light", True), ("dark", False)):
            page.session.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            )
            until(lambda bright=bright: (picture(page)[2, 2].mean() > 128) == bright, scheme)
            image = picture(page)
            box = lips[0]
            face = image[int(box["top"]) - 40 : int(box["bottom"]), int(box["left"]) : int(box["right"])]
            assert face.std(axis=(0, 1)).max() > 10, "a face is drawn"
    finally:
        page.session.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_curves_have_the_colours_of_the_people_and_of_the_truth(page):
    page.seek(1.0)
    box = page.run("return document.querySelector('.timeline').getBoundingClientRect().toJSON()")
    page.run("scrollTo(0, document.body.scrollHeight)")
    top = int(page.run("return document.querySelector('.timeline').getBoundingClientRect().top"))
    image = picture(page)[max(top, 0) : top + int(box["height"]), int(box["left"]) : int(box["right"])]
    red, green, blue = (image[..., i] for i in range(3))
    for name, pixels in (
        ("first", (blue > red + 60) & (blue > green + 30)),
        ("second", (red > blue + 80) & (red > green + 60)),
        ("truth", (green > blue + 25) & (green > red + 3)),
    ):
        assert pixels.sum() > 100, name


def test_the_page_asks_for_nothing_from_anywhere(page):
    entries = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(("blob:", "data:")) for name in entries)
    assert page.run("return document.querySelector('h1').textContent") == "a </script> & b"


def test_one_person_without_sound_runs_on_the_computers_clock(session, tmp_path, path, conversation):
    silent = tmp_path / "silent.html"
    make_page(silent, conversation[0][:1], standin_asset(), expression_basis="standin")
    page = Page(session, silent)
    page.key(" ")
    until(lambda: page.state()["time"] > 0.5, "time to pass")
    page.key(" ")
    state = until(lambda: not (state := page.state())["playing"] and state, "a pause")
    assert state["audio"] is None and len(state["people"]) == 1
    assert state["people"][0]["jaw"] == pytest.approx(at(conversation[0], state["time"])[0, JAW][0], abs=1e-3)
    assert page.errors() == []


def test_flame_is_posed_as_in_the_model_and_stamped(session, tmp_path, path, conversation, golden):
    asset = golden_flame_asset(golden)
    file = tmp_path / "flame.html"
    make_page(file, conversation[1], asset, expression_basis="flame", embed_flame=True, state="raw")
    page = Page(session, file)
    page.seek(20.5 / FPS)
    expected = vertices(asset, jnp.asarray(conversation[1][1, 20]), head_rotation=True)
    np.testing.assert_allclose(np.array(page.run("return unils.points(1)")).reshape(-1, 3), expected, atol=2e-4)
    assert "licensed by its makers" in page.run("return document.querySelector('.notices').textContent")
    assert page.errors() == []
