"""The times of a video's pictures, at which a tracker saw its frames."""

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from unils_jax.media import FROM_ZERO

MAX_PICTURES = 4_000_000  # of a video; further ones are not read


def picture_times(path: Path) -> Float64[np.ndarray, " T"] | None:
    """Returns the seconds of all pictures in a video, in order; None where none can be read.

    Pictures are not decoded. Seconds count from the file's beginning, as those of its sound do.
    """
    import av  # noqa: PLC0415  FFmpeg's libraries load for files that need them

    try:
        # No protocol but the file's: a reference inside the file opens nothing else.
        with av.open(str(path), metadata_errors="replace", options={"protocol_whitelist": "file"}) as container:
            streams = container.streams.video
            if not streams:
                return None
            packets = itertools.islice(container.demux(streams[0]), MAX_PICTURES)
            times = [packet.pts for packet in packets if packet.pts is not None]
            base = float(streams[0].time_base or 0)
            # Formats whose clocks begin anywhere: the sound is read from the file's first time on.
            start = 0.0 if container.format.name in FROM_ZERO else (container.start_time or 0) / 1e6
    except (av.FFmpegError, OSError, ValueError, LookupError, MemoryError):
        return None
    seconds = np.sort(np.array(times, np.float64)) * base - start
    grows = len(seconds) > 1 and np.isfinite(seconds).all() and (np.diff(seconds) > 0).all() and seconds[0] >= 0
    return seconds if grows else None
