"""OpenTelemetry spans, one for each request and each stage, if a collector is configured."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from typing import Any

from opentelemetry.trace import NoOpTracer, set_span_in_context

from agent.results import Trace

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Sends spans to the collector in OTEL_EXPORTER_OTLP_ENDPOINT. They never contain texts of items, users or messages."""

    def __init__(self) -> None:
        self._tracer: Any = NoOpTracer()
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

    def request_span(self, method: str) -> AbstractContextManager[Any]:
        """Open the span of one request; it records nothing if no collector is configured."""
        return self._tracer.start_as_current_span(method)

    def record_stages(self, parent: Any, trace: Trace | None) -> None:
        """Record one span for each stage of the trace, as children of the request's span."""
        under = set_span_in_context(parent)
        for stage in trace.stages if trace else ():
            attributes: dict[str, Any] = {"tokens_in": stage.tokens_in, "tokens_out": stage.tokens_out}
            attributes |= {"cached": stage.cached, "degraded": stage.degraded or ""}
            begun = int(stage.began * 1e9)
            span = self._tracer.start_span(stage.name, context=under, start_time=begun, attributes=attributes)
            span.end(begun + int(stage.ms * 1e6))

    def close(self) -> None:
        """Send the remaining spans and stop."""
        if self._provider:
            self._provider.shutdown()


def _exporter() -> Any:
    """Return the OTLP exporter of the configured protocol if it is installed, else another one, else None."""
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").partition("/")[0]
    installed = {each.name: each for each in entry_points(group="opentelemetry_traces_exporter")}
    for name in (f"otlp_proto_{protocol}", "otlp_proto_grpc", "otlp_proto_http"):
        if name in installed:
            return installed[name].load()()
    return None
