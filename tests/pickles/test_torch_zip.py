"""Release .pt files: layouts, dtypes, and files made to do harm."""

import json
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pt_writer import Raw, Window, call, global_, write_pt

from unils_jax.checkpoints.torch_files import read_pt
from unils_jax.errors import UserError

META_CFG = {"MODEL": {"LOADER": "unils_codec.UniLSCodec", "V_PATCH_NUMS": [1, 100], "RATE": 0.3, "X": None, "Y": True}}
NEEDS_TORCH = "needs PyTorch: pip install '.[torch]'"


def checkpoint(**tensors) -> dict:
    return {"model": OrderedDict(tensors), "meta_cfg": META_CFG}


def small() -> dict:
    return checkpoint(weight=np.arange(6, dtype=np.float32).reshape(2, 3), bias=np.ones(2, np.float32))


def refused(path, match: str) -> str:
    with pytest.raises(UserError, match=match) as raised:
        read_pt(path)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 600
    assert str(path) in message
    return message


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_reads_every_dtype_in_both_byte_orders(tmp_path, byte_order):
    tensors = {
        dtype: np.array([[0, 1, 1], [1, 0, 1]], dtype)
        for dtype in ("float32", "float16", "float64", "int64", "int32", "bool")
    }
    read = read_pt(write_pt(tmp_path / "x.pt", checkpoint(**tensors), byte_order=byte_order))
    assert read["meta_cfg"] == META_CFG
    assert list(read["model"]) == list(tensors)
    for name, array in read["model"].items():
        assert array.dtype == name
        assert np.array_equal(array, tensors[name])


def test_bfloat16_becomes_float32_exactly(tmp_path):
    values = np.array([1.5, -2.0, 2.0**-133, 3.3895314e38, np.inf], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.int16)
    window = Window(halves, 0, (5,), (1,), storage_class="BFloat16Storage")
    array = read_pt(write_pt(tmp_path / "x.pt", checkpoint(w=window)))["model"]["w"]
    assert array.dtype == np.float32
    assert array.tobytes() == values.tobytes()


def test_views_shared_storages_scalars_and_parameters_are_read(tmp_path):
    flat = np.arange(24, dtype=np.float32)
    path = write_pt(
        tmp_path / "x.pt",
        checkpoint(
            transposed=Window(flat, 2, (3, 4), (1, 5)),
            whole=Window(flat, 0, (24,), (1,), parameter=True),
            scalar=np.array(5, np.int64),
            empty=np.zeros((0, 3), np.float32),
            any_stride=Window(flat, 4, (1, 2), (1 << 60, 1)),
        ),
    )
    model = read_pt(path)["model"]
    assert np.array_equal(model["transposed"], flat[2:22].reshape(4, 5)[:, :3].T)
    assert np.array_equal(model["whole"], flat)
    assert model["scalar"].shape == () and model["scalar"] == 5
    assert model["empty"].shape == (0, 3)
    assert np.array_equal(model["any_stride"], [[4, 5]])
    with zipfile.ZipFile(path) as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 3  # the three windows share one storage


def test_what_else_a_checkpoint_holds_is_left_out(tmp_path):
    path = write_pt(tmp_path / "x.pt", {**small(), "optimizer": {"step": 3}})
    assert set(read_pt(path)) == {"model", "meta_cfg"}


def test_a_golden_state_dict_survives(tmp_path, golden):
    weights = golden("codec").weights
    read = read_pt(write_pt(tmp_path / "x.pt", checkpoint(**weights)))["model"]
    assert {key: array.tobytes() for key, array in read.items()} == {k: w.tobytes() for k, w in weights.items()}


MALICIOUS = [
    lambda marker: call("os", "system", f"touch {marker}"),
    lambda marker: call("posix", "system", f"touch {marker}"),
    lambda marker: call("builtins", "eval", f"open({str(marker)!r}, 'w')"),
    lambda marker: call("builtins", "exec", f"open({str(marker)!r}, 'w')"),
    lambda marker: call("builtins", "open", str(marker), "w"),
    lambda marker: call("builtins", "getattr", Raw(global_("os", "path")), "join"),
    lambda marker: call("torch.storage", "_load_from_bytes", "x"),
    lambda marker: call("torch.serialization", "load", str(marker)),
    lambda marker: call("torch._utils", "_rebuild_tensor_v2.__globals__"),
    lambda marker: call("numpy", "fromfile", str(marker)),
]


@pytest.mark.parametrize("where", ["extra", "meta_cfg", "model"])
@pytest.mark.parametrize("attack", MALICIOUS)
def test_malicious_pickles_are_refused_and_never_run(tmp_path, attack, where):
    marker = tmp_path / "marker"
    tree = small()
    if where == "meta_cfg":
        tree["meta_cfg"] = {"MODEL": {"V_PATCH_NUMS": [1, attack(marker)]}}
    if where == "model":
        tree["model"]["weight"] = attack(marker)
    path = write_pt(tmp_path / "x.pt", tree, extra_pickle=attack(marker) if where == "extra" else None)
    refused(path, "forbidden global")
    assert not marker.exists()


def test_a_pickle_cannot_reach_into_the_readers_own_objects(tmp_path):
    # BUILD on what the allow-list hands out: the function behind _rebuild_tensor_v2, a storage class, a tensor.
    state = b"}(X\x08\x00\x00\x00__call__K\x01u"
    for target in (global_("torch._utils", "_rebuild_tensor_v2"), global_("torch", "FloatStorage")):
        path = write_pt(tmp_path / "x.pt", small(), extra_pickle=Raw(target + state + b"b"))
        refused(path, "not a pickle that can be read")
    odd = Raw(global_("collections", "OrderedDict") + b")R" + b"}(X\x05\x00\x00\x00itemsK\x01ub")
    read = read_pt(write_pt(tmp_path / "x.pt", {**small(), "meta_cfg": odd}))
    assert read["meta_cfg"] == {}


FLAT = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    ("window", "match"),
    [
        (Window(FLAT, 0, (13,), (1,)), "does not fit in its storage of 12"),
        (Window(FLAT, 1, (12,), (1,)), "does not fit"),
        (Window(FLAT, 0, (3, 4), (5, 1)), "does not fit"),
        (Window(FLAT, 0, (2,), (1 << 61,)), "does not fit"),
        (Window(FLAT, 0, (1000,), (0,)), "does not fit"),
        (Window(FLAT, 13, (0,), (1,)), "does not fit"),
        (Window(FLAT, 11, (12,), (-1,)), "plain counts"),
        (Window(FLAT, -1, (2,), (1,)), "plain counts"),
        (Window(FLAT, 0, (-2,), (1,)), "plain counts"),
        (Window(FLAT, 0, (2.0,), (1,)), "plain counts"),
        (Window(FLAT, 0, (True,), (1,)), "plain counts"),
        (Window(FLAT, 0, (1 << 70,), (0,)), "plain counts"),
        (Window(FLAT, 0, (2, 2), (1,)), "plain counts"),
        (Window(FLAT, 0, [2], [1]), "plain counts"),
        (Window(FLAT, 0, (1,) * 9, (1,) * 9), "plain counts"),
        (Window(FLAT, 0, (12,), (1,), numel=13), "declares 52 bytes"),
        (Window(FLAT, 0, (12,), (1,), numel=11), "declares 44 bytes"),
        (Window(FLAT, 0, (12,), (1,), numel=1 << 61), "declares"),
        (Window(FLAT, 0, (12,), (1,), numel=-1), "storage of an unknown kind"),
        (Window(FLAT, 0, (12,), (1,), storage_class="DoubleStorage"), "declares 96 bytes"),
        (Window(FLAT, 0, (12,), (1,), storage_class="QInt8Storage"), "forbidden global 'torch.QInt8Storage'"),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(tmp_path, window, match):
    refused(write_pt(tmp_path / "x.pt", checkpoint(w=window)), match)


def test_many_windows_on_one_storage_are_not_unfolded(tmp_path):
    flat = np.zeros(10_000, np.float32)
    windows = {f"w{i}": Window(flat, 0, (10_000,), (1,)) for i in range(200)}
    refused(write_pt(tmp_path / "x.pt", checkpoint(**windows)), "unfolds")


def test_missing_storages_and_odd_references_are_refused(tmp_path):
    reference = ("storage", Raw(global_("torch", "FloatStorage")), "7", "cpu", 3)
    for pid, match in (
        (reference, "lacks the member"),
        (("module", *reference[1:]), "other than a storage"),
        ((reference[0], "text", *reference[2:]), "unknown kind"),
        ("7", "other than a storage"),
    ):
        opcodes = torch_pickle(pid) + b"Q"
        refused(write_pt(tmp_path / "x.pt", small(), extra_pickle=Raw(opcodes)), match)


def torch_pickle(value) -> bytes:
    return call("x", "y", value).opcodes.removeprefix(global_("x", "y") + b"(").removesuffix(b"tR")


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, keep):
    data = write_pt(tmp_path / "x.pt", small()).read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * keep)])
    refused(path, "truncated or damaged|does not begin as a zip")


def test_flipped_bytes_of_a_tensor_are_noticed(tmp_path):
    path = write_pt(tmp_path / "x.pt", small())
    data = path.read_bytes()
    at = data.index(np.arange(6, dtype=np.float32).tobytes()) + 9
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    refused(path, "truncated or damaged")


def test_compressed_archives_are_refused(tmp_path):
    bomb = checkpoint(w=np.zeros(1 << 20, np.float32))
    path = write_pt(tmp_path / "x.pt", bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 14
    refused(path, "compressed or its members overlap")


def test_other_kinds_of_file_are_refused_with_the_remedy(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, "No such file")
    refused(tmp_path, "Is a directory")
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    refused(path, "legacy format.*save it again with torch.save")
    path.write_text("version https://git-lfs.github.com/spec/v1")
    refused(path, "not a file of torch.save")
    refused(write_pt(path, small(), members={"constants.pkl": b"\x80\x02)."}), "TorchScript")
    refused(write_pt(path, small(), members={"sub/data.pkl": b"N."}), "not one of torch.save")
    refused(write_pt(path, small(), byte_order="middle"), "byte order")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    refused(path, "not one of torch.save")


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"model": {"w": FLAT}}, "lacks meta_cfg"),
        ({"meta_cfg": {}}, "lacks model:"),
        ({"w": FLAT}, "lacks model and meta_cfg"),
        ([1, 2], "lacks model and meta_cfg"),
        ({"model": {}, "meta_cfg": {}}, "no state dict"),
        ({"model": [FLAT], "meta_cfg": {}}, "no state dict"),
        ({"model": {"w": FLAT, "step\n": 3}, "meta_cfg": {}}, "step .*must be tensors"),
        ({"model": {3: FLAT}, "meta_cfg": {}}, "3 of the state dict must be tensors"),
        ({"model": {"w": FLAT}, "meta_cfg": {"MODEL": {"A": [FLAT]}}}, r"meta_cfg.MODEL.A\[0\] is a _Tensor"),
        ({"model": {"w": FLAT}, "meta_cfg": {"A": {1: 2}}}, "meta_cfg.A has keys that are not text"),
        ({"model": {"w": FLAT}, "meta_cfg": {"A": 1 << 70}}, "meta_cfg.A is a int"),
    ],
)
def test_other_layouts_are_refused(tmp_path, tree, match):
    refused(write_pt(tmp_path / "x.pt", tree), match)


def test_configs_that_contain_themselves_or_explode_are_refused(tmp_path):
    # l = []; l.append(l)
    selfish = Raw(b"]q\x01(h\x01e")
    refused(write_pt(tmp_path / "x.pt", {**small(), "meta_cfg": {"A": selfish}}), "nested too deeply")
    # Thirty lists, each holding the one before it twice.
    doubling = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(30))
    doubling = b"(" + doubling + b"t"
    refused(
        write_pt(tmp_path / "x.pt", {**small(), "meta_cfg": {"A": Raw(doubling)}}), "nested too deeply or too large"
    )


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutations")
    path = write_pt(folder / "x.pt", small())
    with zipfile.ZipFile(path) as archive:
        return folder, path.read_bytes(), archive.read("x/data.pkl")


mutations = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


def mutated(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for place, byte in changes:
        changed[int(place * len(data))] = byte
    return bytes(changed)


def reads_or_refuses(path) -> None:
    try:
        read = read_pt(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(isinstance(array, np.ndarray) for array in read["model"].values())
    json.dumps(read["meta_cfg"])


@settings(max_examples=300, deadline=None)
@given(changes=mutations)
def test_changed_bytes_of_the_file_end_in_a_user_error_or_a_reading(good_file, changes):
    folder, data, _ = good_file
    path = folder / "bytes.pt"
    path.write_bytes(mutated(data, changes))
    reads_or_refuses(path)


@settings(max_examples=300, deadline=None)
@given(changes=mutations)
def test_changed_bytes_of_the_pickle_end_in_a_user_error_or_a_reading(good_file, changes):
    folder, _, pickled = good_file
    path = write_pt(folder / "x.pt", small(), members={"data.pkl": mutated(pickled, changes)})
    reads_or_refuses(path)


def test_the_writers_layout_is_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    flat = np.arange(24, dtype=np.float32)
    tree = checkpoint(
        w=np.arange(6, dtype=np.float32).reshape(2, 3),
        half=np.ones(2, np.float16),
        scalar=np.array(7, np.int64),
        flag=np.array([True, False]),
        transposed=Window(flat, 2, (3, 4), (1, 5)),
        parameter=Window(flat, 0, (24,), (1,), parameter=True),
    )
    path = write_pt(tmp_path / "x.pt", tree)
    loaded = torch.load(path, weights_only=True)
    ours = read_pt(path)
    assert loaded["meta_cfg"] == ours["meta_cfg"] == META_CFG
    assert list(loaded["model"]) == list(ours["model"])
    for key, tensor in loaded["model"].items():
        assert np.array_equal(tensor.detach().numpy(), ours["model"][key])


def test_reads_what_torch_saves(tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    state = torch.nn.Linear(3, 4).state_dict()  # an OrderedDict with `_metadata` on it
    flat = torch.arange(60, dtype=torch.float32)
    state |= {"view": flat[4:40].view(6, 6).t(), "tied": flat, "step": flat[::3], "zero": torch.zeros(0, 4)}
    state |= {"parameter": torch.nn.Parameter(torch.randn(2, 2)), "bfloat16": torch.randn(9).bfloat16()}
    for dtype in (torch.float16, torch.float64, torch.int64, torch.int32, torch.bool):
        state[str(dtype)] = torch.ones(3).to(dtype)
    tree = {"model": state, "meta_cfg": META_CFG}
    for protocol in (2, 5):
        torch.save(tree, tmp_path / "x.pt", pickle_protocol=protocol)
        read = read_pt(tmp_path / "x.pt")
        assert read["meta_cfg"] == META_CFG
        assert list(read["model"]) == list(state)
        for key, tensor in state.items():
            expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
            assert read["model"][key].dtype == expected.dtype
            assert np.array_equal(read["model"][key], expected)
    torch.save(tree, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "legacy format")
    torch.save({"model": {"w": torch.zeros(1).expand(99)}, "meta_cfg": {}}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "does not fit in its storage")
