"""Runs one training stage: joins config, data and parent, and trains."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The flags of `unils train` beside config, workdir and parent."""

    dry_run: bool = False
    allow_changes: bool = False
    profile_steps: str | None = None


def train_stage(
    values: dict[str, Any], workdir: Path, parent: str | None, options: Options | None = None, stop: Any = None
) -> dict:
    """Joins config, data and model, and trains; returns the last metrics (none for a dry run). `stop` is a PreemptionGuard
    whose context the caller has entered, None where signals are nobody's business."""
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.nn.params import abstract
    from unils_jax.training.checkpoint import check_workdir
    from unils_jax.training.config import count_epochs, make_objective, run_config, stage_of
    from unils_jax.training.distributed import PreemptionGuard
    from unils_jax.training.loop import InitialState, TrainOptions, TrainSetup, train
    from unils_jax.training.profiling import parse_steps
    from unils_jax.training.sharding import make_mesh

    config, options = run_config(values), options or Options()
    stage = stage_of(config)
    if config.probe_every and not stage.decodes:
        raise UserError(
            f"probe_every must be 0 for the {stage.name}, which decodes nothing by itself; see its val rows"
        )
    profile_steps = None if options.profile_steps is None else parse_steps(options.profile_steps)
    mesh = make_mesh(config.mesh)
    speech = stage.windows == "speech"
    if speech:
        from unils_jax.systems.unitalker import training as talker

        config, inherited = talker.inherit(config, workdir, parent)
        data, held_out = talker.make_speech_data(config, mesh)
        config = talker.settle(config, data, inherited)
    else:
        data, held_out = make_data(config, stage.windows, mesh)
        check_basis(config, data.mixture.expression_basis)
    config = count_epochs(config, data.steps_per_epoch)
    check_output(workdir / "config.json")
    resumes = check_workdir(config, workdir, allow_changes=options.allow_changes)
    head = load_head(config) if stage.name == "codec" or speech else None
    objective = make_objective(config, head, talker.spaces_of(config, head) if speech else None)
    graphdef, shapes = abstract(config.model.build)
    if speech:
        fresh = talker.fresh_talker(config, mesh, shapes, data, inherited, resumes)
    else:
        statistics = data.mixture.statistics(centred=config.data.centre_head)
        fresh = make_fresh(config, mesh, shapes, statistics, stage.parent, parent, resumes)
    start = InitialState(shapes, published_params(config), fresh)
    if options.dry_run:
        try_shapes(config, mesh, graphdef, start, objective, next(data.at_step(0)))
        return {}
    begins = f"parent {parent}" if parent else "scratch"
    log.info("starting from %s", f"the newest checkpoint of {workdir}" if resumes else begins)
    if resumes and parent:
        log.info("--parent %s is left unused: the workdir has its own weights", parent)
    if stage.name == "codec" and objective.head is None:
        log.warning("no head is given: the codec trains without mesh and lip losses")
    probe = make_probe(config, workdir, graphdef) if config.probe_every else None
    extras = TrainOptions(stop or PreemptionGuard(), probe, profile_steps, options.allow_changes, matrix_peak(config))
    setup = TrainSetup(mesh, graphdef, objective, start)
    return train(config, workdir, setup, data, held_out, extras)


def make_data(config: Any, view: str, mesh: Any) -> tuple[Any, Callable[[], Any]]:
    """The loader of this process's share of the training batches, and a function that starts the validation batches
    anew. Raises UserError where the batch does not divide over the devices."""
    from itertools import islice

    import jax

    from data_pipelines.loader import make_loader
    from data_pipelines.mixture import parse_stores
    from unils_jax.training.sharding import process_batch_size

    data = config.data
    process_batch_size(data.batch_size, mesh, config.train.accumulate_steps)
    stores = parse_stores(data.store, data.stores)
    options = {"view": view, "batch_size": data.batch_size, "max_bad_records": data.max_bad_records}
    options |= {"process_index": jax.process_index(), "process_count": jax.process_count()}
    options |= {"centre_head": data.centre_head}
    loader = make_loader(stores, "train", seed=config.seed, num_workers=data.num_workers, **options)
    held_out = make_loader(stores, "val", seed=0, **options)
    return loader, lambda: islice(iter(held_out), config.eval_batches)


def check_basis(config: Any, expression_basis: str) -> None:
    """Raises UserError where the data's expression basis is not the one that the config expects."""
    from unils_jax.errors import UserError

    if expression_basis != config.expression_basis:
        where = config.data.store or ", ".join(config.data.stores)
        raise UserError(
            f"{where} holds motion of the {expression_basis!r} basis, the config expects "
            f"{config.expression_basis!r}; set --config.expression_basis={expression_basis} or use another store"
        )


def make_fresh(
    config: Any,
    mesh: Any,
    shapes: dict,
    statistics: tuple[Any, Any],
    stage_parent: str | None,
    parent: str | None,
    resumes: bool,
) -> Callable[[], dict]:
    """The function that gives all parameters before the first step: the parent's, the data's statistics, fresh ones.

    Published ones are left out. Raises UserError at once where the parent is missing, superfluous or does not fit.
    """
    from unils_jax.errors import UserError
    from unils_jax.training.checkpoint import published_left_out
    from unils_jax.training.sharding import init_sharded

    if stage_parent is None and parent:
        raise UserError(f"the {config.stage} stage starts from scratch; leave --parent away")
    if stage_parent is not None and not parent and not resumes:
        raise UserError(f"the {config.stage} stage starts from a {stage_parent}; give its checkpoint with --parent")
    inherited = {} if stage_parent is None or resumes else parent_params(config, stage_parent, parent)
    if config.model.dualtalk is not None and config.audio_encoder and not resumes:
        inherited |= both_encoders(config)

    def fresh() -> dict:
        mean, std = statistics
        given = {"codec/motion_mean": mean, "codec/motion_std": std} if config.model.codec is not None else {}
        given |= inherited
        missing = [path for path in published_left_out(shapes) if path not in given]
        build = replace(config.model, wav2vec2=None).build
        return init_sharded(mesh, build, config.seed, "|".join(map(re.escape, missing))) | given

    return fresh


def published_params(config: Any) -> dict:
    """The audio encoder's parameters where it is a published one, host arrays."""
    from unils_jax.checkpoints.audio_encoders import load_audio_encoder
    from unils_jax.errors import UserError

    if config.model.wav2vec2 is None:
        return {}
    encoder, params = load_audio_encoder(config.audio_encoder)
    if encoder != config.model.wav2vec2:
        raise UserError(f"{config.audio_encoder} has other sizes than config.model.wav2vec2: {encoder}")
    return params


def both_encoders(config: Any) -> dict:
    """A published wav2vec2 as the start of both of DualTalk's encoders, host arrays."""
    from unils_jax.checkpoints.audio_encoders import load_audio_encoder
    from unils_jax.errors import UserError

    encoder, params = load_audio_encoder(config.audio_encoder)
    if encoder != config.model.dualtalk.wav2vec2:
        raise UserError(f"{config.audio_encoder} has other sizes than config.model.dualtalk.wav2vec2: {encoder}")
    return {
        path.replace("audio_encoder/", f"{whose}_encoder/", 1): value
        for whose in ("own", "partner")
        for path, value in params.items()
    }


def parent_params(config: Any, stage_parent: str, parent: str) -> dict:
    """The parent checkpoint's parameters. Raises UserError where it is of another stage, of other sizes than the
    config's (then the shapes may fit and the model be another), or of another expression basis."""
    from unils_jax.checkpoints.loading import load
    from unils_jax.errors import UserError

    checkpoint = load(parent, stage=stage_parent)
    parts = [("codec", checkpoint.config.codec, config.model.codec)]
    if checkpoint.config.prior is not None:
        parts.append(("prior", checkpoint.config.prior, config.model.prior.without_audio()))
    problems = [
        f"{part}.{name} is {getattr(theirs, name)} in it and {getattr(ours, name)} in the config"
        for part, theirs, ours in parts
        for name in vars(ours)
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if checkpoint.expression_basis != config.expression_basis:
        problems.append(f"its motion is of the {checkpoint.expression_basis!r} basis, the config's of another")
    centred = (checkpoint.run or {}).get("data", {}).get("centre_head", True)
    if checkpoint.run is not None and centred != config.data.centre_head:
        problems.append(f"data.centre_head is {centred} in it and {config.data.centre_head} in the config")
    if problems:
        raise UserError(f"parent {parent} does not fit: {'; '.join(problems)}; use the config of the same family")
    return checkpoint.params


def load_head(config: Any) -> Any:
    """The head whose vertices the mesh losses see, or None. Raises UserError where it does not fit the basis."""
    from unils_jax.errors import UserError
    from unils_jax.face.flame_file import load_flame
    from unils_jax.face.standin import standin_asset

    if not config.head:
        return None
    head = standin_asset() if config.head == "standin" else load_flame(config.head)
    if head.name != config.expression_basis:
        raise UserError(f"config.head {config.head!r} does not fit the basis {config.expression_basis!r}")
    return head


def make_probe(config: Any, workdir: Path, graphdef: Any) -> Any:
    """What looks at the model while it trains, on the first conversations of the validation split that fit."""
    from itertools import islice

    import jax

    from data_pipelines.mixture import parse_stores
    from data_pipelines.store.reader import Store
    from unils_jax.errors import UserError
    from unils_jax.evaluation import probe
    from unils_jax.evaluation.protocols import conversation_of, skip_reason
    from unils_jax.evaluation.scoring import mesh_of
    from unils_jax.face.standin import standin_asset

    store = Store(parse_stores(config.data.store, config.data.stores)[0][0])
    needs_audio = config.model.stage == "dialogue"
    fitting = (
        i for i, r in enumerate(store.records("val")) if not skip_reason(r, probe.VALIDATION, needs_audio=needs_audio)
    )
    chosen = list(islice(fitting, config.probe_conversations))
    if not chosen:
        raise UserError(f"probe_every is set, but the val split of {store.path} holds no conversation to decode")
    head = load_head(config) or standin_asset()
    clips = (workdir / "clips", head) if config.probe_clips and jax.process_index() == 0 else None
    return probe.make_free_running_eval(
        graphdef,
        [conversation_of(store.read("val", i), probe.VALIDATION) for i in chosen],
        mesh=mesh_of(head) if head.name == config.expression_basis else None,
        expression_basis=config.expression_basis,
        clips=clips,
    )


def matrix_peak(config: Any) -> float:
    """FLOP/s of all devices together: the data sheet's where it is known, otherwise measured on the first device."""
    import jax

    from unils_jax.training import flops
    from unils_jax.training.profiling import known_peak

    device, dtype = jax.devices()[0], config.train.compute_dtype
    known = known_peak(device.device_kind, dtype)
    # On a CPU a small product tells enough, and quickly.
    peak = known or flops.matrix_peak(dtype, *((512,) if device.platform == "cpu" else ()))
    source = "by its data sheet" if known else "measured"
    log.info("matrix peak of a device (%s): %.3g TFLOP/s in %s, %s", device.device_kind, peak / 1e12, dtype, source)
    return peak * jax.device_count()


def try_shapes(config: Any, mesh: Any, graphdef: Any, start: Any, objective: Any, batch: dict) -> None:
    """Traces one step from shapes alone, which fails where anything does not fit. Nothing is computed."""
    import jax

    from unils_jax.training.config import stage_of
    from unils_jax.training.loop import state_shapes
    from unils_jax.training.step import make_train_step

    stage = stage_of(config)
    step = make_train_step(
        stage, graphdef, objective, config.optimizer, accumulate_steps=config.train.accumulate_steps, mesh=mesh
    )
    _, frozen = stage.split(start.shapes)
    jax.eval_shape(step, state_shapes(stage, start.shapes, config, mesh), frozen, batch, jax.random.key(0))
