"""Sums the time of a compiled program by named scope, from the profiler's trace of it."""

import gzip
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from unils_jax.training.throughput.flops import BACKWARD, RECOMPUTED, names

# The first that a scope names is the part it belongs to.
TRAIN_PARTS = ("wav2vec2", "self_attn", "audio_attn", "mlp", "mesh")
DECODE_PARTS = ("wav2vec2", "codec_encoder", "codec_decoder", "audio_keys", "self_attn", "audio_attn", "mlp")
# Operations that hold others: their time is that of what they hold.
CONTAINERS = frozenset({"while", "conditional", "call", "async-start", "async-done"})
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"(?:^|\s)(?P<opcode>[a-z][\w\-]*)\(")


@dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program."""

    opcode: str
    scope: str  # path of the source's named scopes


def operations(hlo: str) -> dict[str, Operation]:
    """Returns the instructions of a program's text, `compiled.as_text()`, by name."""
    found = {}
    for line in hlo.splitlines():
        match = _INSTRUCTION.match(line)
        opcode = match and _OPCODE.search(match["rest"])
        if opcode:
            scope = re.search(r'op_name="([^"]*)"', line)
            found[match["name"]] = Operation(opcode["opcode"], scope[1] if scope else "")
    return found


def scope_seconds(
    compiled: jax.stages.Compiled, run: Callable[[], Any], parts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Runs `run()` and sums the seconds of `compiled`'s operations by phase, part and kind.

    On a device with several queues, and on a CPU that runs operations in parallel, the sum is
    more than the elapsed time: use the shares.
    """
    known = operations(compiled.as_text())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        return summarise(known, _events(Path(folder)), parts)


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields (operation, seconds) of every operation that the trace files under `folder` hold."""
    for path in folder.rglob("*.trace.json.gz"):
        with gzip.open(path, "rt") as file:
            for event in json.load(file)["traceEvents"]:
                operation = event.get("args", {}).get("hlo_op")
                if operation and event.get("ph") == "X":
                    yield operation, event.get("dur", 0.0) / 1e6


def summarise(
    known: Mapping[str, Operation], events: Iterable[tuple[str, float]], parts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Sums seconds by phase of training, by part and by kind.

    Phases are encoder, forward, recomputed and backward; `update` is all outside the gradient:
    noise, clipping, optimiser, average. The part is the first of `parts` that the scope names.
    Kinds are product and other.
    """
    sums: dict[str, dict[str, float]] = {name: defaultdict(float) for name in ("phase", "part", "kind")}
    for name, seconds in events:
        operation = known.get(name)
        # Other programs' operations are in the trace, too.
        if operation is None or operation.opcode in CONTAINERS:
            continue
        scopes = names(operation.scope)
        sums["phase"][_phase(scopes)] += seconds
        sums["part"][next((part for part in parts if part in scopes), "other")] += seconds
        is_product = operation.scope.endswith(("dot_general", "conv_general_dilated"))
        sums["kind"]["product" if is_product else "other"] += seconds
    return {name: dict(values) for name, values in sums.items()}


def _phase(scopes: frozenset[str]) -> str:
    if "wav2vec2" in scopes:
        return "encoder"
    if RECOMPUTED in scopes:
        return "recomputed"
    if BACKWARD in scopes:
        return "backward"
    return "forward" if "jvp" in scopes else "update"


def as_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns each as a share of the sum, the largest first; empty where nothing was recorded."""
    total = sum(seconds.values())
    return {name: value / total for name, value in sorted(seconds.items(), key=lambda item: -item[1]) if total}


def shares_line(profile: Mapping[str, Mapping[str, float]]) -> str:
    """Returns shares of operation time in words, one group after the other."""
    groups = [", ".join(f"{name} {share:.0%}" for name, share in part.items()) for part in profile.values() if part]
    return "; ".join(groups) or "the profiler recorded no operations"
