"""What the service counts, for /metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["ANNOUNCED", "BYTES", "IN_FLIGHT", "LEFTOVERS", "REFUSED", "REQUESTS", "SECONDS"]

REQUESTS = Counter("pkm_serve_requests", "Requests answered", ["route", "status"])
SECONDS = Histogram(
    "pkm_serve_request_seconds",
    "Time from a request's header to the end of its answer",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
IN_FLIGHT = Gauge("pkm_serve_requests_in_flight", "Requests that are being answered")
BYTES = Counter("pkm_serve_content_bytes", "Content taken in", ["source"])
ANNOUNCED = Counter("pkm_serve_records_announced", "Records that the stream took")
REFUSED = Counter("pkm_serve_records_refused", "Times that the stream refused a record for now")
LEFTOVERS = Counter("pkm_serve_leftovers_removed", "Uploads that nobody finished, removed after a day")
