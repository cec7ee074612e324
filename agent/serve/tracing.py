"""OpenTelemetry spans, one a request and one a stage, where a collector is configured; nothing otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from agent.results import Trace

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTER = "opentelemetry.exporter.otlp.proto.{}.trace_exporter"


class Tracing:
    """Spans to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names. Item, user and message texts are never in them."""

    def __init__(self) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        exporter = _exporter() if any(os.environ.get(name) for name in _ENDPOINTS) else None
        if exporter:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            name = os.environ.get("OTEL_SERVICE_NAME", "evoke")
            self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            self._tracer = self._provider.get_tracer("evoke")

    @contextmanager
    def request(self, method: str) -> Iterator[Any]:
        """The span of one request (None where nothing is configured)."""
        if self._tracer is None:
            yield None
            return
        with self._tracer.start_as_current_span(method) as span:
            yield span

    def stages(self, parent: Any, trace: Trace | None) -> None:
        """One span for each stage of the trace, under the request's own."""
        if self._tracer is None or parent is None or trace is None:
            return
        from opentelemetry.trace import set_span_in_context

        under = set_span_in_context(parent)
        for stage in trace.stages:
            facts: dict[str, Any] = {"tokens_in": stage.tokens_in, "tokens_out": stage.tokens_out}
            facts |= {"cached": stage.cached, "degraded": stage.degraded or ""}
            begun = int(stage.began * 1e9)
            span = self._tracer.start_span(stage.name, context=under, start_time=begun, attributes=facts)
            span.end(begun + int(stage.ms * 1e6))

    def flush(self) -> None:
        """Send what there is."""
        if self._provider:
            self._provider.force_flush()

    def close(self) -> None:
        """Send what is left, and end."""
        if self._provider:
            self._provider.shutdown()


def _exporter() -> Any:
    """OTLP by the protocol that is asked for, as far as it is installed."""
    from importlib import import_module

    wanted = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    for protocol in ("http", "grpc") if wanted.startswith("http") else ("grpc", "http"):
        name = _EXPORTER.format(protocol)
        if find_spec("opentelemetry") and find_spec("opentelemetry.sdk") and _there(name):
            return import_module(name).OTLPSpanExporter()
    return None


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
