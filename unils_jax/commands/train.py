"""`unils train`: one stage, from scratch, from a parent, or from where the workdir stands."""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Trains the stage that the config names. Run again with the same workdir, it resumes. Every setting can be "
        "given as --config.a.b=value."
    )
    parser.epilog = """example:
  unils data synth --out data/synthetic
  unils train --config smoke_codec --workdir runs/codec --config.data.store=data/synthetic
  unils train --config smoke_prior --workdir runs/prior --parent runs/codec --config.data.store=data/synthetic"""
    parser.add_argument(
        "--config", required=True, metavar="NAME-OR-FILE", help="codec, smoke_prior, ..., or a .py file"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints and logs; an existing one resumes")
    parser.add_argument("--parent", metavar="PATH", help="checkpoint of the stage before: workdir, .pt or .safetensors")
    parser.add_argument("--dry_run", action="store_true", help="check config, data, parent and shapes, then stop")


def run(args: argparse.Namespace) -> None:
    """Trains. Raises UserError for every mistake of the user before the first step."""
    from unils_jax.config import load_config, override

    config = load_config(args.config)
    override(config, args.overrides)
    workdir = Path(args.workdir)
    metrics = train_stage(config.to_dict(), workdir, args.parent, dry_run=args.dry_run)
    if args.dry_run:
        print(f"{args.config}: config, data, parent and shapes fit; nothing was trained")
    else:
        shown = [f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss") if name in metrics]
        print(f"{workdir}: trained {config.num_steps} steps, {', '.join(shown) or 'nothing was left to do'}")


def train_stage(values: dict[str, Any], workdir: Path, parent: str | None, *, dry_run: bool = False) -> dict:
    """Joins config, data and model, and trains; returns the last metrics (none for a dry run)."""
    import jax

    from data_pipelines.store import Store
    from unils_jax.files import atomic_output, check_output
    from unils_jax.models.unils import UniLS
    from unils_jax.nn.params import abstract
    from unils_jax.stages import STAGES, Objective
    from unils_jax.train.config import run_config
    from unils_jax.train.loop import train
    from unils_jax.train.step import init_state, make_train_step

    config = run_config(values)
    stage = STAGES[config.stage]
    store = Store(config.data.store)
    check_basis(config, store)
    check_output(workdir / "config.json")
    resumes = check_workdir(config, workdir)
    batches, eval_batches = make_batches(config, stage.windows)
    objective = Objective(config.loss, config.noise, load_head(config) if stage.name == "codec" else None)
    params = initial_params(config, store, stage.parent, parent, resumes)
    graphdef, _ = abstract(lambda rngs: UniLS(config.model, rngs=rngs))
    if dry_run:
        step = make_train_step(stage, graphdef, objective, config.optimizer)
        trainable, frozen = stage.split(params)
        jax.eval_shape(step, init_state(trainable, config.optimizer), frozen, next(batches), jax.random.key(0))
        return {}
    log.info("starting from %s", "the newest checkpoint of the workdir" if resumes else parent or "scratch")
    if stage.name == "codec" and objective.head is None:
        log.warning("no head is given: the codec trains without mesh and lip losses")
    with atomic_output(workdir / "config.json") as partial:
        partial.write_text(json.dumps(config.to_dict(), indent=1))
    return train(config, workdir, graphdef, params, objective, batches, eval_batches)


def check_basis(config: Any, store: Any) -> None:
    """Raises UserError where the store's expression basis is not the one that the config expects."""
    from unils_jax.errors import UserError

    if store.expression_basis != config.expression_basis:
        raise UserError(
            f"{config.data.store} holds motion of the {store.expression_basis!r} basis, the config expects "
            f"{config.expression_basis!r}; set --config.expression_basis={store.expression_basis} or use another store"
        )


def check_workdir(config: Any, workdir: Path) -> bool:
    """Whether the workdir will be resumed. Raises UserError where it belongs to another stage or model."""
    from unils_jax.errors import UserError

    # A save that was cut short leaves a folder with a longer name: there is nothing to resume in it.
    if not any(entry.name.isdigit() for entry in (workdir / "checkpoints").glob("*")):
        return False
    saved = workdir / "config.json"
    try:
        old = json.loads(saved.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{workdir} holds checkpoints, but {saved} cannot be read ({error}); name a new workdir"
        ) from None
    new = json.loads(json.dumps(config.to_dict()))
    names = ("stage", "model", "optimizer", "seed", "expression_basis")
    changed = [name for name in names if not isinstance(old, dict) or old.get(name) != new[name]]
    if changed:
        raise UserError(
            f"{workdir} was started with another {', '.join(changed)}; use the same config or a new workdir"
        )
    return True


def initial_params(config: Any, store: Any, stage_parent: str | None, parent: str | None, resumes: bool) -> dict:
    """All parameters before the first step: fresh ones, the store's statistics, then the parent's, the encoder's."""
    import jax.numpy as jnp
    from flax import nnx

    from unils_jax.errors import UserError
    from unils_jax.load import load_audio_encoder
    from unils_jax.models.unils import UniLS
    from unils_jax.nn.params import split

    if stage_parent is None and parent:
        raise UserError(f"the {config.stage} stage starts from scratch; leave --parent away")
    if stage_parent is not None and not parent and not resumes:
        raise UserError(f"the {config.stage} stage starts from a {stage_parent}; give its checkpoint with --parent")
    inherited = {} if stage_parent is None or resumes else parent_params(config, stage_parent, parent)
    _, params = split(UniLS(replace(config.model, wav2vec2=None), rngs=nnx.Rngs(config.seed)))
    mean, std = store.statistics()
    params |= {"codec/motion_mean": jnp.asarray(mean), "codec/motion_std": jnp.asarray(std)}
    if config.model.wav2vec2 is not None:
        encoder, encoder_params = load_audio_encoder(config.audio_encoder)
        if encoder != config.model.wav2vec2:
            raise UserError(f"{config.audio_encoder} has other sizes than config.model.wav2vec2: {encoder}")
        params |= {path: jnp.asarray(value) for path, value in encoder_params.items()}
    return params | {path: jnp.asarray(value) for path, value in inherited.items()}


def parent_params(config: Any, stage_parent: str, parent: str) -> dict:
    """The parent checkpoint's parameters. Raises UserError where it is of another stage, of other sizes than the
    config's (then the shapes may fit and the model be another), or of another expression basis."""
    from unils_jax.errors import UserError
    from unils_jax.load import load

    checkpoint = load(parent, stage=stage_parent)
    parts = [("codec", checkpoint.config.codec, config.model.codec)]
    if checkpoint.config.prior is not None:
        parts.append(("prior", checkpoint.config.prior, replace(config.model.prior, audio_dim=None)))
    problems = [
        f"{part}.{name} is {getattr(theirs, name)} in it and {getattr(ours, name)} in the config"
        for part, theirs, ours in parts
        for name in vars(ours)
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if checkpoint.expression_basis != config.expression_basis:
        problems.append(f"its motion is of the {checkpoint.expression_basis!r} basis, the config's of another")
    if problems:
        raise UserError(f"parent {parent} does not fit: {'; '.join(problems)}; use the config of the same family")
    return checkpoint.params


def load_head(config: Any) -> Any:
    """The head whose vertices the mesh losses see, or None. Raises UserError where it does not fit the basis."""
    from unils_jax.errors import UserError
    from unils_jax.models.flame import load_flame
    from unils_jax.models.standin import standin_asset

    if not config.head:
        return None
    head = standin_asset() if config.head == "standin" else load_flame(config.head)
    if head.name != config.expression_basis:
        raise UserError(f"config.head {config.head!r} does not fit the basis {config.expression_basis!r}")
    return head


def make_batches(config: Any, view: str) -> tuple[Any, Any]:
    """The endless training batches and a function that starts the validation batches anew."""
    from itertools import islice

    from data_pipelines.loader import make_loader

    data = config.data
    loader = make_loader(
        data.store,
        "train",
        view=view,
        batch_size=data.batch_size,
        seed=config.seed,
        num_workers=data.num_workers,
    )
    held_out = make_loader(data.store, "val", view=view, batch_size=data.batch_size, seed=0)
    return iter(loader), lambda: islice(iter(held_out), config.eval_batches)
