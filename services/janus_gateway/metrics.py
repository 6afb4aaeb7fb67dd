"""The gateway's Prometheus metrics: the ``vllm:`` names that dashboards know, and ``janus_`` for what is ours."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from janus_gateway.traffic import TrafficMeter

# Buckets as vLLM's, so that its dashboards' quantiles read the same.
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_E2E_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
#: Status of a refusal that more instances would have avoided.
_NO_ROOM = 429
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class GatewayMetrics:
    """All metrics of one gateway, in a registry of its own (``/metrics`` writes it)."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._finished = Counter(
            "vllm:request_success",
            "Sequences that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._refused = Counter(
            "janus_gateway_requests_refused",
            "Requests answered with an error status, by status and code.",
            ["model_name", "status", "code"],
            registry=self.registry,
        )
        self.running = self._gauge("vllm:num_requests_running", "Sequences that have begun to answer.")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Sequences without a first token yet.")
        self.kv_usage = self._gauge("vllm:kv_cache_usage_perc", "KV cache in use, 0..1, of the fullest instance.")
        self.instances = self._gauge("janus_gateway_attention_instances", "Attention instances that take requests.")
        self.outstanding = self._gauge("janus_gateway_outstanding_tokens", "Tokens that admitted requests may need.")
        self.recovering = self._gauge("janus_gateway_recovering_sequences", "Sequences whose instance was lost.")
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of admitted sequences.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.resubmitted = self._counter("janus_gateway_resubmitted", "Sequences resumed on another instance.")
        self.disconnects = self._counter("janus_gateway_client_disconnects", "Clients gone before their answer ended.")
        self.ttft = self._histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_S)
        self.itl = self._histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", _ITL_S)
        self.e2e = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", _E2E_S)
        self.prompt_size = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a sequence.", _TOKENS)
        self.output_size = self._histogram("vllm:request_generation_tokens", "Tokens generated per sequence.", _TOKENS)
        #: The same for the controller, in sums that it can add up over gateways.
        self.traffic = TrafficMeter()
        #: Called before the metrics are written: copies in what is cheaper to read than to keep.
        self.refresh: Callable[[], None] = lambda: None

    def finished(self, reason: str) -> None:
        """Count the end of a sequence."""
        self._finished.labels(self._model_name, reason).inc()

    def refused(self, status: int, code: str) -> None:
        """Count an error answer."""
        self._refused.labels(self._model_name, str(status), code).inc()
        if status == _NO_ROOM:
            self.traffic.refused()

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, ["model_name"], registry=self.registry).labels(self._model_name)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, ["model_name"], registry=self.registry).labels(self._model_name)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(name, about, ["model_name"], registry=self.registry, buckets=buckets)
        return family.labels(self._model_name)
