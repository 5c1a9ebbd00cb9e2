"""Damages the files of a reader's good sample, reproducibly: by their bytes, and by what their format means.

A sample is the bytes of files by their paths inside a folder; a path that ends in `/` is an empty folder. One number
is one damage. Files with checksums or compressed parts are changed inside and packed again, because a changed byte
alone would only ever reach the checksum.
"""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable

import numpy as np

Sample = dict[str, bytes]
Change = Callable[[bytes, random.Random], bytes]

INTEGERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40)
NUMBERS = "0 -1 1 2 3.5 -0.0 1e9 1e400 -1e400 nan inf 1e-320 99999999999999999999 65536 4294967296 0x10 1_0".split()
VALUES = (None, True, False, 0, -1, 1, 2.5, 1e300, float("nan"), float("inf"), 10**30, 1 << 62, 65536, "", "x", "\0")
VALUES += ("../../x", "/etc/passwd", "é\ud800", "x" * 5000, [], {}, [[]], [None], {"a": 1}, [0] * 200, [1, "a", None])
CELLS = (*NUMBERS, "", " ", '"', '""', '"a,b"', "a\tb", "\0", "é", "=1+1", "'", "x" * 3000, "1,5", "1;5", "True")


def mutated(sample: Sample, seed: int, only: tuple[str, ...] = ()) -> Sample:
    """Returns the sample with one to three changes; `only` are beginnings of the paths that may change."""
    rng = random.Random(seed)
    sample = dict(sample)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = sorted(path for path in sample if path.startswith(only or "") and not path.endswith("/"))
        # Texts are few and are read first: one as often as any of many arrays.
        texts = [path for path in paths if sample[path][:1] in (b"{", b"[")]
        if paths:
            _change_file(sample, rng.choice(texts if texts and rng.random() < 0.4 else paths), rng)
    return sample


def _change_file(sample: Sample, path: str, rng: random.Random) -> None:
    content, draw = sample[path], rng.random()
    if draw < 0.03:
        del sample[path]
    elif draw < 0.045:
        del sample[path]
        sample[f"{path}/"] = b""
    elif draw < 0.06:
        sample[path] = b""
    elif draw < 0.08:
        sample[path] = sample[rng.choice(sorted(sample))]
    else:
        sample[path] = change_for(path, content)(content, rng)


def change_for(path: str, content: bytes) -> Change:
    """Returns the change that fits a file's format."""
    if path.endswith((".npz", ".pt", ".zip", ".bin")) and content.startswith(b"PK"):
        return _either(0.75, change_zip, change_bytes)
    if content.startswith(b"\x93NUMPY"):
        return change_npy
    if path.endswith(".safetensors"):
        return _either(0.7, change_safetensors, change_bytes)
    if path.endswith((".csv", ".tsv", ".txt")):
        return _either(0.8, change_table, change_bytes)
    if content[:1] in (b"{", b"["):
        return _either(0.75, change_json, change_bytes)
    return change_bytes


def _either(share: float, first: Change, second: Change) -> Change:
    return lambda content, rng: (first if rng.random() < share else second)(content, rng)


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Changes bytes, most often those of the head or of the end, where structures are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        span = len(data)
        near = min(span, 256)
        at = rng.choice((rng.randrange(near + 1), span - rng.randrange(near + 1), rng.randrange(span + 1)))
        size = rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(8)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at : at + size] = rng.choice((b"\xff", b"\0", b"\x80", b"9", b"(")) * size
        elif kind == 5:
            value, width = rng.choice(INTEGERS), rng.choice((2, 4, 8))
            data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))
        elif kind == 6:
            at = rng.randrange(span + 1)
            del data[at:]
        elif at < span:
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def change_json(content: bytes, rng: random.Random) -> bytes:
    """Replaces, removes, repeats or nests a node of a JSON text."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return change_bytes(content, rng)
    if rng.random() < 0.05:
        return rng.choice((b"null", b"[]", b"{}", b"0", b'""', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"NaN"))
    places = list(_places(tree))
    if not places:
        return change_bytes(content, rng)
    # A node near the root as often as any leaf: long lists have most of the leaves.
    depth = rng.choice(sorted({len(path) for path, _, _ in places}))
    _, parent, key = rng.choice([place for place in places if len(place[0]) == depth])
    kind = rng.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("", "x", str(key) + "s", "../y"))] = parent[key]
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == 3:
        parent[key] = [parent[key]]
    elif kind == 4 and isinstance(parent[key], int | float):
        parent[key] = rng.choice(
            (-parent[key], parent[key] + 1, parent[key] * 10**6, parent[key] * 1e308, float("nan"))
        )
    else:
        parent[key] = rng.choice(VALUES)
    return json.dumps(tree).encode("utf-8", "replace")


def _places(node: object, path: tuple = ()):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield (*path, key), node, key
        yield from _places(value, (*path, key))


def change_table(content: bytes, rng: random.Random) -> bytes:
    """Changes cells, rows, columns, delimiters or the encoding of a table."""
    text = content.decode("utf-8", "replace")
    lines = text.split("\n")
    row, kind = rng.randrange(len(lines)) if rng.random() < 0.6 else 0, rng.randrange(12)
    cells = lines[row].split(",")
    column = rng.randrange(len(cells)) if rng.random() < 0.5 else rng.randrange(min(4, len(cells)))
    if kind <= 3:
        cells[column] = rng.choice(CELLS)
        lines[row] = ",".join(cells)
    elif kind == 4:
        lines[row] = ",".join(cells[:column] + cells[column + 1 :])
    elif kind == 5:
        lines.insert(rng.randrange(len(lines) + 1), lines[row])
    elif kind == 6:
        del lines[row]
    elif kind == 7:
        lines = [",".join(c for i, c in enumerate(line.split(",")) if i != column) for line in lines]
    elif kind == 8:
        # One column's cells, all of them.
        cell = rng.choice(CELLS)
        lines[1:] = [",".join(cell if i == column else c for i, c in enumerate(line.split(","))) for line in lines[1:]]
    elif kind == 9:
        return (
            rng.choice(("sep=;", "sep=", "sep=\0", 'sep="', "sep=\r", "\ufeff\ufeff", "#")).encode() + b"\n" + content
        )
    elif kind == 10:
        joiner = rng.choice((";", "\t", "|", ", ", ",,", "\0", '","'))
        return text.replace(",", joiner).encode()
    else:
        return rng.choice(("utf-16", "utf-16-be", "utf-8-sig", "utf-32")).join(("", "")).encode() + text.encode(
            rng.choice(("utf-16", "utf-16-be", "utf-8-sig", "utf-32"))
        )
    return "\n".join(lines).encode("utf-8", "replace")


def change_npy(content: bytes, rng: random.Random) -> bytes:
    """Changes an array: its header, its values, its type or its shape."""
    kind = rng.randrange(4)
    if kind == 0:
        return change_bytes(content, rng)
    if kind == 1:
        return _npy_header(content, rng)
    buffer, start = io.BytesIO(), 10 + int.from_bytes(content[8:10], "little")
    try:
        if content[start : start + 1] in (b"{", b"["):  # JSON in an array of bytes
            np.save(buffer, np.frombuffer(change_json(content[start:], rng), np.uint8))
            return buffer.getvalue()
        np.save(buffer, change_array(np.load(io.BytesIO(content), allow_pickle=False), rng))
    except Exception:  # it was damaged before, or cannot be cast so
        return change_bytes(content, rng)
    return buffer.getvalue()


def _npy_header(content: bytes, rng: random.Random) -> bytes:
    end = 10 + int.from_bytes(content[8:10], "little")
    text = content[10:end].decode("latin1", "replace")
    old = rng.choice(("(", ")", "<f4", "<f8", "False", "'shape'", "descr", "1", "0", ","))
    shapes = ("(1000000000000,)", "(0, 1000000000)", "(-1,)", "((", "<f2", "|O", "<U9", "True", "{", "", "9" * 3000)
    text = text.replace(old, rng.choice(shapes), 1).encode("latin1")
    return content[:8] + struct.pack("<H", len(text) & 0xFFFF) + text + content[end:]


def change_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """Returns an array of other values, another type or another shape."""
    kind = rng.randrange(9)
    if kind == 0:
        return array.reshape(-1)
    if kind == 1:
        return array[None]
    if kind == 2:
        return array[..., : max(array.shape[-1] - 1, 0)] if array.ndim else np.zeros(3)
    if kind == 3:
        return array[:0] if array.ndim else np.zeros(0)
    if kind == 4 and array.ndim:
        return np.concatenate([array, array])
    if kind == 5:
        return array.astype(rng.choice(("U3", "?", "u1", "i8", "f8", "f2", "c8", "S2")), casting="unsafe")
    if kind == 6:
        return rng.choice((np.array("text"), np.array(5), np.array(["a", "b"]), np.array(np.nan), np.zeros((0, 0))))
    changed = array.copy()
    if changed.size and changed.dtype.kind in "fiu":
        high = np.finfo(changed.dtype).max if changed.dtype.kind == "f" else np.iinfo(changed.dtype).max
        values = [high, -1 if changed.dtype.kind != "u" else high, 0, 1, 2, 1000]
        values += [np.nan, np.inf, -np.inf] if changed.dtype.kind == "f" else [np.iinfo(changed.dtype).min]
        flat, value = changed.reshape(-1), rng.choice(values)
        flat[slice(None) if rng.random() < 0.3 else rng.randrange(flat.size)] = value
    return changed


def change_zip(content: bytes, rng: random.Random) -> bytes:
    """Changes one member of an archive, or which members there are, and packs it again."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    except Exception:
        return change_bytes(content, rng)
    if not members:
        return change_bytes(content, rng)
    at = rng.randrange(len(members))
    name, data, method = members[at]
    kind = rng.random()
    if kind < 0.8:
        members[at] = (name, change_for(name, data)(data, rng), method)
    elif kind < 0.87:
        del members[at]
    elif kind < 0.93:
        members[at] = (name, members[rng.randrange(len(members))][1], method)
    else:
        members.append((rng.choice((name, "x.npy", "../x.npy", f"{name}/y")), data, method))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, method in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, data)
    return buffer.getvalue()


def change_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Changes the JSON head of a .safetensors file and its length with it."""
    size = int.from_bytes(content[:8], "little")
    head = change_json(content[8 : 8 + size], rng)
    length = len(head) if rng.random() < 0.9 else rng.choice(INTEGERS)
    return struct.pack("<Q", length) + head + content[8 + size :]
