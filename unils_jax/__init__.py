"""UniLS in JAX: from the audio of a conversation to facial motion.

    import unils_jax as unils

    checkpoint = unils.load("runs/demo/dialogue")
    motion = unils.decode(checkpoint, unils.read_audio("a.wav"), unils.read_audio("b.wav"), seed=3)

Names are imported when they are first used, so `import unils_jax` costs nothing and starts no JAX
backend.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unils_jax.audio import read_audio
    from unils_jax.checkpoints.checkpoint import Checkpoint
    from unils_jax.checkpoints.exporting import export
    from unils_jax.checkpoints.loading import load
    from unils_jax.errors import UserError
    from unils_jax.evaluation.run import evaluate
    from unils_jax.inference.conversations import decode_many
    from unils_jax.inference.finishing import finish
    from unils_jax.inference.sampling import Sampling
    from unils_jax.inference.streaming import Streams
    from unils_jax.motion import load_motion, save_motion, smooth
    from unils_jax.outputs.page import make_page
    from unils_jax.outputs.rendering import render
    from unils_jax.systems.decoding import decode
    from unils_jax.systems.registry import SYSTEMS
    from unils_jax.training.run import train

__version__ = "0.1.0"

# Where each public name lives.
_HOME = {
    "Checkpoint": "checkpoints.checkpoint",
    "SYSTEMS": "systems.registry",
    "Sampling": "inference.sampling",
    "Streams": "inference.streaming",
    "UserError": "errors",
    "decode": "systems.decoding",
    "decode_many": "inference.conversations",
    "evaluate": "evaluation.run",
    "export": "checkpoints.exporting",
    "finish": "inference.finishing",
    "load": "checkpoints.loading",
    "load_motion": "motion",
    "make_page": "outputs.page",
    "read_audio": "audio",
    "render": "outputs.rendering",
    "save_motion": "motion",
    "smooth": "motion",
    "train": "training.run",
}
__all__ = [
    "__version__",
    "Checkpoint",
    "SYSTEMS",
    "Sampling",
    "Streams",
    "UserError",
    "decode",
    "decode_many",
    "evaluate",
    "export",
    "finish",
    "load",
    "load_motion",
    "make_page",
    "read_audio",
    "render",
    "save_motion",
    "smooth",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
