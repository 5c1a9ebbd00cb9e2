"""`unils bench {decode,train,data,serve,gpu-smoke}`: measures this machine."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from unils_jax.benchmarks import data as data_bench
from unils_jax.benchmarks import decode as decode_bench
from unils_jax.benchmarks import train as train_bench
from unils_jax.benchmarks.ahead.machines import Machine, simulate
from unils_jax.benchmarks.ahead.machines import machine as named_machine
from unils_jax.benchmarks.ahead.report import table as ahead_table
from unils_jax.benchmarks.gpu_smoke import gpu_smoke
from unils_jax.benchmarks.timing import check_torch_reference, limit_threads, machine, random_params, write_json
from unils_jax.checkpoints.loading import load
from unils_jax.cli.arguments import Request
from unils_jax.config import from_dict, load_config
from unils_jax.errors import UserError
from unils_jax.files import check_output
from unils_jax.inference.sampling import DTYPES
from unils_jax.models.unils import UniLSConfig
from unils_jax.nn.params import Params
from unils_jax.training.config import make_objective
from unils_jax.training.run import config_head

EXAMPLES = {
    "decode": "unils bench decode --config dialogue --against torch --threads 2 --json decode.json",
    "train": "unils bench train --config codec prior dialogue --batch_size 4 4 1 --against torch --threads 2 "
    "--json train.json\n  unils bench train --config dialogue --aot\n"
    "  unils bench train --config codec --topology v5e:2x4 --config.train.compute_dtype=bfloat16",
    "data": "unils bench data --json data.json",
    "serve": "unils bench serve --clients 20 --seconds 60 --stall 0.1 --disconnect 0.1",
    "gpu-smoke": "unils bench gpu-smoke",
}

Measured = tuple[dict[str, Any], str]  # every figure, and the table to print


@dataclass(frozen=True, kw_only=True)
class RoundsRequest(Request):
    """What all benches with rounds are given."""

    json: str | None = None  # file for every figure; None: only the table is printed
    rounds: int = 5  # medians are over so many

    def __post_init__(self):
        if self.json:
            check_output(self.json, ".json")
        if self.rounds < 1:
            raise UserError(f"--rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class ModelRequest(RoundsRequest):
    """What the benches of a model are given."""

    # What is measured in turns: "torch", the PyTorch reference; "features", training on kept audio
    # features; None: nothing.
    against: str | None = None
    threads: int | None = None  # cores of the CPU; None: all
    # Machines that are compiled for instead of measuring, `v5e:4x4` or `h100:8`; None: measures.
    topology: list[str] | None = None
    slices: int = 1  # of each of these machines

    def __post_init__(self):
        super().__post_init__()
        if self.topology and self.against:
            raise UserError("--topology runs nothing, so there is nothing to compare; leave --against away")
        if self.slices != 1 and not self.topology:
            raise UserError("--slices is of --topology; give that, or --config.mesh.slices for a run")

    @property
    def machines(self) -> list[Machine]:
        """What to compile for; a UserError for a name that is not known."""
        return [named_machine(text, self.slices) for text in self.topology or ()]


@dataclass(frozen=True, kw_only=True)
class DecodeBenchRequest(ModelRequest):
    """The flags of `unils bench decode`."""

    config: str | None = None  # whose sizes, with random weights; None: dialogue
    checkpoint: str | None = None
    audio_encoder: str | None = None
    batch: int = 8  # conversations at a time
    dtype: list[str] = field(default_factory=lambda: ["float32"])
    latencies: int = 10  # chunks waited for one by one

    def __post_init__(self):
        super().__post_init__()
        if self.config and self.checkpoint:
            raise UserError("--config gives random weights, --checkpoint its own; give one of them")
        for name in ("batch", "latencies"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainBenchRequest(ModelRequest):
    """The flags of `unils bench train`."""

    config: list[str]
    batch_size: list[int] | None = None  # one a config; None: the configs' own
    aot: bool = False  # compile only
    overrides: list[str] = field(default_factory=list)  # a.b=value, for every config

    def __post_init__(self):
        super().__post_init__()
        if self.aot and self.against:
            raise UserError("--aot runs nothing, so there is nothing to compare; leave --against or --aot away")
        if self.batch_size and len(self.batch_size) != len(self.config):
            raise UserError(f"--batch_size must name one size a config: {len(self.config)}, got {len(self.batch_size)}")


@dataclass(frozen=True, kw_only=True)
class DataBenchRequest(RoundsRequest):
    """The flags of `unils bench data`."""

    hours: float = 1.0  # of conversation


@dataclass(frozen=True, kw_only=True)
class SmokeRequest(Request):
    """The flags of `unils bench gpu-smoke`."""

    out: str | None = None  # None: a temporary folder
    allow_cpu: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benches, with working examples."""
    parser.description = "Measures this machine; weights and inputs are random unless a checkpoint is given."
    parser.epilog = "\n  ".join(["examples:", *EXAMPLES.values()])
    kinds = parser.add_subparsers(dest="bench", metavar="{decode,train,data,serve,gpu-smoke}", required=True)
    for name, add, summary in (
        ("decode", add_decode_arguments, "motion per second from audio, and how long one waits for it"),
        ("train", add_train_arguments, "training steps per second, and what bounds them"),
        ("data", add_data_arguments, "training windows per second from a store"),
        ("serve", add_serve_arguments, "how long live clients of `unils serve` wait for their motion"),
        ("gpu-smoke", add_smoke_arguments, "every stage three steps, one decode, one checkpoint, on a GPU"),
    ):
        sub = kinds.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {EXAMPLES[name]}",
        )  # fmt: skip
        add(sub)


def add_rounds_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a `RoundsRequest`."""
    parser.add_argument("--json", metavar="FILE", help="write every figure, every round and the machine to FILE")
    parser.add_argument(
        "--rounds",
        type=int,
        default=RoundsRequest.rounds,
        metavar="N",
        help="medians are over N (default: %(default)s)",
    )


def add_model_arguments(parser: argparse.ArgumentParser, against: tuple[str, ...] = ("torch",)) -> None:
    """Adds the flags of a `ModelRequest`."""
    add_rounds_arguments(parser)
    parser.add_argument(
        "--against",
        choices=against,
        help="measure in turns too: torch, the PyTorch reference; of training features, a step on kept audio features",
    )
    parser.add_argument(
        "--topology",
        nargs="+",
        metavar="NAME",
        help="compile for machines that are not there, v5e:4x4 or h100:8, and run nothing",
    )
    parser.add_argument(
        "--slices", type=int, default=ModelRequest.slices, metavar="N", help="slices or nodes of --topology"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="use N cores of the CPU (default: all)")


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils bench decode`."""
    parser.add_argument("--config", metavar="NAME", help="whose sizes, with random weights (default: dialogue)")
    parser.add_argument("--checkpoint", metavar="PATH", help="measure this one: workdir, .pt or .safetensors")
    parser.add_argument("--audio_encoder", metavar="DIR", help="folder or hub name of the checkpoint's wav2vec2")
    parser.add_argument(
        "--batch",
        type=int,
        default=DecodeBenchRequest.batch,
        metavar="N",
        help="conversations at a time (default: 8; 1: none)",
    )
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES, help="of our decode")
    parser.add_argument(
        "--latencies",
        type=int,
        default=DecodeBenchRequest.latencies,
        metavar="N",
        help="chunks waited for (default: 10)",
    )
    add_model_arguments(parser)
    parser.set_defaults(run=run_decode)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils bench train`."""
    parser.description = f"{parser.description} Settings are --config.a.b=value, as for `unils train`."
    parser.add_argument("--config", nargs="+", required=True, metavar="NAME", help="codec, prior, ... or .py files")
    parser.add_argument("--batch_size", nargs="+", type=int, metavar="B", help="one a config (default: the config's)")
    parser.add_argument("--aot", action="store_true", help="compile only: memory and work of the step, nothing runs")
    add_model_arguments(parser, ("torch", "features"))
    parser.set_defaults(run=run_train, overrides=[])


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils bench data`."""
    parser.add_argument(
        "--hours",
        type=float,
        default=DataBenchRequest.hours,
        metavar="H",
        help="of conversation (default: %(default)s)",
    )
    add_rounds_arguments(parser)
    parser.set_defaults(run=run_data)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils bench serve`, which needs the extra `serve`."""
    try:
        from unils_jax.cli.serve import add_bench_arguments  # noqa: PLC0415 - an optional extra
    except UserError as error:
        message = str(error)

        def refuse(args: argparse.Namespace) -> None:
            raise UserError(message)

        parser.set_defaults(run=refuse)
        return
    add_bench_arguments(parser)


def add_smoke_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils bench gpu-smoke`."""
    parser.add_argument("--out", metavar="DIR", help="a new folder, to look at (default: a temporary one)")
    parser.add_argument("--allow_cpu", action="store_true", help="run it on a CPU, too")
    parser.set_defaults(run=run_smoke)


def run_smoke(args: argparse.Namespace) -> None:
    """Runs the smoke test and prints its line."""
    request = SmokeRequest.from_args(args)
    with tempfile.TemporaryDirectory() as folder:
        print(gpu_smoke(Path(request.out or folder), allow_cpu=request.allow_cpu))


def run_decode(args: argparse.Namespace) -> None:
    """Measures decoding."""
    request = DecodeBenchRequest.from_args(args)
    report(request, lambda: measure_decode(request))


def run_train(args: argparse.Namespace) -> None:
    """Measures training steps."""
    request = TrainBenchRequest.from_args(args)
    report(request, lambda: measure_train(request))


def run_data(args: argparse.Namespace) -> None:
    """Measures reading of windows."""
    request = DataBenchRequest.from_args(args)

    def measure() -> Measured:
        result = data_bench.run(hours=request.hours, rounds=request.rounds)
        return result, data_bench.table(result)

    report(request, measure)


def report(request: RoundsRequest, measure: Callable[[], Measured]) -> None:
    """Measures and prints the table; writes all figures to the file of --json.

    Raises UserError for settings that do not fit, before anything is measured.
    """
    with cold_cache():
        result, table = measure()
    print(table)
    if request.json:
        write_json(request.json, result)
        print(f"\n{request.json}: every figure")


def measure_decode(request: DecodeBenchRequest) -> Measured:
    """Measures each dtype's decode of a checkpoint or of random weights."""
    config, params = decode_model(request)
    if request.topology:
        return plan_decode(request, config)
    described = start(request)
    if params is None:
        _, params = random_params(config)
    rows = []
    for dtype in request.dtype:
        rows += decode_bench.bench_decode(
            config,
            params,
            decode_bench.cases(request.batch),
            decode_bench.Measurement(
                rounds=request.rounds,
                latencies=request.latencies,
                peak=described["matrix_peak"][dtype],
                dtype=dtype,
                against_torch=request.against == "torch" and dtype == "float32",
            ),
        )
    what = request.checkpoint or f"random weights of {request.config or 'dialogue'}"
    result = {"bench": "decode", "model": what, "against": request.against, "machine": described, "cases": rows}
    return result, f"{machine_line(described)}; {what}\n\n{decode_bench.table(result)}"


def plan_decode(request: DecodeBenchRequest, config: UniLSConfig) -> Measured:
    """Compiles the decode of both people for machines that are not there."""
    described = start(request, peaks=False)
    case = decode_bench.Case(people=2, conversations=request.batch, encodes=True)
    rows = [
        decode_bench.plan_decode(config, case, dtype, machine)
        for machine in request.machines
        for dtype in request.dtype
    ]
    result = {"bench": "decode", "topology": request.topology, "machine": described, "cases": rows}
    return result, ahead_table(rows)


def decode_model(request: DecodeBenchRequest) -> tuple[UniLSConfig, Params | None]:
    """Returns the sizes to measure, and the parameters of a checkpoint (None: random ones).

    Raises UserError where they are not a dialogue's with its audio encoder.
    """
    if request.checkpoint:
        checkpoint = load(request.checkpoint, audio_encoder=request.audio_encoder, stage="dialogue")
        config, params = checkpoint.config, checkpoint.params
    else:
        values = load_config(request.config or "dialogue").to_dict()
        # A decoder has its adapters merged.
        config, params = replace(from_dict(UniLSConfig, values["model"], "model"), lora=None), None
    if config.audio_encoder is None:
        raise UserError(
            "bench decode needs a dialogue with its audio encoder: give --audio_encoder with --checkpoint, or a "
            "config of the dialogue stage"
        )
    return config, params


def measure_train(request: TrainBenchRequest) -> Measured:
    """Measures the steps of each config, or with --aot compiles them only."""
    sizes = request.batch_size or [None] * len(request.config)
    configs = [
        train_bench.random_data_config(*pair, request.overrides) for pair in zip(request.config, sizes, strict=True)
    ]
    for config in configs if request.against == "torch" else ():
        check_torch_reference(config.model)
    if request.aot and not request.topology:
        simulate(max((config.mesh for config in configs), key=lambda mesh: max(mesh.data, 1) * mesh.fsdp))
    described = start(request, peaks=not (request.aot or request.topology))
    objectives = [make_objective(c, config_head(c) if c.stage == "codec" else None) for c in configs]
    if request.topology:
        rows = [
            train_bench.bench_aot(config, objective, machine)
            for machine in request.machines
            for config, objective in zip(configs, objectives, strict=True)
        ]
        result = {"bench": "train", "topology": request.topology, "machine": described, "stages": rows}
        return result, ahead_table(rows)
    rows = []
    for config, objective in zip(configs, objectives, strict=True):
        if request.aot:
            rows.append(train_bench.bench_aot(config, objective))
            continue
        peak = described["matrix_peak"][config.train.compute_dtype] * described["num_devices"]
        settings = {"against": request.against, "rounds": request.rounds, "peak": peak}
        rows.append(train_bench.bench_train(config, objective, **settings))
    result = {"bench": "train", "against": request.against, "machine": described, "stages": rows}
    return result, f"{machine_line(described)}\n\n{train_bench.table(result)}"


def start(request: ModelRequest, peaks: bool = True) -> dict[str, Any]:
    """Takes the cores that were asked for; returns the machine in words and figures."""
    if request.threads is not None:
        limit_threads(request.threads)
    return machine(peaks)


@contextmanager
def cold_cache() -> Iterator[None]:
    """Empties the compile cache, so that compile times are those of a first start."""
    before = jax.config.jax_compilation_cache_dir
    try:
        with tempfile.TemporaryDirectory() as folder:
            reset_cache()
            jax.config.update("jax_compilation_cache_dir", folder)
            yield
    finally:
        reset_cache()
        jax.config.update("jax_compilation_cache_dir", before)


def machine_line(machine: dict[str, Any]) -> str:
    """Returns one line for above a table."""
    peaks = [f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in machine.get("matrix_peak", {}).items()]
    versions = [f"{name} {version}" for name, version in machine["versions"].items()]
    count = machine["num_devices"] if machine["platform"] != "cpu" else f"{machine['cores']} cores of"
    return f"{count} {machine['device']}; {', '.join(versions)}; matrix peak {', '.join(peaks) or 'not measured'}"
