"""Any checkpoint -> a model: a workdir of ours, one step's folder, a release .pt, a .safetensors with its JSON."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from unils_jax.checkpoints.adapters import apply_adapter, find_adapter, read_adapter
from unils_jax.checkpoints.torch_files import read_pt, read_safetensors, read_transformers_folder
from unils_jax.checkpoints.torch_keys import check_params, model_sizes, to_paths
from unils_jax.config import from_dict
from unils_jax.errors import UserError
from unils_jax.models.codec import CodecConfig
from unils_jax.models.logmel import LogMelConfig
from unils_jax.models.prior import PriorConfig
from unils_jax.models.unils import ModelConfig, UniLS
from unils_jax.models.wav2vec2 import EncoderRates, Wav2Vec2, Wav2Vec2Config
from unils_jax.models.wavlm import WavLM, WavLMConfig
from unils_jax.motion import BASES
from unils_jax.nn.lora import merge_lora
from unils_jax.nn.params import Params, abstract, merge
from unils_jax.systems.dualtalk.layout import dualtalk_config, is_dualtalk
from unils_jax.systems.dualtalk.model import DualTalk
from unils_jax.systems.unitalker.layout import is_unitalker, unitalker_config
from unils_jax.systems.unitalker.model import UniTalker

log = logging.getLogger(__name__)

DEFAULT_ENCODER = "facebook/wav2vec2-xls-r-300m"
ARRAYS = ("params", "ema", "optimizer", "frozen")  # items of arrays in our checkpoints
PCA = "pca/"  # where the PCA of UniTalker's annotations lies
PRETRAINED = Path(__file__).parent / "pretrained" / "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, everything float32.

    `params` lack the audio encoder's where it is a published one and was not given; so does the config of a release
    file, which says nothing of the encoder's sizes. `run` is the resolved config of the run that made a workdir,
    `meta_cfg` the config tree of a release file.
    """

    config: ModelConfig
    params: Params
    expression_basis: str
    source: dict[str, Any]
    run: Mapping[str, Any] | None = None
    meta_cfg: dict[str, Any] | None = None

    @cached_property
    def model(self) -> UniLS | DualTalk | UniTalker:
        """The module. Raises UserError where the audio encoder's weights are needed and were not given."""
        graphdef, shapes = abstract(self.config.build)
        lacks_config = self.config.stage == "dialogue" and self.config.audio_encoder is None
        if lacks_config or any(path not in self.params for path in shapes if path.startswith("audio_encoder/")):
            raise UserError(_encoder_needed(self.source["checkpoint"]))
        if any(path.startswith(PCA) and path not in self.params for path in shapes):
            raise UserError(f"{self.source['checkpoint']} lacks the PCA of its annotations; give it by `with_pca`")
        return merge(graphdef, {path: jnp.asarray(self.params[path]) for path in shapes})

    def with_pca(self, bases: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "Checkpoint":
        """UniTalker with components [n, D] and mean [D] of some kinds, which its published files leave out: those of
        `pca.npz` in the kind's set. Raises UserError where they do not fit the kind's head."""
        talker, params = self.config.unitalker, dict(self.params)
        dims, components = list(talker.dims), list(talker.components)
        for kind, (rows, mean) in bases.items():
            index = talker.kinds.index(kind)
            if min(talker.pca_dim, *rows.shape) != talker.num_outputs(kind):
                raise UserError(
                    f"{kind} predicts {talker.num_outputs(kind)} coefficients, its PCA is {list(rows.shape)}"
                )
            components[index], dims[index] = rows.shape
            params |= {f"{PCA}{kind}/components": rows, f"{PCA}{kind}/mean": mean}
        talker = replace(talker, dims=tuple(dims), components=tuple(components))
        return replace(self, config=replace(self.config, unitalker=talker), params=params)

    def with_kinds(self, kinds: tuple[str, ...]) -> "Checkpoint":
        """UniTalker with the heads of these annotations alone, so that no other needs its PCA. Raises UserError where
        it has no head for one."""
        talker = self.config.unitalker
        unknown = [kind for kind in kinds if kind not in talker.kinds]
        if unknown:
            raise UserError(
                f"{self.source['checkpoint']} has no head for {', '.join(unknown)}; it knows {', '.join(talker.kinds)}"
            )
        indices = [talker.kinds.index(kind) for kind in kinds]
        rows = {name: tuple(getattr(talker, name)[i] for i in indices) for name in ("dims", "components")}
        return replace(self, config=replace(self.config, unitalker=replace(talker, kinds=tuple(kinds), **rows)))

    def without_pca(self) -> tuple[str, ...]:
        """UniTalker's annotations whose PCA the checkpoint lacks."""
        rows = zip(self.config.unitalker.kinds, self.config.unitalker.components, strict=True)
        return tuple(kind for kind, count in rows if count and f"{PCA}{kind}/components" not in self.params)

    def merged(self) -> "Checkpoint":
        """The same with LoRA merged into the kernels."""
        lora = self.config.lora
        if lora is None:
            return self
        return replace(
            self, config=replace(self.config, lora=None), params=merge_lora(self.params, lora.alpha / lora.rank)
        )

    def with_adapter(self, adapter: str | os.PathLike, *, merge: bool = True) -> "Checkpoint":
        """The dialogue that this base and an adapter file make; one base serves many.

        The base is a prior, or a dialogue loaded with `merge=False`. Raises UserError for any other base.
        """
        loaded = read_adapter(adapter)
        config, params = apply_adapter(self.config, self.params, loaded, str(adapter))
        if loaded.info.expression_basis != self.expression_basis:
            raise UserError(f"adapter {adapter} is of the {loaded.info.expression_basis!r} basis, its base of another")
        source = {**self.source, "stage": config.stage, "adapter": loaded.info.name}
        dialogue = Checkpoint(config, params, self.expression_basis, source)
        return dialogue.merged() if merge else dialogue


def load(
    path: str | os.PathLike,
    *,
    audio_encoder: str | None = None,
    stage: str | tuple[str, ...] | None = None,
    adapter: str | os.PathLike | None = None,
    merge: bool = True,
    raw: bool = False,
) -> Checkpoint:
    """Reads a checkpoint; `audio_encoder` is a transformers folder or a hub name of wav2vec2.

    `adapter` (a .safetensors, or a name in the checkpoint's folder `adapters`) makes a dialogue of a base. LoRA is
    merged unless `merge` is False. A workdir's averaged weights are taken, with `raw` the ones without averaging.
    Raises UserError where the path is none of the known kinds or damaged, where keys or shapes do not fit (all named
    at once), and where the checkpoint is not of `stage` (or of one of them).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; give a workdir, a step's folder, a .pt or a .safetensors")
    if path.is_dir():
        checkpoint = _load_ours(path, "params" if raw else "ema")
    elif raw:
        raise UserError(f"{path} holds one set of weights; those without averaging are in a workdir only")
    else:
        contents = read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path)
        checkpoint = _from_release(path, contents)
    if adapter is not None:
        checkpoint = checkpoint.with_adapter(find_adapter(path, adapter), merge=merge)
    elif merge:
        checkpoint = checkpoint.merged()
    wanted = (stage,) if isinstance(stage, str) else stage
    if wanted and checkpoint.config.stage not in wanted:
        stage = " or ".join(wanted)
        raise UserError(
            f"{path} is a checkpoint of the {checkpoint.config.stage} stage, a {stage} is needed; "
            f"give the {stage} stage's workdir or file"
        )
    if audio_encoder and checkpoint.config.stage == "dialogue" and checkpoint.config.logmel is None:
        encoder, params = load_audio_encoder(audio_encoder)
        config = replace(checkpoint.config, wav2vec2=encoder)
        checkpoint = replace(checkpoint, config=config, params={**checkpoint.params, **params})
    return checkpoint


def pretrained() -> Path:
    """The demo model of this package: trained on synthetic conversations, log-mel front end, stand-in basis.

    Raises UserError where this copy of the package was installed without it.
    """
    if not PRETRAINED.is_file():
        raise UserError(
            f"this copy of unils_jax holds no demo model ({PRETRAINED} is missing); give --checkpoint, or make the "
            "model with `make pretrained`"
        )
    return PRETRAINED


def load_audio_encoder(name_or_folder: str, family: str = "wav2vec2") -> tuple[Wav2Vec2Config | WavLMConfig, Params]:
    """Sizes and parameters (paths under `audio_encoder/`) of a wav2vec2 of the stable-layer-norm family, or with family
    `wavlm` of a WavLM of the base family."""
    folder = Path(name_or_folder)
    if not folder.exists():
        folder = _fetch(name_or_folder)
    fields, state = read_transformers_folder(folder, family)
    sizes = {
        "width": fields["hidden_size"],
        "depth": fields["num_hidden_layers"],
        "num_heads": fields["num_attention_heads"],
        "hidden_dim": fields["intermediate_size"],
        "conv_dims": tuple(fields["conv_dim"]),
        "conv_kernels": tuple(fields["conv_kernel"]),
        "conv_strides": tuple(fields["conv_stride"]),
        "pos_conv_kernel": fields["num_conv_pos_embeddings"],
        "pos_conv_groups": fields["num_conv_pos_embedding_groups"],
        "norm_eps": float(fields["layer_norm_eps"]),
    }
    if family == "wavlm":
        buckets, distance = fields["num_buckets"], fields["max_bucket_distance"]
        config = WavLMConfig(**sizes, num_buckets=buckets, max_distance=distance)
    else:
        config = Wav2Vec2Config(**sizes)
    build = WavLM if family == "wavlm" else Wav2Vec2
    _, shapes = abstract(lambda rngs: build(config, EncoderRates(), rngs=rngs))
    params = to_paths(state, "audio_encoder")
    # Used in pre-training only; files saved for inference may lack it.
    params.setdefault("audio_encoder/masked_spec_embed", np.zeros(config.width, np.float32))
    check_params({f"audio_encoder/{path}": tuple(s.shape) for path, s in shapes.items()}, params, str(folder))
    return config, _float32(params)


def _fetch(name: str) -> Path:
    """A model's folder in the hub's local cache, fetched where there is a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors*", "pytorch_model.bin"]))
    except HFValidationError:
        raise UserError(f"audio encoder {name!r} is neither a folder nor a hub name like {DEFAULT_ENCODER}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"audio encoder {name!r} is no folder here and could not be fetched ({type(error).__name__}); fetch it "
            f"where there is a network with `hf download {name}`, or give its folder"
        ) from None


def _load_ours(path: Path, weights: str) -> Checkpoint:
    step_folder = _newest_step(path)
    meta = _read_meta(step_folder)
    config = from_dict(ModelConfig, meta["config"]["model"], "model")
    expected = {p: s for p, s in _shapes(config).items() if not p.startswith("audio_encoder/")}
    restored: Params = {}
    for item in (name for name in (weights, "frozen") if name in array_items(meta)):
        try:
            restored |= read_item(step_folder.absolute() / item)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(step_folder, item, error) from None
    check_params(expected, restored, str(step_folder))
    source = {"checkpoint": str(path), "step": meta["step"], "stage": config.stage}
    return Checkpoint(config, restored, meta["config"]["expression_basis"], source, run=meta["config"])


def array_items(meta: Mapping[str, Any]) -> Sequence[str]:
    """The items of arrays that a checkpoint holds, by its `meta`; older ones do not say and have all."""
    return meta.get("arrays", ARRAYS)


def read_item(folder: Path) -> Params:
    """The arrays of one item of an Orbax checkpoint as NumPy arrays, wherever they were sharded; the keys of a nested
    item are joined by dots.

    Read as Orbax stores them, zarr arrays in one OCDBT, with TensorStore itself: Orbax's own reader warns about items
    that are read alone, and where a file is damaged its threads print tracebacks after the error.
    """
    layout = json.loads((folder / "_METADATA").read_text())
    driver, context = "zarr3" if layout["use_zarr3"] else "zarr", ts.Context()
    base = {"driver": "file", "path": f"{folder}/"}
    # An optimiser without a state of its own leaves an empty node, which has no array.
    entries = [e for e in layout["tree_metadata"].values() if not e["value_metadata"]["skip_deserialize"]]
    names = [".".join(part["key"] for part in entry["key_metadata"]) for entry in entries]
    specs = {n: {"driver": driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{n}/"}} for n in names}
    opened = {name: ts.open(spec, open=True, context=context) for name, spec in specs.items()}
    values = {name: store.result().read() for name, store in opened.items()}
    return {name: value.result() for name, value in values.items()}


def _newest_step(path: Path) -> Path:
    if (path / "meta").is_dir():
        return path
    steps = [entry for entry in (path / "checkpoints").glob("*") if entry.name.isdigit() and (entry / "meta").is_dir()]
    if not steps:
        raise UserError(f"{path} holds no checkpoint; give a workdir of `unils train` after its first save")
    return max(steps, key=lambda entry: int(entry.name))


def _read_meta(step_folder: Path) -> Mapping[str, Any]:
    try:
        meta = json.loads((step_folder / "meta" / "metadata").read_text())
        run = meta["config"]
        if not (type(meta["step"]) is int and hasattr(run["model"], "items") and run["expression_basis"] in BASES):
            raise ValueError("it lacks step, model or expression_basis")
        return meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(step_folder, "meta", error) from None


def _damaged(step_folder: Path, item: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"checkpoint {step_folder} is incomplete or damaged at {item!r} ({text}); copy it again or use another step"
    )


def _from_release(path: Path, contents: dict[str, Any]) -> Checkpoint:
    state, meta_cfg = contents["model"], contents["meta_cfg"]
    basis = meta_cfg.get("EXPRESSION_BASIS", "flame")  # our addition, as is LOGMEL; the releases know FLAME only
    if basis not in BASES:
        raise UserError(f"{path}: meta_cfg.EXPRESSION_BASIS must be one of {', '.join(BASES)}, got {basis!r:.40}")
    if is_dualtalk(state):
        config = ModelConfig(codec=None, dualtalk=dualtalk_config(state, meta_cfg, str(path)))
        return _checked(path, config, state, basis, None)
    if is_unitalker(state):
        config = ModelConfig(codec=None, unitalker=unitalker_config(state, meta_cfg, str(path)))
        return _checked(path, config, state, basis, None)
    sizes = model_sizes(meta_cfg, state)
    prior = logmel = None
    if sizes["prior"] is not None:
        prior = PriorConfig(**sizes["prior"], audio_dim=sizes["audio_width"], audio_condition=sizes["audio_condition"])
    if sizes["stage"] == "dialogue" and "LOGMEL" in meta_cfg["MODEL"]:
        fields = meta_cfg["MODEL"]["LOGMEL"]
        fields = {key.lower(): value for key, value in fields.items()} if isinstance(fields, dict) else {"": fields}
        logmel = from_dict(LogMelConfig, fields, f"{path}: meta_cfg.MODEL.LOGMEL")
    return _checked(path, ModelConfig(CodecConfig(**sizes["codec"]), prior, logmel=logmel), state, basis, meta_cfg)


def _checked(
    path: Path, config: ModelConfig, state: Mapping[str, np.ndarray], basis: str, meta_cfg: dict[str, Any] | None
) -> Checkpoint:
    """The checkpoint of a torch state dict. Raises UserError where that does not fit the config."""
    params = to_paths(state, config.stage)
    expected = {p: shape for p, shape in _shapes(config).items() if p in params or not p.startswith(PCA)}
    check_params(expected, params, str(path))
    source = {"checkpoint": str(path), "stage": config.stage}
    return Checkpoint(config, _float32(params), basis, source, meta_cfg=meta_cfg)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    _, shapes = abstract(config.build)
    return {path: tuple(shape.shape) for path, shape in shapes.items()}


def _float32(params: Mapping[str, np.ndarray]) -> Params:
    return {path: np.asarray(value, np.float32) for path, value in params.items()}


def _encoder_needed(source: str) -> str:
    return (
        f"{source} needs its audio encoder, {DEFAULT_ENCODER}; give --audio_encoder {DEFAULT_ENCODER} where there is "
        f"a network, or the folder that `hf download {DEFAULT_ENCODER} --local-dir DIR` wrote"
    )
