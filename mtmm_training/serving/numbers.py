"""What a service tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Numbers:
    """Of one service: requests by status and their time, batches, what waits, what was heard."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "mtmm_requests", "Requests that were answered", ["status"], registry=registry
        )
        self._request_seconds = Histogram(
            "mtmm_request_seconds", "From request to answer", buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "mtmm_batch_requests", "Requests predicted together", buckets=SIZES, registry=registry
        )
        self.taken = Gauge("mtmm_requests_taken", "Read, waiting or computed", registry=registry)
        self.streams = Gauge("mtmm_streams", "Open streams", registry=registry)
        self.seconds = Counter("mtmm_audio_seconds", "Audio taken, seconds", registry=registry)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(str(status)).inc()
        self._request_seconds.observe(seconds)
