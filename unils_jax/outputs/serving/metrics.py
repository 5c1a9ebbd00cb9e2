"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.streams = Gauge("unils_streams", "streams that are open", registry=registry)
        self.chunks = Counter("unils_chunks", "windows decoded", registry=registry)
        self.motion_seconds = Counter("unils_motion_seconds", "motion decoded", registry=registry)
        self.compute_seconds = Counter("unils_compute_seconds", "spent decoding", registry=registry)
        self.real_time_factor = Gauge(
            "unils_real_time_factor", "seconds of motion per second of decoding, all streams", registry=registry
        )
        self.queue_seconds = Histogram(
            "unils_queue_seconds", "wait of a complete window for its turn", buckets=BUCKETS_S, registry=registry
        )
        self.decode_seconds = Histogram(
            "unils_decode_seconds", "a run of the program", buckets=BUCKETS_S, registry=registry
        )
        self.refused = Counter("unils_refused", "connections that got no stream", ["reason"], registry=registry)
        self.dropped = Counter("unils_dropped", "streams that the server closed", ["reason"], registry=registry)

    def count_run(self, num_chunks: int, motion_s: float, seconds: float) -> None:
        """Counts a run of the program: chunks of as many streams, and what they took."""
        self.chunks.inc(num_chunks)
        self.motion_seconds.inc(motion_s)
        self.compute_seconds.inc(seconds)
        self.decode_seconds.observe(seconds)
        self.real_time_factor.set(motion_s / max(seconds, 1e-9))

    def text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        return generate_latest(self.registry)
