"""Limits of a server, each of which is a flag."""

import math
from dataclasses import dataclass, fields

from unils_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client and all of them together may take."""

    capacity: int = 8  # streams that are open at a time
    max_message_kib: int = 256  # of one message; a larger one closes its connection with 1009
    streams_per_address: int = 8  # connections of one IP address at a time
    max_ahead_s: float = 4.0  # audio beyond real time, or beyond what is decoded, before a client is paused
    max_unread_s: float = 20.0  # motion that a client has not read before it is closed
    open_s: float = 10.0  # from connection to `open`
    idle_s: float = 60.0  # without any message
    life_s: float = 3600.0  # of one connection
    grace_s: float = 10.0  # for open streams to get their motion after SIGTERM

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s") and not 0 < value < math.inf:
                problems.append(f"--{field.name} must be above 0 seconds, got {value}")
            elif not field.name.endswith("_s") and value < 1:
                problems.append(f"--{field.name} must be at least 1, got {value}")
        if problems:
            raise UserError("; ".join(problems))
