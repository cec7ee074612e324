"""OpenTelemetry spans, one for each request and each stage, if a collector is configured."""

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
    """Sends spans to the collector in OTEL_EXPORTER_OTLP_ENDPOINT. They never contain texts of items, users or messages."""

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
    def request_span(self, method: str) -> Iterator[Any]:
        """Yield the span of one request; None if no collector is configured."""
        if self._tracer is None:
            yield None
            return
        with self._tracer.start_as_current_span(method) as span:
            yield span

    def record_stages(self, parent: Any, trace: Trace | None) -> None:
        """Record one span for each stage of the trace, as children of the request's span."""
        if self._tracer is None or parent is None or trace is None:
            return
        from opentelemetry.trace import set_span_in_context

        under = set_span_in_context(parent)
        for stage in trace.stages:
            attributes: dict[str, Any] = {"tokens_in": stage.tokens_in, "tokens_out": stage.tokens_out}
            attributes |= {"cached": stage.cached, "degraded": stage.degraded or ""}
            begun = int(stage.began * 1e9)
            span = self._tracer.start_span(stage.name, context=under, start_time=begun, attributes=attributes)
            span.end(begun + int(stage.ms * 1e6))

    def flush(self) -> None:
        """Send all spans so far."""
        if self._provider:
            self._provider.force_flush()

    def close(self) -> None:
        """Send the remaining spans and stop."""
        if self._provider:
            self._provider.shutdown()


def _exporter() -> Any:
    """Return the OTLP exporter of the configured protocol if it is installed, else the other one, else None."""
    from importlib import import_module

    wanted = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    for protocol in ("http", "grpc") if wanted.startswith("http") else ("grpc", "http"):
        name = _EXPORTER.format(protocol)
        if find_spec("opentelemetry") and find_spec("opentelemetry.sdk") and _is_installed(name):
            return import_module(name).OTLPSpanExporter()
    return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
