import io
import os
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest

from unils_jax.errors import UserError
from unils_jax.pickles.arrays import NUMPY_GLOBALS, PickledArray, unwrap
from unils_jax.pickles.restricted import Inert, restricted_load

ARRAYS = {
    "float64": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big_endian": np.arange(5, dtype=">i2"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.uint8),
}


def loads(data: bytes, allowed=NUMPY_GLOBALS, **kwargs):
    return restricted_load(io.BytesIO(data), allowed, **kwargs)


class Runs:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_come_back(protocol):
    loaded = loads(pickle.dumps({**ARRAYS, "number": np.float32(2.5), "list": [1, "a", None]}, protocol))
    for name, array in ARRAYS.items():
        read = unwrap(loaded[name])
        assert read.dtype == array.dtype and np.array_equal(read, array), name
    assert loaded["number"] == 2.5 and loaded["list"] == [1, "a", None]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_named_and_never_run(tmp_path, protocol):
    marker = tmp_path / "ran"
    for attack in (
        Runs(os.system, f"touch {marker}"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(getattr, "x", "upper"),
    ):
        with pytest.raises(UserError, match=r"forbidden global '(posix|nt|builtins|__builtin__)\."):
            loads(pickle.dumps({"v_template": attack}, protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\nndarray.tofile\n.",  # attributes of allowed globals
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_other_ways_to_a_global_are_closed(data):
    with pytest.raises(UserError):
        loads(data)


@pytest.mark.parametrize(
    "state", [b"}S'array'\nI1\ns", b"N}S'__setstate__'\nI1\ns\x86", b"N}S'__class__'\ncnumpy\ndtype\ns\x86"]
)
@pytest.mark.parametrize("target", [b"cnumpy\nndarray\n", b"c_codecs\nencode\n", b"cnumpy\ndtype\n)\x81"])
def test_build_changes_neither_classes_nor_functions(target, state):
    before = {name: value for name, value in vars(PickledArray).items()}
    try:
        loads(b"\x80\x02" + target + state + b"b.")
    except UserError:
        pass
    assert dict(vars(PickledArray)) == before
    assert np.array_equal(unwrap(loads(pickle.dumps(np.arange(3), 2))), np.arange(3))


def array_pickle(shape: bytes, data: bytes = b"U\x08abcdefgh", dtype: bytes = b"U\x02f8") -> bytes:
    rebuilt = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return b"\x80\x02" + rebuilt + b"(K\x01" + shape + b"cnumpy\ndtype\n" + dtype + b"\x85R\x89" + data + b"tb."


def test_arrays_must_hold_what_their_shape_says():
    assert unwrap(loads(array_pickle(b"K\x01\x85"))).shape == (1,)
    for shape in (
        b"K\x02\x85",
        b"J\xff\xff\xff\x7f\x85",
        b"J\xff\xff\xff\xff\x85",
        b"G?\xf0\0\0\0\0\0\0\x85",
        b"K\x01",
    ):
        with pytest.raises(UserError):
            loads(array_pickle(shape))
    for dtype in (b"U\x02O8", b"U\x02V8", b"U\x02S8", b"U\x03f16", b"K\x08"):
        with pytest.raises(UserError, match="only plain numbers"):
            loads(array_pickle(b"K\x01\x85", dtype=dtype))
    with pytest.raises(UserError, match="not bytes"):
        loads(pickle.dumps(np.array([object], dtype=object).reshape(1), 2).replace(b"cbuiltins\nobject\n", b"N"))


def test_every_truncation_is_an_error():
    data = pickle.dumps(ARRAYS, 2)
    for length in range(len(data) - 1):
        with pytest.raises(UserError):
            loads(data[:length])


def test_damage_is_an_error_or_harmless():
    draw, data = random.Random(0), pickle.dumps({"a": ARRAYS["float64"], "b": ["x" * 30, 1.5]}, 2)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            loads(bytes(damaged))
        except UserError:
            pass


def test_depth_is_bounded():
    for deep in (
        b"\x80\x02)" + b"\x85" * 160_000 + b".",
        b"\x80\x02" + b"(" * 160_000 + b"t" * 160_000 + b".",
        b"\x80\x02" + b"]" * 160_000 + b"a" * 159_999 + b".",
        b"\x80\x02}" + b"}U\x01x" * 160_000 + b"N" + b"s" * 160_000 + b".",
        b"\x80\x02}" + b")" + b"\x85" * 160_000 + b"Ns.",
    ):
        with pytest.raises(UserError, match="nests over 100 containers|is not a pickle that can be read"):
            loads(deep)
    assert loads(b"\x80\x02N" + b"\x85" * 90 + b".") is not None


def test_keys_are_text_or_numbers():
    # Forty tuples, each holding the one before it twice: its hash would take hours.
    doubling = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))
    for key in (b")", doubling, b"c_codecs\nencode\n"):
        for filled in (b"\x80\x02}" + key + b"Ns.", b"\x80\x02}(" + key + b"Nu.", b"(" + key + b"Nd."):
            with pytest.raises(UserError, match="a key is neither text nor a number"):
                loads(filled)


def test_size_is_bounded():
    with pytest.raises(UserError, match="over 10 bytes"):
        loads(pickle.dumps("x" * 100), max_bytes=10)
    with pytest.raises(UserError, match="memo index"):
        loads(b"\x80\x02Nr\xff\xff\xff\x7f.")
    with pytest.raises(UserError):
        loads(b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00abc.")
    long = b"\x80\x02X" + (1 << 20).to_bytes(4, "little") + b"x" * (1 << 20) + b"q\x000"
    encode_again = b"c_codecs\nencode\nh\x00\x85R0"
    with pytest.raises(UserError, match="more memory than it holds"):
        loads(long + 1000 * encode_again + b"N.")


def test_persistent_references_go_to_the_caller_or_are_refused():
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.persistent_id = lambda value: ("storage", 7) if isinstance(value, set) else None
    pickler.dump([set()])
    assert loads(buffer.getvalue(), persistent_load=lambda pid: pid[1]) == [7]
    with pytest.raises(UserError, match="outside the file"):
        loads(buffer.getvalue())


class Stub(Inert):
    __slots__ = ()


def test_allowed_classes_come_as_inert_stubs_and_allowed_callables_are_called():
    allowed = {("collections", "OrderedDict"): OrderedDict, ("some.where", "Thing"): Stub}
    assert loads(pickle.dumps(OrderedDict(a=1), 2), allowed) == OrderedDict(a=1)
    thing = loads(b"\x80\x02csome.where\nThing\nK\x05\x85\x81}U\x01xK\x03sb.", allowed)
    assert isinstance(thing, Stub) and thing.args == (5,) and thing.state == {"x": 3}
