"""Archives come back as NumPy wrote them; a stranger's costs no memory that it cannot back and runs nothing."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from foreign_data import npz
from hostile_npz import HOSTILE, Runs, archive, bomb, header, npy, with_index
from hypothesis import given, settings
from hypothesis import strategies as st

from unils_jax.errors import UserError
from unils_jax.files import MAX_BYTES, read_npz, read_npz_file

RNG = np.random.default_rng(0)
ARRAYS = {
    "motion": RNG.random((170, 112)).astype(np.float16),
    "columns": np.asfortranarray(RNG.random((5, 7))),
    "mask": RNG.random(33) < 0.5,
    "text": np.array("hé"),
    "texts": np.array(["a", "bcd", ""]),
    "nothing": np.array(""),
    "big_endian": np.arange(400_000, dtype=">i2"),
    "empty": np.zeros((0, 3)),
    "scalar": np.float64(25.0),
    "large": RNG.integers(0, 9, 3_000_000).astype(np.int16),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back_as_numpy_wrote_them(compressed):
    got = read_npz(npz(compressed, **ARRAYS), [*ARRAYS, "absent"], origin="x")
    assert set(got) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert got[name].dtype == np.asarray(array).dtype.newbyteorder("=") and got[name].shape == np.shape(array)
        assert got[name].flags.c_contiguous and got[name].flags.writeable
        np.testing.assert_array_equal(got[name], array)


def test_only_what_is_asked_for_is_read():
    archive = npz(motion=ARRAYS["motion"], extra=np.array([None, {}]))
    assert list(read_npz(archive, ["motion"], origin="x")) == ["motion"]


def test_files_are_read_and_missing_ones_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(mask=ARRAYS["mask"]))
    np.testing.assert_array_equal(read_npz_file(tmp_path / "a.npz", ["mask"])["mask"], ARRAYS["mask"])
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("b.npz", "does not exist"), ("", "is no plain file"), ("pipe", "is no plain file")):
        with pytest.raises(UserError, match=message):
            read_npz_file(tmp_path / name, ["mask"])


class Child:
    """The process of `npz_child.py`."""

    def __init__(self) -> None:
        script = Path(__file__).parent / "support" / "npz_child.py"
        self.process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, content: bytes) -> dict:
        self.process.stdin.write(struct.pack("<L", len(content)) + content)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the reader ended with status {self.process.wait(10)}"
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def child():
    child = Child()
    yield child
    child.close()


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_are_refused_by_name_in_two_gigabytes(child, what):
    content, message = HOSTILE[what]
    got = child(content)
    if what == "an end alone":  # an archive of nothing is honest
        assert got == {}
    else:
        assert got["refused"].startswith("record 'a' ") and message in got["refused"]
        assert "\n" not in got["refused"] and len(got["refused"]) < 400


def test_pickled_objects_are_refused_and_never_run(child, tmp_path):
    for value in (np.array([Runs(tmp_path / "ran")]), np.array(Runs(tmp_path / "ran"), dtype=object)):
        got = child(npz(audio=value))
        assert "as pickled objects, which are never read" in got["refused"]
    structured = np.zeros(2, [("a", "<f4"), ("b", "O")])
    assert "refused" in child(npz(audio=structured))
    assert not (tmp_path / "ran").exists()


def test_two_members_of_one_name_are_refused(child):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("audio.npy", npy(header(), bytes(12)))
        file.writestr("audiO.npy", npy(header(), bytes(12)))
    assert "two members" in child(buffer.getvalue().replace(b"audiO", b"audio"))["refused"]


def test_a_bomb_is_refused_before_it_unfolds(child):
    content = bomb(1)
    assert len(content) < 2 << 20 and len(zlib.decompressobj(-15).decompress(content[39:], 1 << 25)) == 1 << 25
    assert f"at most {MAX_BYTES} are read" in child(content)["refused"]
    # More bytes under an index and a header that claim little: unfolding stops at what is claimed.
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(npy(header("(100000,)", "|u1"), bytes(8 << 20))) + packer.flush()
    small = archive(npy(header("(100000,)", "|u1"), bytes(100_000)), method=zipfile.ZIP_DEFLATED)
    at, end = small.index(b"PK\1\2"), small.index(b"PK\5\6")
    start = 30 + len("audio.npy")
    moved = start + len(packed)
    index = with_index(small, 20, len(packed))[at:end]
    tail = small[end : end + 16] + struct.pack("<L", moved) + small[end + 20 :]
    assert child(small[:start] + packed + index + tail) == {"audio": ["uint8", [100_000]]}
    other = with_index(index + tail, 16, 0)  # the checksum of what is claimed
    assert "Bad CRC-32" in child(small[:start] + packed + other)["refused"]


@pytest.mark.slow
def test_a_large_honest_archive_fits_in_the_same_space(child):
    zeros = np.zeros(MAX_BYTES - 4096, np.uint8)
    assert child(npz(True, audio=zeros)) == {"audio": ["uint8", list(zeros.shape)]}


RECORD = {
    compressed: npz(
        compressed,
        motioncode=RNG.random((12, 111)).astype(np.float16),
        audio=RNG.integers(-99, 99, 640).astype(np.int16),
        speech_mask=RNG.random(12) < 0.5,
    )
    for compressed in (False, True)
}
SHAPES = {"motioncode": ["float16", [12, 111]], "audio": ["int16", [640]], "speech_mask": ["bool", [12]]}


@st.composite
def damaged(draw) -> bytes:
    """A record with bytes changed, mostly in its headers and index, cut out, repeated or cut off."""
    content = bytearray(RECORD[draw(st.booleans())])
    structures = [i for magic in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY") for i in _all(content, magic)]
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.sampled_from(structures)) + draw(st.integers(0, 100))
        at = min(draw(st.one_of(st.just(near), st.integers(0, len(content) - 1))), len(content) - 1)
        size = draw(st.integers(0, 8))
        new = draw(st.one_of(st.binary(max_size=8), st.just(bytes(content[at : at + size])), st.just(b"\xff" * size)))
        content[at : at + draw(st.sampled_from([len(new), size]))] = new
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


def _all(content: bytes, magic: bytes) -> list[int]:
    found, at = [], content.find(magic)
    while at >= 0:
        found.append(at)
        at = content.find(magic, at + 1)
    return found


@settings(max_examples=400, deadline=None)
@given(content=damaged())
def test_damaged_records_are_refused_by_name_or_read_whole(child, content):
    got = child(content)
    if "refused" in got:
        assert got["refused"].startswith("record 'a' ") and "\n" not in got["refused"]
    else:
        # What is read is what was written: a checksum holds the bytes and the header. A renamed member is absent.
        assert got.items() <= SHAPES.items()
