# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Kinds of work, and how it may end.
LOOK, ANSWER = "look", "answer"
OK, REFUSED, LATE, LEFT, FAILED = "ok", "refused", "deadline", "cancelled", "failed"

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in a registry of their own.

    Attributes:
        registry: what `prometheus_client.generate_latest` writes out.
        requests: looks and answers, by kind and how they ended.
        seconds: time of each stage of these, by kind and stage.
        batch_rows: requests of each call of the device, by kind; its count is that of the calls.
        waiting: requests that were accepted and have no result yet, by kind.
        degraded: chat requests that went on without a crop, by reason.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cropvlm_engine_requests",
            "Looks and answers, by how they ended",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "cropvlm_stage_seconds",
            "Seconds by stage",
            ["kind", "stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "cropvlm_batch_rows",
            "Requests that a call of the device worked on together",
            ["kind"],
            buckets=ROWS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "cropvlm_waiting",
            "Requests that were accepted and have no result yet",
            ["kind"],
            registry=self.registry,
        )
        self.degraded = Counter(
            "cropvlm_degraded",
            "Chat requests that went on without a crop, by reason",
            ["reason"],
            registry=self.registry,
        )
