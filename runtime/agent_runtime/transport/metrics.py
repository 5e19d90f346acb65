"""metrics: what the transport counts, for Prometheus. One registry per mounted application.

Labels are routes and names of our own, never anything that a client made up.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


class Metrics:
    """The counters; `text` shows them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.http = Histogram(
            "agent_runtime_http_request_seconds",
            "Time until the answer was complete; event streams are not counted.",
            ("method", "route", "status"),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.commands = Counter(
            "agent_runtime_socket_commands",
            "Commands over Socket.IO by outcome: ok, or the code of the error.",
            ("command", "outcome"),
            registry=self._registry,
        )
        self.joins = Counter(
            "agent_runtime_joins",
            "Joins by what they were answered with.",
            ("resume",),
            registry=self._registry,
        )
        self.connections = Gauge(
            "agent_runtime_socket_connections", "Authenticated connections.", registry=self._registry
        )
        self.streams = Gauge("agent_runtime_event_streams", "Open SSE streams.", registry=self._registry)
        self.previews = Counter(
            "agent_runtime_preview_requests",
            "Requests for what is shown of a sandbox, by the first digit of their status.",
            ("status",),
            registry=self._registry,
        )
        self.terminals = Gauge("agent_runtime_terminals", "Open terminals.", registry=self._registry)
        self.slow_consumers = Counter(
            "agent_runtime_slow_consumers",
            "Connections closed because they did not take what they were sent.",
            registry=self._registry,
        )

    def text(self) -> bytes:
        """The present values in Prometheus' text format, with those that all runtimes of a process share."""
        return generate_latest(self._registry) + generate_latest(REGISTRY)
