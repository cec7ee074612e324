"""Prometheus metrics of a tenant. Each tenant has a registry of its own, so that none sees another's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from agent.results import Trace

disable_created_metrics()  # they would double the number of series, only to say when the process began

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 60)


class Metrics:
    """Counters and histograms of one tenant. Labels never contain ids or texts of users."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.running = Gauge("evoke_requests_in_flight", "Requests in progress", registry=registry)
        self._requests = Counter("evoke_requests", "Requests answered", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "evoke_request_seconds", "Time to the complete answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.first_items = Histogram(
            "evoke_first_items_seconds", "Time to the first items of a stream", buckets=_SECONDS, registry=registry
        )
        self._stages = Histogram(
            "evoke_stage_seconds", "Time of each stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter("evoke_tokens", "Tokens of the model", ["direction"], registry=registry)
        self._degraded = Counter("evoke_degraded", "Degraded stages", ["stage"], registry=registry)
        self._cache_hits = Counter("evoke_cache_hits", "Stages answered from a cache", ["stage"], registry=registry)
        self.events = Counter("evoke_events", "Events sent", ["outcome"], registry=registry)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_trace(self, trace: Trace | None) -> None:
        """Count the stages of a request."""
        for stage in trace.stages if trace else ():
            self._stages.labels(stage.name).observe(stage.ms / 1000)
            self._tokens.labels("in").inc(stage.tokens_in)
            self._tokens.labels("out").inc(stage.tokens_out)
            if stage.degraded:
                self._degraded.labels(stage.name).inc()
            if stage.cached:
                self._cache_hits.labels(stage.name).inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
