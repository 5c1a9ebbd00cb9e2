"""Our checkpoints as release files: keys, config tree and model card, written and compared.

A `.pt` is what the release's own code and `torch_model` load; a `.safetensors` with its JSON holds
the same without pickle. Every file is read back after it was written. torch is imported for a `.pt`
only.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.checkpoints.model_card import model_card
from unils_jax.checkpoints.torch_keys import to_torch, torch_views
from unils_jax.errors import UserError, install_hint
from unils_jax.files import atomic_output, check_output
from unils_jax.inference.sampling import Sampling


@dataclass(frozen=True)
class Exported:
    """The contents of an exported file."""

    state: dict[str, np.ndarray]  # the torch state dict
    meta_cfg: dict[str, Any]  # its config tree
    warnings: list[str]  # what its users must know, in words


def export(
    checkpoint: Checkpoint,
    path: str | os.PathLike,
    *,
    license: str | None = None,
    raw: bool = False,
    half: bool = False,
    scores: Sequence[str | os.PathLike] = (),
) -> Exported:
    """Writes a `.pt` or a `.safetensors` with its JSON, and a model card, `<file name>.md`.

    A `.pt` of a system whose release is a bare state dict has a JSON too. All files appear
    together, after the weights were read back and found equal bit for bit. Raises UserError for
    another suffix, an unwritable folder, weights that are not finite, a `.pt` of a model that the
    release's code cannot run, and a `.pt` where torch is not installed.

    Args:
        checkpoint: The model; its adapters are merged.
        path: The file to write.
        license: Of the weights, for the model card; None says that none was stated.
        raw: Whether the weights are those of the last step, for the model card.
        half: Rounds the weights to float16, half the bytes; what reads them computes in float32
            anyway.
        scores: JSON files of `unils evaluate`, whose figures the model card shows.
    """
    path = check_output(path, ".pt", ".safetensors")
    checkpoint = checkpoint.merged()
    reason = checkpoint.system.layout.release_refuses(checkpoint.config) if path.suffix == ".pt" else ""
    if reason:
        raise UserError(f"a .pt is for the release's code, but {reason}; name the output .safetensors")
    if half:
        checkpoint = _rounded(checkpoint)
    try:
        card = model_card(checkpoint, path.name, license=license, raw=raw, scores=scores)
        exported = release_contents(checkpoint)
    except (KeyError, TypeError, AttributeError) as error:
        if checkpoint.run is None:
            raise
        # The run's settings come from a file: where it was cut, the error is the name of what is
        # missing.
        raise UserError(
            f"{checkpoint.source['checkpoint']}: its config lacks {error}; copy the workdir again"
        ) from None
    dtype = np.float16 if half else np.float32
    bare = checkpoint.system.layout.bare
    write = _write_safetensors if path.suffix == ".safetensors" else _write_bare_pt if bare else _write_pt
    try:
        with ExitStack() as stack:
            stack.enter_context(atomic_output(card_path(path))).write_text(card)
            if bare or path.suffix == ".safetensors":
                _check_config_beside(path)
                stack.enter_context(atomic_output(path.with_suffix(".json")))
            partial = stack.enter_context(atomic_output(path))
            write(partial, {key: array.astype(dtype) for key, array in exported.state.items()}, exported.meta_cfg)
            _compare(load(partial), checkpoint, exported)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; choose another output folder") from None
    return exported


def _rounded(checkpoint: Checkpoint) -> Checkpoint:
    """Rounds the parameters to values that float16 holds exactly; they stay float32.

    Values beyond its range become infinite, which `release_contents` refuses.
    """
    with np.errstate(over="ignore"):
        params = {path: value.astype(np.float16).astype(np.float32) for path, value in checkpoint.params.items()}
    return replace(checkpoint, params=params)


def card_path(path: Path) -> Path:
    """Returns the path of an exported file's model card: `dialogue.pt.md` next to `dialogue.pt`."""
    return path.with_name(f"{path.name}.md")


def _check_config_beside(path: Path) -> None:
    """Raises UserError where the JSON next to a .safetensors is another file.

    That is, where we did not write it: a workdir's config.json, say.
    """
    beside = path.with_suffix(".json")
    try:
        ours = not beside.exists() or "MODEL" in json.loads(beside.read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{beside}, where the config of {path.name} would go, is another file; choose another name")


def release_contents(checkpoint: Checkpoint) -> Exported:
    """Builds the state dict and the config tree of a merged checkpoint.

    Arrays are contiguous float32; the audio encoder is left out. Raises UserError for values that
    are not finite.
    """
    params = {path: value for path, value in checkpoint.params.items() if not path.startswith("audio_encoder/")}
    # Copies, not ascontiguousarray: that leaves odd strides on axes of length 1, and the bytes of a
    # file should repeat.
    views = sorted(torch_views(params, checkpoint.config.stage), key=lambda item: item[0])
    state = {key: np.array(view, np.float32, order="C") for key, view in views}
    state |= checkpoint.system.layout.tensors(checkpoint.config)
    broken = [key for key, array in state.items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(
            f"{len(broken)} tensors hold values that are not finite: {', '.join(broken[:10])}; export an earlier step"
        )
    warnings = checkpoint.system.layout.warnings(checkpoint.config)
    if checkpoint.expression_basis != "flame":
        warnings.append(
            f"the expression channels are of the {checkpoint.expression_basis!r} basis: a FLAME head shows them wrongly"
        )
    return Exported(state, _as_json(make_meta_cfg(checkpoint)), warnings)


def make_meta_cfg(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the config tree of a checkpoint; a release file's own is passed on as it is."""
    if checkpoint.meta_cfg is not None:
        return checkpoint.meta_cfg
    tree = checkpoint.system.layout.json_of(checkpoint.config, checkpoint.expression_basis, checkpoint.run)
    own = {} if checkpoint.sampling == Sampling() else {"SAMPLING": asdict(checkpoint.sampling)}
    return {**tree, **own}


def _as_json(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree as a JSON file gives it back.

    A `.pt` holds that, too: pickle writes a text that occurs twice by its identity, and bytes
    should repeat.
    """
    return json.loads(json.dumps(tree))


def _write_safetensors(path: Path, state: Mapping[str, np.ndarray], meta_cfg: Mapping[str, Any]) -> None:
    path.write_bytes(save(dict(state)))
    path.with_suffix(".json").write_text(json.dumps(meta_cfg, indent=1) + "\n")


def _write_pt(path: Path, state: Mapping[str, np.ndarray], meta_cfg: Mapping[str, Any]) -> None:
    _torch_save(path, lambda model: {"model": model, "meta_cfg": dict(meta_cfg)}, state)


def _write_bare_pt(path: Path, state: Mapping[str, np.ndarray], meta_cfg: Mapping[str, Any]) -> None:
    _torch_save(path, lambda model: model, state)
    path.with_suffix(".json").write_text(json.dumps(meta_cfg, indent=1) + "\n")


def _torch_save(path: Path, layout: Callable[[dict], Any], state: Mapping[str, np.ndarray]) -> None:
    try:
        import torch  # noqa: PLC0415 (an optional extra)
    except ImportError:
        raise UserError(
            f"writing a .pt needs PyTorch: {install_hint('torch')}, or name the output .safetensors"
        ) from None
    model = {key: torch.tensor(array) for key, array in state.items()}
    # Through an open file, not by its name: torch writes the name into the archive, and bytes
    # should repeat.
    with open(path, "wb") as file:
        torch.save(layout(model), file)


def _compare(found: Checkpoint, wanted: Checkpoint, exported: Exported) -> None:
    """Raises OSError where what was read back is not what was written."""
    differences = [name for name in ("expression_basis",) if getattr(found, name) != getattr(wanted, name)]
    encoder = wanted.system.encoder
    if found.config != (wanted.config if encoder is None else encoder.put(wanted.config, None)):
        differences.append("sizes")
    if _as_json(make_meta_cfg(found)) != exported.meta_cfg:
        differences.append("meta_cfg")
    state = to_torch(found.params, found.config.stage)
    state |= found.system.layout.tensors(found.config)
    if set(state) != set(exported.state):
        differences.append("keys")
    else:
        differences += [k for k, v in exported.state.items() if not np.array_equal(v.view("u4"), state[k].view("u4"))]
    if differences:
        raise OSError(f"read back, these differ: {', '.join(differences[:10])}; the disk may be damaged")
