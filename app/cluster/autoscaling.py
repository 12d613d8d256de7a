"""How many replicas a cluster should have. No Ray here."""

from collections.abc import Mapping
from typing import Any, Protocol

# What our replicas tell the autoscaler beside the requests, which Ray counts itself.
SEQUENCES = "sequences"


class Load(Protocol):
    """What Ray's autoscaler knows, as far as it matters here."""

    total_num_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None
    config: Any


def wanted_replicas(load: Load) -> tuple[float, dict[str, Any]]:
    """As many as have the work that each is meant to have: by streams, or by sequences.

    A stream is a request for as long as it runs. A tape that nobody reads is none, but it runs or
    waits; a request may want several sequences, too. Paused ones are at rest, and do not count.
    """
    sequences = (load.aggregated_metrics or {}).get(SEQUENCES, {})
    work = max(load.total_num_requests, sum(sequences.values()))
    return work / load.config.get_target_ongoing_requests(), {}
