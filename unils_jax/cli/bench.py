"""`unils bench {decode,train,data}`: throughput, latency, memory and utilisation of this machine."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  unils bench decode --config dialogue --against torch --threads 2 --json decode.json
  unils bench train --config codec prior dialogue --batch_size 4 4 1 --against torch --threads 2 --json train.json
  unils bench train --config dialogue --aot
  unils bench data --json data.json"""

Measured = tuple[dict[str, Any], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the benches."""
    parser.description = "Measures this machine; weights and inputs are random unless a checkpoint is given."
    parser.epilog = EXAMPLE
    kinds = parser.add_subparsers(dest="bench", metavar="{decode,train,data,gpu-smoke}", required=True)
    for name, add, summary in (
        ("decode", add_decode_arguments, "motion per second from audio, and how long one waits for it"),
        ("train", add_train_arguments, "training steps per second, and what bounds them"),
        ("data", add_data_arguments, "training windows per second from a store"),
        ("gpu-smoke", add_smoke_arguments, "every stage three steps, one decode, one checkpoint, on a GPU"),
    ):
        sub = kinds.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        add(sub)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benches that measure a model."""
    parser.add_argument("--json", metavar="FILE", help="write every figure, every round and the machine to FILE")
    parser.add_argument("--against", choices=["torch"], help="measure the PyTorch reference beside it, taking turns")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians are over N (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="use N cores of the CPU (default: all)")


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `unils bench decode`."""
    parser.add_argument("--config", metavar="NAME", help="whose sizes, with random weights (default: dialogue)")
    parser.add_argument("--checkpoint", metavar="PATH", help="measure this one: workdir, .pt or .safetensors")
    parser.add_argument("--audio_encoder", metavar="DIR", help="folder or hub name of the checkpoint's wav2vec2")
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="conversations at a time (default: 8; 1: none)"
    )
    parser.add_argument(
        "--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"], help="of our decode"
    )
    parser.add_argument("--latencies", type=int, default=10, metavar="N", help="chunks waited for (default: 10)")
    add_common_arguments(parser)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `unils bench train`."""
    parser.description = f"{parser.description} Settings are --config.a.b=value, as for `unils train`."
    parser.add_argument("--config", nargs="+", required=True, metavar="NAME", help="codec, prior, dualtalk, ... or .py")
    parser.add_argument("--batch_size", nargs="+", type=int, metavar="B", help="one a config (default: the config's)")
    parser.add_argument("--aot", action="store_true", help="compile only: memory and work of the step, nothing runs")
    add_common_arguments(parser)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `unils bench data`."""
    parser.add_argument("--json", metavar="FILE", help="write every figure, every round and the machine to FILE")
    parser.add_argument("--hours", type=float, default=1.0, metavar="H", help="of conversation (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians are over N (default: %(default)s)")


def add_smoke_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `unils bench gpu-smoke`."""
    parser.add_argument("--out", metavar="DIR", help="a new folder, to look at (default: a temporary one)")
    parser.add_argument("--allow_cpu", action="store_true", help="run it on a CPU, too")


def run(args: argparse.Namespace) -> None:
    """Runs one bench: its table to stdout, all its figures to the file of `--json`.

    Raises UserError for settings that do not fit, before anything is measured.
    """
    from unils_jax.errors import UserError
    from unils_jax.files import check_output

    if args.bench == "gpu-smoke":
        from unils_jax.cli.gpu_smoke import gpu_smoke

        with tempfile.TemporaryDirectory() as folder:
            print(gpu_smoke(Path(args.out or folder), allow_cpu=args.allow_cpu))
        return
    if args.json:
        check_output(args.json, ".json")
    if args.rounds < 1:
        raise UserError(f"--rounds must be at least 1, got {args.rounds}")
    if args.bench == "data":
        result, table = run_data(args)
    else:
        with cold_cache():
            result, table = (run_decode if args.bench == "decode" else run_train)(args)
    print(table)
    if args.json:
        from unils_jax.benchmarks.timing import write_json

        write_json(args.json, result)
        print(f"\n{args.json}: every figure")


def run_decode(args: argparse.Namespace) -> Measured:
    """`unils bench decode`."""
    from unils_jax.benchmarks.decode import bench_decode, cases, table
    from unils_jax.benchmarks.timing import random_params
    from unils_jax.checkpoints.loading import load
    from unils_jax.config import from_dict, load_config
    from unils_jax.errors import UserError
    from unils_jax.models.unils import ModelConfig

    if args.config and args.checkpoint:
        raise UserError("--config gives random weights, --checkpoint its own; give one of them")
    for name in ("batch", "latencies"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.checkpoint:
        checkpoint = load(args.checkpoint, audio_encoder=args.audio_encoder, stage="dialogue")
        config, params = checkpoint.config, checkpoint.params
    else:
        values = load_config(args.config or "dialogue").to_dict()
        config = replace(from_dict(ModelConfig, values["model"], "model"), lora=None)  # adapters are merged to decode
    if config.audio_encoder is None:
        raise UserError(
            "bench decode needs a dialogue with its audio encoder: give --audio_encoder with --checkpoint, or a "
            "config of the dialogue stage"
        )
    described = start(args)
    if not args.checkpoint:
        _, params = random_params(config)
    measured = cases(args.batch)
    rows = []
    for dtype in args.dtype:
        against = args.against == "torch" and dtype == "float32"
        peak = described["matrix_peak"][dtype]
        rows += bench_decode(
            config, params, measured, dtype=dtype, against_torch=against, rounds=args.rounds,
            latencies=args.latencies, peak=peak,
        )  # fmt: skip
    what = args.checkpoint or f"random weights of {args.config or 'dialogue'}"
    result = {"bench": "decode", "model": what, "against": args.against, "machine": described, "cases": rows}
    return result, f"{machine_line(described)}; {what}\n\n{table(result)}"


def run_train(args: argparse.Namespace) -> Measured:
    """`unils bench train`."""
    from unils_jax.benchmarks.timing import check_torch_reference
    from unils_jax.benchmarks.train import bench_aot, bench_train, table
    from unils_jax.errors import UserError
    from unils_jax.training.config import make_objective
    from unils_jax.training.run import load_head

    if args.aot and args.against:
        raise UserError("--aot runs nothing, so there is nothing to compare; leave --against or --aot away")
    if args.batch_size and len(args.batch_size) != len(args.config):
        raise UserError(f"--batch_size must name one size a config: {len(args.config)}, got {len(args.batch_size)}")
    sizes = args.batch_size or [None] * len(args.config)
    configs = [train_config(*pair, args.overrides) for pair in zip(args.config, sizes, strict=True)]
    for config in configs if args.against else ():
        check_torch_reference(config.model)
    described = start(args, peaks=not args.aot)
    rows = []
    for config in configs:
        objective = make_objective(config, load_head(config) if config.stage == "codec" else None)
        if args.aot:
            rows.append(bench_aot(config, objective))
        else:
            peak = described["matrix_peak"][config.train.compute_dtype] * described["num_devices"]
            against = args.against == "torch"
            rows.append(bench_train(config, objective, against_torch=against, rounds=args.rounds, peak=peak))
    result = {"bench": "train", "against": args.against, "machine": described, "stages": rows}
    return result, f"{machine_line(described)}\n\n{table(result)}"


def train_config(name: str, batch_size: int | None, overrides: list[str]) -> Any:
    """The RunConfig of a name or file; its data are random, so it needs no store. UniTalker's annotation is ours."""
    from unils_jax.config import load_config, override
    from unils_jax.motion import MOTION_DIM, MOTION_KIND
    from unils_jax.training.config import run_config

    config = load_config(name)
    config.data.store = "random"
    override(config, overrides)
    if batch_size is not None:
        config.data.batch_size = batch_size
    run = run_config(config.to_dict())
    talker = run.model.unitalker
    if talker is None or talker.kinds:
        return run
    ours = replace(talker, kinds=(MOTION_KIND,), dims=(MOTION_DIM,), components=(0,))
    return replace(run, model=replace(run.model, unitalker=replace(ours, num_identities=ours.num_identities or 1)))


def run_data(args: argparse.Namespace) -> Measured:
    """`unils bench data`."""
    from unils_jax.benchmarks.data import run, table

    result = run(hours=args.hours, rounds=args.rounds)
    return result, table(result)


def start(args: argparse.Namespace, peaks: bool = True) -> dict[str, Any]:
    """The cores that were asked for, and the machine in words and figures."""
    from unils_jax.benchmarks.timing import limit_threads, machine

    if args.threads is not None:
        limit_threads(args.threads)
    return machine(peaks)


@contextmanager
def cold_cache() -> Iterator[None]:
    """An empty compile cache: compile times are those of a first start, and nothing compiles twice."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

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
    """One line for above a table."""
    peaks = [f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in machine.get("matrix_peak", {}).items()]
    versions = [f"{name} {version}" for name, version in machine["versions"].items()]
    count = machine["num_devices"] if machine["platform"] != "cpu" else f"{machine['cores']} cores of"
    return f"{count} {machine['device']}; {', '.join(versions)}; matrix peak {', '.join(peaks) or 'not measured'}"
