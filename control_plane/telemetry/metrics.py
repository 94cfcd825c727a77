"""Every Prometheus metric of the control plane, in one place. docs/metrics.md explains each.

Labels are bounded: model type, version, outcome, route template. With several workers the supervisor sets
PROMETHEUS_MULTIPROC_DIR, and a scrape of any worker gives the sum of all.
"""

import os

from prometheus_client import Counter, Gauge, Histogram, values

if values.ValueClass is not values.MutexValue:
    # Several workers share files named by process. The client asks for the process at each count, fifteen times a
    # prediction, in case it forked; a worker doesn't.
    _PROCESS = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS)  # type: ignore[no-untyped-call]

LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

PREDICTION_REQUESTS = Counter(
    "prediction_requests_total",
    "Predictions by outcome: ok, invalid, overloaded, deadline, unavailable, failed, cancelled.",
    ["model_type", "version", "outcome"],
)
PREDICTION_LATENCY = Histogram(
    "prediction_latency_seconds",
    "From the parsed request to the finished answer.",
    ["model_type", "version"],
    buckets=LATENCY_BUCKETS_S,
)
PREDICTION_ERRORS = Counter(
    "prediction_errors_total",
    "Predictions that failed, by the problem's slug (docs/errors.md).",
    ["model_type", "version", "error"],
)
PREDICTION_ROWS = Counter("prediction_rows_total", "Rows predicted.", ["model_type", "version"])
PREDICTIONS_DEGRADED = Counter(
    "predictions_degraded_total",
    "Predictions that overload would have refused, answered by: fallback, stale.",
    ["model_type", "version", "by"],
)

MODEL_CACHE_HITS = Counter(
    "model_cache_hits_total", "Predictions whose version was loaded already.", ["model_type"]
)
MODEL_CACHE_MISSES = Counter(
    "model_cache_misses_total", "Predictions that had to wait for a load.", ["model_type"]
)
MODEL_CACHE_EVICTIONS = Counter(
    "model_cache_evictions_total", "Versions unloaded to make room.", ["model_type"]
)
MODEL_CACHE_EXPIRATIONS = Counter(
    "model_cache_expirations_total", "Versions unloaded by their TTL.", ["model_type"]
)
MODELS_LOADED = Gauge("models_loaded", "Versions that Triton holds.", multiprocess_mode="mostrecent")
MODEL_LOADS = Counter(
    "model_loads_total",
    "Loads into Triton by outcome: ok, failed.",
    ["model_type", "outcome"],
)
MODEL_LOAD_SECONDS = Histogram(
    "model_load_seconds", "Time of one load into Triton.", ["model_type"],
    buckets=(0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0),
)  # fmt: skip
RECONCILIATIONS = Counter(
    "model_reconciliations_total", "Differences between Triton's index and Redis that were mended.", ["kind"]
)

RESPONSE_CACHE_HITS = Counter(
    "response_cache_hits_total", "Predictions answered from a version's response cache.", ["model"]
)
RESPONSE_CACHE_MISSES = Counter(
    "response_cache_misses_total", "Predictions that a version's response cache had no answer for.", ["model"]
)
RESPONSE_CACHE_EVICTIONS = Counter(
    "response_cache_evictions_total", "Kept answers that made room for others.", ["model"]
)
RESPONSE_CACHE_BYTES = Gauge(
    "response_cache_bytes", "Memory of the kept answers.", ["model"], multiprocess_mode="livesum"
)

DISPATCHER_QUEUE_DEPTH = Gauge(
    "dispatcher_queue_depth", "Requests waiting for a call to Triton.", ["model"], multiprocess_mode="livesum"
)
DISPATCHER_CALLS_IN_FLIGHT = Gauge(
    "dispatcher_calls_in_flight", "Calls to Triton in flight.", ["model"], multiprocess_mode="livesum"
)
DISPATCHER_WAIT = Histogram(
    "dispatcher_wait_seconds",
    "Time a request waited before its call was sent.",
    ["model"],
    buckets=LATENCY_BUCKETS_S,
)
DISPATCHER_MERGED_ROWS = Histogram(
    "dispatcher_merged_rows", "Rows of one call to Triton.", ["model"], buckets=ROWS_BUCKETS
)
DISPATCHER_DROPPED = Counter(
    "dispatcher_dropped_total",
    "Requests that were never sent: expired, cancelled, queue_full, overloaded.",
    ["model", "reason"],
)
TRITON_CALL = Histogram(
    "triton_call_seconds", "Time of one inference call to Triton.", ["model"], buckets=LATENCY_BUCKETS_S
)

AB_TEST_REQUESTS = Counter(
    "ab_test_requests_total",
    "Requests that took part in an experiment, by outcome: ok, failed, shed (a shadow that was not asked).",
    ["experiment", "variant", "outcome"],
)
EXPERIMENT_TRANSITIONS = Counter(
    "experiment_transitions_total",
    "Experiments that moved on: step, promoted, rolled_back, completed, stopped, reweighted.",
    ["mode", "to"],
)
EXPERIMENT_COUNTS_WAITING = Gauge(
    "experiment_counts_waiting", "Requests whose counts Redis doesn't have yet.", multiprocess_mode="livesum"
)

DECISIONS_RECORDED = Counter(
    "ensemble_decisions_recorded_total", "Requests whose decisions were kept until their feedback comes."
)
DECISIONS_DROPPED = Counter(
    "ensemble_decisions_dropped_total",
    "Requests whose decisions were not kept: Redis was away for too long, or too full.",
)
FEEDBACK = Counter(
    "feedback_total",
    "Feedback by what became of it: accepted, duplicate, conflict, unknown, expired, invalid.",
    ["status"],
)
ENSEMBLE_WEIGHT = Gauge(
    "ensemble_weight", "Weight of an agent, as learned.", ["model", "agent"], multiprocess_mode="mostrecent"
)

REDIS_UP = Gauge("redis_up", "Whether Redis answered last.", multiprocess_mode="min")
TRITON_UP = Gauge("triton_up", "Whether Triton answered last.", multiprocess_mode="min")
BACKGROUND_RESTARTS = Counter(
    "background_task_restarts_total", "Background tasks restarted after an error.", ["task"]
)
HTTP_REQUESTS = Counter(
    "http_requests_total", "Answers by route template and status.", ["method", "route", "status"]
)
PROCESS_MEMORY = Gauge(
    "serving_process_memory_bytes", "Resident memory of a process of this deployment.", ["process"],
    multiprocess_mode="mostrecent",
)  # fmt: skip
GPU_MEMORY_USED = Gauge(
    "gpu_memory_used_bytes", "Memory in use on a GPU.", ["gpu"], multiprocess_mode="mostrecent"
)
GPU_MEMORY_TOTAL = Gauge(
    "gpu_memory_total_bytes", "Memory of a GPU.", ["gpu"], multiprocess_mode="mostrecent"
)
