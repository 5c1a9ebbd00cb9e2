"""`unils export`: a checkpoint as a release file or as ONNX, or its adapter alone."""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from unils_jax.checkpoints.adapters import save_adapter
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.exporting import export
from unils_jax.checkpoints.loading import load
from unils_jax.cli.arguments import Request
from unils_jax.errors import UserError, install_hint, shown
from unils_jax.files import check_output

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportRequest(Request):
    """The flags of `unils export`."""

    checkpoint: str
    out: str | None = None  # model file to write
    adapter: str | None = None  # file for the adapter alone
    merge: str | None = None  # adapter to merge into the base for `out`
    raw: bool = False  # the last step's weights instead of the averaged ones
    float16: bool = False
    license: str | None = None  # of the weights, for the model card
    scores: list[str] | None = None  # JSON files of `unils evaluate`, for the model card
    people: int = 2  # that an .onnx decodes at a time

    def __post_init__(self):
        if not self.out and not self.adapter:
            raise UserError(
                "nothing to write: give --out FILE with .pt, .safetensors or .onnx, or --adapter FILE.safetensors"
            )
        if self.merge and self.adapter:
            raise UserError(
                "--merge makes a merged model for --out, --adapter writes what is not merged; give one of them"
            )
        if self.float16 and not self.out:
            raise UserError("--float16 is of a model file; name one with --out")
        if self.out:
            check_output(self.out, ".pt", ".safetensors", ".onnx")
        if self.is_onnx and (self.float16 or self.license or self.scores):
            raise UserError(
                "--float16, --license and --scores are of a .pt or .safetensors; an .onnx is float32, without a card"
            )
        if self.scores and not self.out:
            raise UserError("--scores are for the card of a model file; name one with --out")
        if self.people not in (1, 2):
            raise UserError(f"--people must be 1 or 2, got {self.people}")
        if self.adapter:
            check_output(self.adapter, ".safetensors")

    @property
    def is_onnx(self) -> bool:
        """Whether the decode program is written, and not the weights."""
        return bool(self.out) and Path(self.out).suffix == ".onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils export`, with working examples."""
    parser.description = (
        "Writes weights that travel: a .pt in the release's layout (needs the extra torch), a .safetensors with its "
        "config as .json, or with --adapter what a dialogue learnt on top of its prior. A model card (.md) stands "
        "beside. What was written is read back and compared bit for bit. An .onnx (needs the extra onnx) holds the "
        "program that decodes one window, for engines; it is run by onnxruntime and compared."
    )
    parser.epilog = """example:
  unils export --checkpoint runs/demo/dialogue --out dialogue.safetensors
  unils export --checkpoint runs/demo/dialogue --adapter runs/demo/prior/adapters/cheerful.safetensors
  unils export --checkpoint runs/demo/dialogue --out dialogue.onnx
  unils decode --checkpoint runs/demo/prior --adapter cheerful --audio a.wav --audio2 b.wav --out motion.npz"""
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="workdir, step's folder, .pt or .safetensors"
    )
    parser.add_argument("--out", metavar="FILE", help="the .pt, .safetensors or .onnx to write, LoRA merged")
    parser.add_argument("--adapter", metavar="FILE", help="the .safetensors to write the adapter alone to")
    parser.add_argument("--merge", metavar="NAME", help="an adapter, by name or file, to merge into the base for --out")
    parser.add_argument(
        "--people", type=int, default=ExportRequest.people, help="that an .onnx decodes: 1 or 2 (default: %(default)s)"
    )
    parser.add_argument("--raw", action="store_true", help="the last step's weights instead of the averaged ones")
    parser.add_argument("--float16", action="store_true", help="round the weights for --out to half the bytes")
    parser.add_argument("--license", metavar="TEXT", help="the weights' licence, for the model card")
    parser.add_argument(
        "--scores", metavar="JSON", nargs="+", help="what `unils evaluate` wrote of it, for the model card"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports a checkpoint.

    Raises UserError for every mistake of the user, before anything is written.
    """
    request = ExportRequest.from_args(args)
    checkpoint = load(request.checkpoint, adapter=request.merge, merge=False, raw=request.raw)
    if request.adapter:
        export_adapter(Path(request.adapter), checkpoint)
    if request.is_onnx:
        export_program(request, checkpoint)
    elif request.out:
        export_model(request, checkpoint)


def export_adapter(path: Path, checkpoint: Checkpoint) -> None:
    """Writes what a dialogue learnt on top of its prior and prints a line."""
    parts = checkpoint.config, checkpoint.params, checkpoint.expression_basis
    adapter = save_adapter(path, *parts, name=path.stem, sampling=checkpoint.sampling)
    size = sum(value.size for value in adapter.params.values())
    print(
        f"{shown(path)}: adapter {path.stem!r} of base {adapter.info.base[:12]}, {size:,} values, read back and equal"
    )


def export_model(request: ExportRequest, checkpoint: Checkpoint) -> None:
    """Writes the whole model and its card and prints a line."""
    told = {"license": request.license, "raw": request.raw, "scores": request.scores or ()}
    exported = export(checkpoint, request.out, half=request.float16, **told)
    for warning in exported.warnings:
        log.warning("warning: %s", warning)
    size = sum(array.size for array in exported.state.values())
    count = len(exported.state)
    print(
        f"{shown(request.out)}: {checkpoint.config.stage}, {count} tensors, {size:,} values, "
        "read back and equal bit for bit"
    )


def export_program(request: ExportRequest, checkpoint: Checkpoint) -> None:
    """Writes the decode program of one window as ONNX and prints how it compares with ours."""
    try:
        from unils_jax.checkpoints.onnx.export import export_onnx  # noqa: PLC0415 (an optional extra)
    except ImportError:
        raise UserError(f"an .onnx needs onnx and onnxruntime: {install_hint('onnx')}") from None
    written = export_onnx(checkpoint, Path(request.out), people=request.people)
    print(
        f"{shown(request.out)}: {written.nodes:,} nodes, {written.bytes / 1e6:.1f} MB; onnxruntime decodes "
        f"{written.different} of {written.bits:,} bits otherwise, motion within {written.motion_error:.1e}, "
        f"{written.frames_per_s:.0f} frames/s next to our {written.our_frames_per_s:.0f}"
    )
