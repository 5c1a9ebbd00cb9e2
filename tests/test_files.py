"""Outputs that appear whole or not at all, and output paths that are checked before the work."""

import pytest

from unils_jax.errors import UserError
from unils_jax.files import atomic_output, check_output, write_text


def test_an_output_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "out.bin"
    with atomic_output(target) as partial:
        partial.write_bytes(b"half")
        assert not target.exists()
        assert (partial.parent, partial.suffix) == (target.parent, ".bin")
    assert target.read_bytes() == b"half"
    assert [path.name for path in target.parent.iterdir()] == ["out.bin"]


def test_a_failure_leaves_the_old_output_and_no_partial_one(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk"), atomic_output(target) as partial:
        partial.write_bytes(b"new")
        raise RuntimeError("disk")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_a_failure_before_anything_is_written_raises_itself(tmp_path):
    with pytest.raises(KeyError), atomic_output(tmp_path / "out.bin"):
        raise KeyError("x")
    assert not list(tmp_path.iterdir())


def test_an_output_path_is_returned_and_its_folder_made(tmp_path):
    path = check_output(str(tmp_path / "new" / "out.npz"), ".npz")
    assert path.name == "out.npz"
    assert path.parent.is_dir()
    assert not list(path.parent.iterdir())


def test_a_suffix_in_capitals_is_refused_because_readers_tell_files_by_it(tmp_path):
    with pytest.raises(UserError, match="must end in .npz, got '.NPZ'"):
        check_output(tmp_path / "out.NPZ", ".npz")


def test_any_suffix_will_do_where_none_is_asked_for(tmp_path):
    assert check_output(tmp_path / "out") == tmp_path / "out"


@pytest.mark.parametrize(("name", "got"), [("out.txt", "'.txt'"), ("out", "no suffix")])
def test_a_wrong_suffix_is_refused(tmp_path, name, got):
    with pytest.raises(UserError, match=rf"must end in .npz or .mp4, got '?{got}"):
        check_output(tmp_path / name, ".npz", ".mp4")


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        check_output(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write to .*file.*; choose another output folder"):
        check_output(tmp_path / "file" / "out.npz")


def test_text_is_utf_8_and_what_cannot_be_written_leaves_the_old(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "ä\n")
    assert target.read_bytes() == b"\xc3\xa4\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(str(target), "\ud800")
    assert target.read_bytes() == b"\xc3\xa4\n" and list(tmp_path.iterdir()) == [target]
