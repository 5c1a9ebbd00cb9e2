"""What `unils study` writes, without a browser: `test_study_browser.py` opens it in one."""

import json
import re

import numpy as np
import pytest
from flame_golden import golden_flame_asset

from unils_jax.audio import write_wav
from unils_jax.cli.main import main
from unils_jax.errors import UserError
from unils_jax.face.standin import standin_asset
from unils_jax.motion import SAMPLE_RATE, save_motion
from unils_jax.outputs import study
from unils_jax.outputs.study import Pair, StudyOptions, make_study


@pytest.fixture(autouse=True)
def script(monkeypatch):
    """These tests need no built script."""
    monkeypatch.setattr(study, "page_script", lambda _: ("console.log(1)", "The MIT License -- three.js"))


def embedded(path) -> dict:
    return json.loads(re.search(r'id="page-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1])


def pair(name: str, people: int = 2, frames: int = 25) -> Pair:
    motion = np.random.default_rng(0).standard_normal((people, frames, 108)).astype(np.float32) * 0.05
    return Pair(name, (motion, 2 * motion), [np.zeros(frames * 640, np.float32)] * people)


@pytest.fixture
def folders(tmp_path):
    """Two systems with clips x, y and one that the other lacks, and the audio of all."""
    for system, names in (("a", "xyz"), ("b", "xyw")):
        (tmp_path / system).mkdir()
        for name in names:
            motion = np.zeros((2, 100, 108), np.float32)
            motion[..., 103] = np.arange(100) / 1000
            save_motion(tmp_path / system / f"{name}.npz", motion, expression_basis="standin", source={}, finished=True)
    (tmp_path / "audio").mkdir()
    for name in "xyzw":
        for person in "12":
            write_wav(tmp_path / "audio" / f"{name}_speaker{person}.wav", np.zeros(4 * SAMPLE_RATE, np.float32))
    return tmp_path


def make(folders, *more: str) -> int:
    given = [str(folders / "a"), str(folders / "b"), "--audio", str(folders / "audio"), "--out", str(folders / "s")]
    return main(["study", *given, *more])


def test_a_study_holds_the_clips_that_both_systems_and_the_audio_have(folders, capsys, caplog):
    assert make(folders, "--seconds", "2") == 0
    data = embedded(folders / "s" / "index.html")
    assert [clip["name"] for clip in data["clips"]] == data["study"]["clips"] == ["x", "y"]
    assert all(clip["numFrames"] == 50 and clip["motions"]["a"]["shape"] == [2, 50, 32] for clip in data["clips"])
    assert data["study"]["systems"] == {"a": "a", "b": "b"}
    assert sorted(check["system"] for check in data["checks"]) == ["a", "b"]
    assert "w, z" in caplog.text and "2 pairs and 2 checks" in capsys.readouterr().out


def test_the_seed_decides_where_a_clip_is_cut_and_both_systems_are_cut_there(folders):
    studies = []
    for seed in ("1", "1", "2"):
        make(folders, "--seconds", "2", "--seed", seed)
        studies.append(embedded(folders / "s" / "index.html"))
    same, again, other = ([clip["motions"] for clip in data["clips"]] for data in studies)
    assert same == again != other
    assert all(motions["a"] == motions["b"] for motions in same + other)
    assert studies[0]["study"]["id"] == studies[1]["study"]["id"] != studies[2]["study"]["id"]


def test_a_page_does_not_say_which_system_is_on_which_side(tmp_path):
    path = tmp_path / "s.html"
    make_study(path, [pair("x")], standin_asset(), StudyOptions(systems=("ours", "theirs"), num_checks=1),
               expression_basis="standin")  # fmt: skip
    shown = embedded(path)
    del shown["study"]  # what goes into the answers
    assert "ours" not in json.dumps(shown)
    assert "ours" not in path.read_text(encoding="utf-8").partition('id="page-data"')[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--criteria", "lips", "lips"), "each once"),
        (("--checks", "3"), "at most as many checks"),
        (("--names", "same", "same"), "give two names"),
        (("--seconds", "0"), "got 20, 0 and 0"),
        (("--answers", "."), "leave the motion"),
    ],
)
def test_bad_flags_are_one_line(folders, capsys, more, message):
    assert make(folders, *(str(folders) if word == "." else word for word in more)) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split()) and error.count("\n") == 1
    assert not (folders / "s" / "index.html").exists()


def test_one_voice_has_no_listener_to_judge(folders, capsys):
    for name in "xy":
        (folders / "audio" / f"{name}_speaker2.wav").unlink()
        (folders / "audio" / f"{name}_speaker1.wav").rename(folders / "audio" / f"{name}.wav")
    assert make(folders) == 2
    assert "--criteria lips expression head" in capsys.readouterr().err
    assert make(folders, "--criteria", "lips", "expression", "head") == 0


def test_systems_must_show_as_many_people(folders, capsys):
    save_motion(folders / "b" / "x.npz", np.zeros((1, 50, 108), np.float32), expression_basis="standin", source={})
    assert make(folders) == 2
    assert "the same in both, got 2, 1" in capsys.readouterr().err


def test_folders_without_a_common_name_are_refused(folders, capsys):
    for path in (folders / "b").glob("*"):
        path.unlink()
    assert make(folders) == 2 and "no name is in all of" in capsys.readouterr().err


def test_flame_is_embedded_only_when_asked_for(tmp_path, golden):
    asset, options = golden_flame_asset(golden), StudyOptions(num_checks=0)
    with pytest.raises(UserError, match="--embed_flame"):
        make_study(tmp_path / "s.html", [pair("x")], asset, options, expression_basis="flame")
    make_study(tmp_path / "s.html", [pair("x")], asset, options, expression_basis="flame", embed_flame=True)
    assert 'name="licence-of-geometry"' in (tmp_path / "s.html").read_text(encoding="utf-8")
