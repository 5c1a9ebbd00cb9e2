"""`unils data encode`: the features of a store's audio, computed once."""

import argparse
import logging
from dataclasses import dataclass, field

from data_pipelines.store.features import DTYPES, MODES
from unils_jax.cli.arguments import Request
from unils_jax.config import load_config
from unils_jax.errors import UserError
from unils_jax.training.config import override_run, run_config
from unils_jax.training.feature_cache import encode_store
from unils_jax.training.run import encoder_params

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodeRequest(Request):
    """The flags of `unils data encode`."""

    store: str
    out: str
    config: str = "dialogue"
    audio_encoder: str | None = None  # None: the config's
    mode: str = "window"
    dtype: str = "bf16"
    overrides: list[str] = field(default_factory=list)  # a.b=value of the config


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils data encode`."""
    parser.add_argument("--store", required=True, metavar="DIR", help="the store whose audio is encoded")
    parser.add_argument("--out", required=True, metavar="DIR", help="the features; run again, it goes on")
    parser.add_argument(
        "--config",
        default=EncodeRequest.config,
        metavar="NAME-OR-FILE",
        help="the dialogue that will train on them (default: %(default)s)",
    )
    parser.add_argument("--audio_encoder", metavar="DIR", help="wav2vec2, Mimi or an ear (default: the config's)")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=EncodeRequest.mode,
        help="window: every training window at a fixed start, exactly as training encodes it; record: whole records, "
        "smaller and with jitter, normalised over the record (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=EncodeRequest.dtype, help="how numbers are kept (bf16)")
    parser.set_defaults(overrides=[])


def run_encode(args: argparse.Namespace) -> None:
    """Encodes a store.

    Raises UserError, before anything is computed, where the config is no dialogue's.
    """
    request = EncodeRequest.from_args(args)
    values = load_config(request.config)
    override_run(values, request.overrides)
    values.data.store = request.store
    if request.audio_encoder:
        values.audio_encoder = request.audio_encoder
    config = run_config(values.to_dict())
    if config.model.stage != "dialogue" or config.system != "unils":
        raise UserError(f"--config {request.config} is a {config.stage}, features are a UniLS dialogue's; name one")

    def tell(done: int, total: int) -> None:
        log.info("encoded %d of %d records", done, total)

    settings = {"mode": request.mode, "dtype": request.dtype, "progress": tell}
    error = encode_store(config, encoder_params(config), request.out, **settings)["error"]
    print(
        f"{request.out}: {request.mode} features in {request.dtype}, relative error {error['relative_rms']:.2g}, "
        f"largest {error['largest']:.2g}; train with --config.audio_features={request.out}"
    )
