"""A loaded checkpoint: config, parameters and where they came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from unils_jax.checkpoints.adapters import apply_adapter, read_adapter
from unils_jax.checkpoints.audio_encoders import _encoder_needed
from unils_jax.errors import UserError
from unils_jax.models.unils import ModelConfig, UniLS
from unils_jax.nn.lora import merge_lora
from unils_jax.nn.params import Params, abstract, merge
from unils_jax.systems.dualtalk.model import DualTalk
from unils_jax.systems.unitalker.model import UniTalker

PCA = "pca/"  # where the PCA of UniTalker's annotations lies


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


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    _, shapes = abstract(config.build)
    return {path: tuple(shape.shape) for path, shape in shapes.items()}
