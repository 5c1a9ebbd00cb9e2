"""What `unils decode` does with a DualTalk checkpoint: the partner's motion found, then one person or both."""

import argparse
import logging
import time
from typing import Any

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what the second person does."""
    partner = parser.add_argument_group("DualTalk", "what the partner does, which this model sees (default: nothing)")
    partner = partner.add_mutually_exclusive_group()
    partner.add_argument("--motion2", metavar="M.npz", help="motion file of the second person, or of both in order")
    partner.add_argument("--motion2_by", metavar="PATH", help="UniLS dialogue that first predicts it from the audio")


def run(args: argparse.Namespace, checkpoint: Any, audio: list) -> None:
    """Decodes one conversation. Raises UserError for flags that DualTalk has no use for."""
    import numpy as np

    from unils_jax import __version__
    from unils_jax.cli.decode import load_head, write_video
    from unils_jax.errors import UserError
    from unils_jax.motion import save_motion
    from unils_jax.systems.dualtalk.system import respond

    useless = [f"--{name}" for name in ("style", "prev", "adapter", "batch") if getattr(args, name) is not None]
    if useless:
        raise UserError(f"{', '.join(useless)} is of UniLS, {args.checkpoint} is a DualTalk; leave it away")
    head = load_head(args.flame) if args.video else None
    started = time.perf_counter()
    people = args.people or 1
    if len(audio) == 1:
        audio = [audio[0], np.zeros_like(audio[0])]
    partners, origin = partner_motion(args, audio, people, checkpoint.expression_basis)
    motions = [
        respond(checkpoint.model, audio[p], audio[1 - p], partners[1 - p], dtype=args.dtype) for p in range(people)
    ]
    motion = np.stack([person[: min(map(len, motions))] for person in motions])
    seconds = time.perf_counter() - started
    tracks = [path for path in (args.audio, args.audio2) if path]
    if args.out:
        source = {**checkpoint.source, "audio": tracks, "partner_motion": origin, "dtype": args.dtype}
        basis = checkpoint.expression_basis
        save_motion(args.out, motion, expression_basis=basis, source={**source, "version": __version__})
    if args.video:
        write_video(args.video, motion, audio[:people], head, checkpoint.expression_basis)
    written = ", ".join(path for path in (args.out, args.video) if path)
    print(f"{written}: {people} x {motion.shape[1]} frames, decoded in {seconds:.1f} s with compilation")


def partner_motion(args: argparse.Namespace, audio: list, people: int, basis: str) -> tuple[list, str]:
    """What either person does as the other one sees it, two arrays [T, 108], and in words where it is from.

    Without a flag it is zero, and so it is said: no recording of the partner is no reason to fail.
    """
    import numpy as np

    from unils_jax.errors import UserError
    from unils_jax.motion import MOTION_DIM, load_motion

    if args.motion2_by:
        return list(predicted(args, audio, basis)), f"predicted by {args.motion2_by}"
    if args.motion2:
        file = load_motion(args.motion2)
        if file.expression_basis != basis:
            raise UserError(
                f"--motion2 {args.motion2} is of the {file.expression_basis!r} basis, the checkpoint of {basis!r}; use "
                "motion of the basis that the checkpoint was trained on"
            )
        if len(file.motion) < people:
            raise UserError(f"--motion2 {args.motion2} holds one person; both see each other, give motion of both")
        return [file.motion[0], file.motion[-1]], args.motion2
    log.warning("no --motion2 or --motion2_by: the partner does not move here, as nobody in DualTalk's training")
    return [np.zeros((1, MOTION_DIM), np.float32)] * 2, "zero"


def predicted(args: argparse.Namespace, audio: list, basis: str) -> Any:
    """Both people's motion by a UniLS dialogue, head rotation around zero."""
    from unils_jax.checkpoints.loading import load
    from unils_jax.errors import UserError
    from unils_jax.inference.conversations import Sampling, decode

    checkpoint = load(args.motion2_by, audio_encoder=args.audio_encoder, stage="dialogue")
    if checkpoint.expression_basis != basis:
        raise UserError(
            f"--motion2_by {args.motion2_by} is of the {checkpoint.expression_basis!r} basis, the checkpoint of "
            f"{basis!r}; use one that was trained on the same data"
        )
    sampling = Sampling(args.tau, args.cfg, args.top_p)
    return decode(checkpoint.model, *audio, sampling=sampling, seed=args.seed, people=2, dtype=args.dtype)
