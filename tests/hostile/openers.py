"""Finds the functions that open files to read them: by the syntax of every module of the packages."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Of the standard library, NumPy and other packages, and those of ours that take a file of any user's.
CALLS = set(
    "read_text read_bytes load fromfile memmap safe_open SoundFile info ArrayRecordReader ZipFile is_zipfile loads"
    " reader cat_file get_file exec_module restricted_load CheckpointManager PyTreeCheckpointHandler"
    " read_npz read_npz_file read_npy_file npy_shape npz_names read_lines read_tensors open_archive".split()
)
# `load` and `info` mean a file with these, `open` of others is our own.
MODULES = {
    "load": {"np", "json", "pickle"},
    "loads": {"json", "pickle"},
    "info": {"soundfile"},
    "open": {"", "gzip", "av", "lmdb", "tarfile", "io"},
    "reader": {"csv"},
}


def openers() -> set[str]:
    """Returns `module:function` of each, a method without its class."""
    found = set()
    for folder in ("unils_jax", "data_pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found |= {f"{module}:{name}" for name in _openers(ast.parse(path.read_text()))}
    return found


def _openers(tree: ast.AST, inside: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Call) and _opens(node):
            yield inside
        yield from _openers(node, node.name if is_function else inside)


def _opens(call: ast.Call) -> bool:
    function = call.func
    of = function.value if isinstance(function, ast.Attribute) else None
    owner = "" if of is None else of.id if isinstance(of, ast.Name) else ast.unparse(of)
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in {*CALLS, "open"} or (name in MODULES and owner not in MODULES[name]):
        return False
    return name != "open" or not _writes(call)


def _writes(call: ast.Call) -> bool:
    words = [
        argument
        for argument in (*call.args[1:], *(word.value for word in call.keywords))
        if isinstance(argument, ast.Constant)
    ]
    return any(isinstance(word.value, str) and word.value[:1] in "wax" and len(word.value) < 4 for word in words)
