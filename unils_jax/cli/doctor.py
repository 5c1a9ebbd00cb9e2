"""`unils doctor`: checks what is installed, what computes and draws, and outside files.

The package's own modules are imported where they are needed: the first section must appear even
where a library that they need is missing.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unils_jax import __version__
from unils_jax.errors import UserError, install_hint

ENCODER = "facebook/wav2vec2-xls-r-300m"
FLAME_FILE = "generic_model.pkl"
NEEDED = (
    *("jax", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets"),
    *("numpy", "scipy", "soundfile", "av"),
)
EXTRAS = {
    "render": ("pyvista", "vtk"),
    "serve": ("starlette", "uvicorn", "websockets", "prometheus_client"),
    "torch": ("torch",),
    "wandb": ("wandb",),
    "ray": ("ray",),
    "vad": ("silero-vad", "onnxruntime"),
    "dev": ("pytest", "ruff", "selenium"),
}
OK, ABSENT, BROKEN = "ok", "--", "!!"


class Finding(NamedTuple):
    """One line of the answer."""

    status: str  # OK, ABSENT (not needed for everything) or BROKEN
    what: str
    text: str  # how it is
    remedy: str = ""  # what to do about it; "": nothing

    def lines(self) -> list[str]:
        """Returns the finding for a terminal."""
        first = f"  {self.status}  {self.what}: {self.text}"
        return [first, f"        {self.remedy}"] if self.remedy else [first]


@dataclass(frozen=True)
class DoctorRequest:
    """The flags of `unils doctor`: files to check. None: only the usual places are searched."""

    flame: str | None
    audio_encoder: str | None
    checkpoint: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils doctor`, with working examples."""
    parser.description = (
        "Says what is installed, which devices there are, what draws videos and pages, and which outside files are "
        "found or missing, with the way to get each. Files that are named here are opened and checked. Exits 2 where "
        "something that is needed, or was named, is broken."
    )
    parser.epilog = """examples:
  unils doctor
  unils doctor --flame generic_model.pkl --audio_encoder wav2vec2 --checkpoint unils_loragen.pt"""
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020 to check")
    parser.add_argument("--audio_encoder", metavar="DIR", help="wav2vec2 folder of transformers to check")
    parser.add_argument("--checkpoint", metavar="PATH", help="workdir, .pt or .safetensors to check")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints a section after the other. Exits with status 2 where something is broken."""
    request = DoctorRequest(args.flame, args.audio_encoder, args.checkpoint)
    sections = {
        "installed": installed(),
        "devices": devices(),
        "pictures": pictures(),
        "outside files": outside_files(request),
    }
    broken = 0
    for title, findings in sections.items():
        print(title)
        for finding in findings:
            print("\n".join(finding.lines()))
            broken += finding.status == BROKEN
    print(f"{broken} broken" if broken else "nothing is broken; what is marked -- is needed for what it says only")
    if broken:
        raise SystemExit(2)


def installed() -> Iterator[Finding]:
    """Lists Python, this package, the libraries it needs and its extras."""
    remedy = "" if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed"
    status = BROKEN if remedy else OK
    yield Finding(status, "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", remedy)
    yield Finding(OK, "unils_jax", __version__)
    found = {name: _version(name) for name in NEEDED}
    missing = [name for name, version in found.items() if version is None]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    remedy = f"missing: {', '.join(missing)}; {install_hint()}" if missing else ""
    yield Finding(BROKEN if missing else OK, "libraries", text, remedy)
    for extra, names in EXTRAS.items():
        found = {name: _version(name) for name in names}
        if all(found.values()):
            yield Finding(OK, f"extra {extra}", ", ".join(f"{name} {version}" for name, version in found.items()))
        else:
            missing = [name for name, version in found.items() if version is None]
            remedy = install_hint(extra)
            yield Finding(ABSENT, f"extra {extra}", f"{', '.join(missing)} not installed", remedy)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> Iterator[Finding]:
    """Lists what JAX would compute on."""
    yield Finding(OK, "processors", f"{os.cpu_count()} cores")
    try:
        import jax  # noqa: PLC0415  (see the module)

        found = jax.devices()
    except Exception as error:  # whatever a broken driver raises is the finding
        yield Finding(BROKEN, "JAX", f"finds no device ({str(error).splitlines()[0]})", install_hint("cuda"))
        return
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    remedy = ""
    if found[0].platform == "cpu" and Path("/dev/nvidiactl").exists():
        remedy = f"there is an NVIDIA card that JAX does not see: {install_hint('cuda')}"
    yield Finding(ABSENT if remedy else OK, "JAX", f"{len(found)} x {found[0].platform} ({kinds})", remedy)


def pictures() -> Iterator[Finding]:
    """Says what draws videos, and whether pages can be made."""
    from unils_jax.outputs.canvas import graphics, pick_backend  # noqa: PLC0415  (see the module)
    from unils_jax.outputs.page import page_script  # noqa: PLC0415  (see the module)

    backend = pick_backend()
    if backend == "numpy":
        remedy = f"for OpenGL: {install_hint('render')} and, on Debian, apt-get install libegl1 libgl1-mesa-dri"
        yield Finding(ABSENT, "videos", "drawn in NumPy, slowly", remedy)
    else:
        yield Finding(OK, "videos", f"drawn with {graphics(backend)}")
    try:
        script, _ = page_script()
        yield Finding(OK, "pages", f"the script is there ({len(script) / 1e6:.1f} MB)")
    except UserError:
        node = "npm is here" if shutil.which("npm") else "needs Node 20.19 or newer"
        yield Finding(ABSENT, "pages", "the script is not built, so `unils view` cannot work", f"make viewer ({node})")


def outside_files(request: DoctorRequest) -> Iterator[Finding]:
    """Checks the files that come from others.

    Opens those that are named, searches the usual places for the rest.
    """
    try:
        yield _encoder(request.audio_encoder)
    except UserError as error:
        yield Finding(BROKEN, "wav2vec2", str(error))
    try:
        yield _flame(request.flame)
    except UserError as error:
        yield Finding(BROKEN, "FLAME", str(error))
    if request.checkpoint is None:
        remedy = "from the authors' project page; our own come out of `unils demo` and `unils train`"
        yield Finding(ABSENT, "checkpoint", "none named with --checkpoint", remedy)
        return
    try:
        from unils_jax.checkpoints.loading import load  # noqa: PLC0415  (see the module)

        source = load(request.checkpoint, audio_encoder=request.audio_encoder).source
        yield Finding(OK, "checkpoint", f"{request.checkpoint} can be read: {source}")
    except UserError as error:
        yield Finding(BROKEN, "checkpoint", str(error))


def _encoder(folder: str | None) -> Finding:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (see the module)

    if folder is not None:
        from unils_jax.checkpoints.audio_encoders import load_audio_encoder  # noqa: PLC0415  (see the module)

        config, _ = load_audio_encoder(folder)
        return Finding(OK, "wav2vec2", f"{folder} can be read: {config.depth} layers of {config.width}")
    cached = [
        try_to_load_from_cache(ENCODER, name) for name in ("config.json", "model.safetensors", "pytorch_model.bin")
    ]
    if isinstance(cached[0], str) and any(isinstance(path, str) for path in cached[1:]):
        return Finding(OK, "wav2vec2", f"{ENCODER} is cached in {Path(cached[0]).parent}")
    remedy = f"hf download {ENCODER} --local-dir wav2vec2, then --audio_encoder wav2vec2"
    return Finding(ABSENT, "wav2vec2", "not cached; the full dialogue model and releases need it", remedy)


def _flame(file: str | None) -> Finding:
    path = file or next((str(p) for p in (Path(FLAME_FILE), Path("flame") / FLAME_FILE) if p.is_file()), None)
    if path is not None:
        from unils_jax.face.flame_file import load_flame  # noqa: PLC0415  (see the module)

        asset = load_flame(path)
        return Finding(
            OK, "FLAME", f"{path} can be read: {len(asset.v_template)} vertices; it is licensed by its makers"
        )
    remedy = f"register at https://flame.is.tue.mpg.de, fetch FLAME 2020, then --flame {FLAME_FILE}"
    return Finding(ABSENT, "FLAME", f"no {FLAME_FILE} here; real motion in pictures and mesh losses need it", remedy)
