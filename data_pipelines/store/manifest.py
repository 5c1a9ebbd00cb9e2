"""The manifest of a store, checked before anything relies on it: a stranger may have written it."""

import json
import math
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.record import SPLITS
from data_pipelines.statistics import ChannelStatistics
from data_pipelines.store import remote
from data_pipelines.store.writer import AUDIO_DTYPES, FORMAT_VERSION, MANIFEST, MOTION_DTYPES
from unils_jax.errors import UserError, one_line
from unils_jax.motion import BASES

REMEDY = "; make the store again"
MAX_BYTES = 1 << 28  # of the manifest: 200 bytes for each file of a store
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the manifest of the store at `path`.

    Raises UserError, naming the file, where there is none or it is bad.
    """
    file = f"{path}/{MANIFEST}"
    text = remote.read_text(path, MANIFEST) if remote.is_remote(path) else _read_local(path)
    try:
        manifest = json.loads(text)
        version = manifest["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}){REMEDY}") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format_version {version!r:.40}, this program reads {FORMAT_VERSION}; make it again"
        )
    problems = _problems(manifest)
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{file} is damaged: {', '.join(problems[:5])}{more}{REMEDY}")
    return manifest


def _remedy(path: Path) -> str:
    """Says what makes a store of a folder that has no manifest."""
    if (path / "CONVERSION.md").is_file():
        report = path / "CONVERSION.md"
        return f"its conversion found nothing to use, see {report}; mend the source, remove {path} and convert again"
    if (path / "conversion").is_dir():
        return "its conversion is not finished: run the same `unils data convert` again"
    if path.exists():
        return "give the folder that `unils data convert` or `unils data synth` wrote"
    return f"`unils data synth --out {path}` makes one, `unils data convert` one of your data"


def _read_local(path: str | os.PathLike) -> str:
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise UserError(f"{path} is no store: {file} does not exist; {_remedy(Path(path))}")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} has over {MAX_BYTES} bytes, no manifest has{REMEDY}")
        return file.read_text(encoding="utf-8")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}){REMEDY}") from None


def _problems(manifest: dict[str, Any]) -> list[str]:
    """Lists what is missing or of another kind than `writer.finish_store` writes."""
    problems = []
    if manifest.get("expression_basis") not in BASES:
        problems.append(f"expression_basis must be one of {', '.join(BASES)}")
    dtypes = manifest.get("dtypes")
    known = {"motion": MOTION_DTYPES, "audio": AUDIO_DTYPES}
    if not isinstance(dtypes, dict) or any(dtypes.get(kind) not in names for kind, names in known.items()):
        problems.append(
            f"dtypes must have motion of {' or '.join(MOTION_DTYPES)}, audio of {' or '.join(AUDIO_DTYPES)}"
        )
    if not isinstance(manifest.get("source"), str) or not isinstance(manifest.get("settings"), dict):
        problems.append("source must be text and settings an object")
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or set(splits) != set(SPLITS):
        problems.append(f"splits must be {', '.join(SPLITS)}")
    else:
        problems += [
            f"splits.{name} must have count and hours" for name, split in splits.items() if not _amounts(split)
        ]
    try:
        ChannelStatistics.from_json(manifest.get("statistics"))
    except UserError as error:
        problems.append(str(error).removesuffix(REMEDY))
    files = manifest.get("files")
    if not isinstance(files, dict):
        return [*problems, "files must be an object"]
    return problems + [f"files has a bad entry {name!r:.80}" for name, entry in files.items() if not _file(name, entry)]


def _amounts(split: object) -> bool:
    if not isinstance(split, dict) or type(split.get("count")) is not int or split["count"] < 0:
        return False
    return type(split.get("hours")) in (int, float) and math.isfinite(split["hours"]) and split["hours"] >= 0


def _file(name: str, entry: object) -> bool:
    """Decides whether a name stays in the store and its entry gives bytes and checksum.

    Remote files are kept under their checksum, which so must not be a path.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name or not isinstance(entry, dict):
        return False
    digest = entry.get("sha256")
    whole = type(entry.get("bytes")) is int and entry["bytes"] >= 0
    return whole and isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
