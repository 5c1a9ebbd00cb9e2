"""tf.Example messages, as far as a store needs them: named features that are one string of bytes or one integer.

The wire format is protocol buffers' own. Reading copies nothing: byte strings come back as views of the message.
"""

from collections.abc import Mapping, Sequence

from unils_jax.errors import UserError

# Field 1 of a message, length-delimited; field 3, length-delimited; field 1, varint (a list that is not packed).
_FIRST, _THIRD, _FIRST_VARINT = 0x0A, 0x1A, 0x08
_KEY, _VALUE = 0x0A, 0x12


def encode(features: Mapping[str, bytes | int]) -> bytes:
    """The serialized tf.Example; the features stand in the order given, so that equal input gives equal bytes."""
    entries = []
    for name, value in features.items():
        if isinstance(value, int):
            # A negative integer is written as its 64-bit two's complement.
            listed = _field(_THIRD, _field(_FIRST, _varint(value & (1 << 64) - 1)))
        else:
            listed = _field(_FIRST, _field(_FIRST, value))
        entries.append(_field(_FIRST, _field(_KEY, name.encode()) + _field(_VALUE, listed)))
    return _field(_FIRST, b"".join(entries))


def decode(message: bytes) -> dict[str, memoryview | int]:
    """The features of a serialized tf.Example. Raises UserError where it is none, or holds other kinds of features."""
    view = memoryview(message)
    features: dict[str, memoryview | int] = {}
    try:
        for tag, entries in _fields(view):
            _expect(tag, _FIRST)
            for tag, entry in _fields(entries):
                _expect(tag, _FIRST)
                parts = dict(_fields(entry))
                features[str(parts[_KEY], "utf-8")] = _one_value(memoryview(parts.get(_VALUE, b"")))
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"not a tf.Example message ({type(error).__name__})") from None
    return features


def find_bytes(message: bytes, names: Sequence[bytes]) -> dict[bytes, memoryview]:
    """The byte strings of the features `names`, as far as they are there: `decode`, stopping where all are found.

    Raises UserError as `decode`, but does not look at what it passes over.
    """
    try:
        found = _find_plain(message, names)
    except IndexError:
        found = None
    if found is None:
        features = decode(message)
        found = {name: features[text] for name in names if isinstance(features.get(text := name.decode()), memoryview)}
    return found


def _find_plain(message: bytes, names: Sequence[bytes]) -> dict[bytes, memoryview] | None:
    """`find_bytes` where every entry is laid out as `encode` and the protobuf libraries do it; else None."""
    view, found = memoryview(message), {}
    size, at = _read_varint(view, 1)
    if message[0] != _FIRST or at + size != len(message):
        return None
    while at < len(message) and len(found) < len(names):
        size, start = _read_varint(view, at + 1)
        end, key_end = start + size, start + 2 + message[start + 1]
        if message[at] != _FIRST or message[start] != _KEY or end > len(message) or message[start + 1] >= 0x80:
            return None
        name, at = message[start + 2 : key_end], key_end
        if name in names:
            for tag in (_VALUE, _FIRST, _FIRST):
                if message[at] != tag:
                    return None
                size, at = _read_varint(view, at + 1)
                if at + size != end:
                    return None
            found[name] = view[at:end]
        at = end
    return found


def _one_value(feature: memoryview) -> memoryview | int:
    """The only value of a feature; an empty list is an empty string of bytes, as tf.Example cannot tell it apart."""
    for kind, values in _fields(feature):
        if kind == _FIRST:
            found = [value for tag, value in _fields(values) if tag == _FIRST]
        elif kind == _THIRD:
            found = _integers(values)
        else:
            raise UserError(f"a tf.Example feature of kind {kind >> 3}, expected bytes (1) or integers (3)")
        if len(found) > 1:
            raise UserError(f"a tf.Example feature with {len(found)} values, expected one")
        if found:
            return found[0]
    return memoryview(b"")


def _integers(values: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(values):
        tag, at = values[at], at + 1
        if tag == _FIRST_VARINT:
            value, at = _read_varint(values, at)
            found.append(value)
            continue
        _expect(tag, _FIRST)
        size, at = _read_varint(values, at)
        end = at + size
        while at < end:
            value, at = _read_varint(values, at)
            found.append(value)
    return [value - (1 << 64) if value >> 63 else value for value in found]


def _fields(view: memoryview) -> list[tuple[int, memoryview]]:
    """All length-delimited fields of a message with field numbers under 16, in order."""
    found, at, end = [], 0, len(view)
    while at < end:
        tag = view[at]
        if tag & 0x87 != 2:
            raise UserError(f"not a tf.Example message (field tag {tag})")
        size, at = _read_varint(view, at + 1)
        if size > end - at:
            raise UserError(f"not a tf.Example message (a field of {size} bytes where {end - at} are left)")
        found.append((tag, view[at : at + size]))
        at += size
    return found


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends."""
    value = view[at]
    at += 1
    if value < 0x80:
        return value, at
    value, shift = value & 0x7F, 7
    while shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
    raise UserError("not a tf.Example message (a number of more than 64 bits)")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(content)) + content


def _expect(tag: int, expected: int) -> None:
    if tag != expected:
        raise UserError(f"not a tf.Example message (field tag {tag}, expected {expected})")
