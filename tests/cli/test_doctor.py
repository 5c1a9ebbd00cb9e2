import pytest

from unils_jax.cli import doctor
from unils_jax.cli.main import main
from unils_jax.outputs import canvas


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No files of FLAME or the hub, and no child process that draws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(canvas, "window_class", lambda: None)


def test_it_names_what_is_there_and_how_to_get_what_is_not(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for words in (
        "jax ",
        "x cpu",
        "drawn in NumPy",
        "apt-get install libegl1",
        "hf download facebook/wav2vec2-xls-r-300m",
        "flame.is.tue.mpg.de",
        "nothing is broken",
    ):
        assert words in said, words


def test_a_named_file_that_is_broken_is_told_and_exits_2(tmp_path, capsys):
    (tmp_path / "bad.pkl").write_bytes(b"not a pickle")
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--flame", "bad.pkl", "--checkpoint", "nowhere", "--audio_encoder", "neither"])
    said = capsys.readouterr().out
    assert end.value.code == 2 and "3 broken" in said and said.count("\n  !!") == 3
    assert "bad.pkl" in said and "nowhere" in said and "neither" in said


def test_a_missing_extra_comes_with_the_command_that_installs_it(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "vtk" else real(name))
    finding = next(f for f in doctor.installed() if f.what == "extra render")
    assert (
        finding.status == doctor.ABSENT
        and "vtk" in finding.text
        and "pip install '.[render]' in a checkout" in finding.remedy
    )


def test_a_missing_library_is_broken(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "flax" else real(name))
    finding = next(f for f in doctor.installed() if f.what == "libraries")
    assert finding.status == doctor.BROKEN and "flax" in finding.remedy
