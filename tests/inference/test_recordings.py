"""Which files of a folder are conversations, and which sound of a file is whose."""

import numpy as np
import pytest
import soundfile

from unils_jax.errors import UserError
from unils_jax.inference.recordings import find_recordings, read_conversation


def write(path, *channels):
    soundfile.write(path, np.stack(channels, axis=1), 16000)


def tone(hertz: float) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000)).astype(np.float32)


def test_any_media_in_any_case_is_found_and_the_rest_is_named(tmp_path, caplog):
    for name in ("a.WAV", "b_Speaker1.w64", "b_speaker2.wav", "c.caf"):
        write(tmp_path / name, tone(200))
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "folder.wav").mkdir()
    assert [(r.name, len(r.tracks)) for r in find_recordings(tmp_path)] == [("a", 1), ("b", 2), ("c", 1)]
    assert "left out" in caplog.text and "notes.txt" in caplog.text and "a.WAV" not in caplog.text


def test_two_second_tracks_of_one_conversation_are_refused(tmp_path):
    for name in ("a_speaker1.wav", "a_speaker2.wav", "a_Speaker2.flac"):
        write(tmp_path / name, tone(200))
    with pytest.raises(UserError, match=r"a_Speaker2\.flac and a_speaker2\.wav are second tracks of one conv"):
        find_recordings(tmp_path)


LISTED = "# mine\nké one.wav\n\n\"b 1.wav\"\t'b 2.wav'\n"


@pytest.mark.parametrize(
    "written",
    [
        LISTED.encode(),
        LISTED.replace("\n", "\r\n").encode("utf-8-sig"),
        LISTED.replace("\n", "\r").encode(),
        LISTED.replace("\n", "\r\n").encode("utf-16"),
        LISTED.encode("utf-16-le"),
        (LISTED + "#").encode("utf-16-be"),
        LISTED.replace("\n", "\0").encode(),
        LISTED.rstrip().encode(),
    ],
    ids=["unix", "notepad", "old mac", "powershell", "utf-16-le", "utf-16-be", "print0", "no end"],
)
def test_a_list_may_come_from_any_editor_or_shell(tmp_path, written):
    (tmp_path / "list.txt").write_bytes(written)
    found = [[track.name for track in recording.tracks] for recording in find_recordings(tmp_path / "list.txt")]
    assert found == [["b 1.wav", "b 2.wav"], ["ké one.wav"]]


def test_a_list_holds_names_of_any_bytes_and_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / '"q".wav').touch()
    (tmp_path / "list.txt").write_bytes(b'caf\xe9.wav\n~/x.wav\n"q".wav\n')
    found = {str(recording.tracks[0]) for recording in find_recordings(tmp_path / "list.txt")}
    assert found == {f"{tmp_path}/caf\udce9.wav", "/home/me/x.wav", f'{tmp_path}/"q".wav'}


def test_two_channels_are_one_person_or_two(tmp_path, caplog):
    write(tmp_path / "call.wav", tone(200), tone(330))
    (mixed,) = read_conversation([tmp_path / "call.wav"])
    own, other = read_conversation([tmp_path / "call.wav"], "split")
    assert "its 2 channels differ" in caplog.text
    np.testing.assert_allclose(mixed, (own + other) / 2, atol=1e-3)
    assert np.abs(own - tone(200)).max() < 1e-3 and np.abs(other - tone(330)).max() < 1e-3


def test_split_takes_one_file_of_two_people(tmp_path):
    write(tmp_path / "two.wav", tone(200), tone(330))
    write(tmp_path / "three.wav", tone(200), tone(330), tone(440))
    with pytest.raises(UserError, match="leave --audio2 away"):
        read_conversation([tmp_path / "two.wav"] * 2, "split")
    with pytest.raises(UserError, match="has 3 channels, a conversation 2"):
        read_conversation([tmp_path / "three.wav"], "split")
