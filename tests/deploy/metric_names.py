"""The metrics that dashboard, alerts and documents may name: what GET /metrics has."""

PREFIX = "tickertape:"

GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_paused",
    "kv_cache_usage_perc",
    "num_tapes",
    "readers_attached",
    "engine_up",
}
COUNTERS = {
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prompt_tokens",
    "generation_tokens",
    "num_preemptions",
    "request_success",
    "coalesced_frames",
    "resumes",
    "replayed_entries",
    "expired_tapes",
    "recoveries",
    "engine_restarts",
    "slow_readers_cut",
    "http_requests",
}
HISTOGRAMS = {
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "emit_to_socket_seconds",
    "iteration_tokens_total",
    "request_prompt_tokens",
    "request_generation_tokens",
}
LABELS = {
    "expired_tapes": {"reason"},
    "request_success": {"finished_reason"},
    "http_requests": {"method", "route", "status"},
}

# By family as a document names it: a counter with its _total.
FAMILIES = {
    PREFIX + name for name in GAUGES | {f"{counter}_total" for counter in COUNTERS} | HISTOGRAMS
}
# By series as an expression names it.
SERIES = {
    PREFIX + name
    for name in GAUGES
    | {f"{counter}_total" for counter in COUNTERS}
    | {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
}
