"""`--engine ray`: what is refused before a cluster is looked for. Runs on a cluster are in the commands' own tests."""

import sys
import types

import pytest
from tiny_runs import run_unils

CONVERT = ["data", "convert", "--from", "files", "--source", ".", "--out", "out"]


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.fixture
def stub_ray(monkeypatch):
    """Ray is there, and may not be touched."""
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))


def refusal(capsys, *argv) -> str:
    assert run_unils(*argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not captured.out
    return captured.err


def test_without_ray_one_line_says_how_to_get_it(no_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate = ["evaluate", "--checkpoint", "model", "--data", "store"]
    for command in (CONVERT, ["decode", "--audio", tmp_path, "--out", "out"], evaluate):
        line = refusal(capsys, *command, "--engine", "ray")
        assert "--engine ray needs Ray: run pip install '.[ray]' in a checkout" in line
    assert not list(tmp_path.iterdir())


def test_flags_that_do_not_go_together_are_named(stub_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        ([*CONVERT, "--actors", "2"], "--actors is of --engine ray"),
        ([*CONVERT, "--engine", "ray", "--actors", "0"], "--actors must be at least 1, got 0"),
        ([*CONVERT, "--engine", "ray", "--workers", "2"], "with --engine ray give --actors"),
        (["decode", "--audio", "a.wav", "--out", "a.npz", "--engine", "ray"], "give --audio a folder or a list"),
        (["evaluate", "--motion", ".", "--data", "d", "--engine", "ray"], "--engine ray scores a --checkpoint on the"),
    ):
        assert message in refusal(capsys, *argv)
    assert not list(tmp_path.iterdir())
