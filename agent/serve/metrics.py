"""What a tenant's requests cost, in Prometheus' form; one registry a tenant, so that none sees another's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from agent.results import Trace

disable_created_metrics()  # a second series for each of ours that says when the process began

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 60)


class Metrics:
    """Counters and histograms of one tenant. Labels are names of ours: no id and no text of anybody."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.running = Gauge("evoke_requests_in_flight", "Requests being answered", registry=registry)
        self._requests = Counter("evoke_requests", "Requests answered", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "evoke_request_seconds", "Time to the whole answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.first_items = Histogram(
            "evoke_first_items_seconds", "Time to the first items of a stream", buckets=_SECONDS, registry=registry
        )
        self._stages = Histogram(
            "evoke_stage_seconds", "Time of each stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter("evoke_tokens", "Tokens of the model", ["direction"], registry=registry)
        self._degraded = Counter(
            "evoke_degraded", "Stages that went on without the model", ["stage"], registry=registry
        )
        self._cache_hits = Counter("evoke_cache_hits", "Stages answered from a cache", ["stage"], registry=registry)
        self.events = Counter("evoke_events", "Events sent", ["outcome"], registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one request that is answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def trace(self, trace: Trace | None) -> None:
        """Count what the stages of a request did."""
        for stage in trace.stages if trace else ():
            self._stages.labels(stage.name).observe(stage.ms / 1000)
            self._tokens.labels("in").inc(stage.tokens_in)
            self._tokens.labels("out").inc(stage.tokens_out)
            if stage.degraded:
                self._degraded.labels(stage.name).inc()
            if stage.cached:
                self._cache_hits.labels(stage.name).inc()

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
