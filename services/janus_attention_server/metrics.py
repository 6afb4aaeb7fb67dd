"""What an attention-server measures, under the names that dashboards know, and our own beside them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from janus.core.batcher import BatcherStats
from janus.core.exchange_cost import LinkCost
from janus.core.exchange_routes import MODES
from janus.exchange.times import RESENT
from janus.runtime.step_news import StepNews
from janus.runtime.step_times import StepTimes

_EXPERT_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class AttentionMetrics:
    """Instruments of one attention-server, in the registry given."""

    def __init__(self, registry: CollectorRegistry, *, scheduler: str) -> None:
        self._running = Gauge("vllm:num_requests_running", "Requests being computed", registry=registry)
        self._waiting = Gauge("vllm:num_requests_waiting", "Requests in the queue", registry=registry)
        self._kv = Gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", registry=registry)
        self._preemptions = Counter("vllm:num_preemptions", "Requests put back for recompute", registry=registry)
        self._prompt = Counter("janus_attention_rows", "Rows computed, prompt and decode", registry=registry)
        self._sampled = Counter("janus_attention_tokens", "Tokens sampled", registry=registry)
        self._step = Histogram("janus_step_seconds", "Time of one step", buckets=_STEP_BUCKETS, registry=registry)
        self._queue = Histogram("vllm:request_queue_time_seconds", "Wait before the first step", registry=registry)
        self._finished = Counter("janus_requests_finished", "Requests ended", ["reason"], registry=registry)
        self._a_max = Histogram(
            "janus_a_max",
            "Most distinct experts activated on one instance, per MoE layer of a step",
            buckets=_EXPERT_BUCKETS,
            registry=registry,
        )
        self._activated = Histogram(
            "janus_activated_experts",
            "Distinct experts activated on an instance, per MoE layer of a step",
            ["instance"],
            buckets=_EXPERT_BUCKETS,
            registry=registry,
        )
        self._imbalance = Histogram(
            "janus_activation_imbalance",
            "Most minus fewest experts activated on an instance, per MoE layer of a step",
            buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16, 32),
            registry=registry,
        )
        self._sums = {
            field: Counter(name, text, registry=registry)
            for field, name, text in (
                ("dispatches", "janus_dispatches", "MoE layers dispatched to expert instances"),
                ("frames", "janus_exchange_frames", "Frames posted to expert instances"),
                ("hand_ins", "janus_exchange_hand_ins", "Frames handed in to other attention instances of the node"),
                ("bundles", "janus_exchange_bundles", "Dispatches posted for the node, of one or several instances"),
                ("trials", "janus_exchange_trials", "Trials of another way to exchange that this instance has led"),
                ("changes", "janus_exchange_way_changes", "Trials after which dispatches went another way"),
                ("bytes_out", "janus_exchange_sent_bytes", "Bytes of activations sent, hand-ins included"),
                ("bytes_in", "janus_exchange_received_bytes", "Bytes of partial sums received"),
                ("linger_ns", "janus_exchange_linger_seconds", "Time that bundles waited for other members"),
                ("schedule_ns", "janus_schedule_seconds", "Time spent choosing replicas"),
                ("judged", "janus_schedules_judged", "Choices of replicas that were compared with the best possible"),
                ("proven", "janus_schedules_proven", "Choices of replicas that are proven to be the best possible"),
                ("suspected", "janus_exchange_left_out", "Times that an expert instance was left out for a while"),
                ("late_answers", "janus_exchange_late_answers", "Answers after the layer had been sent again"),
            )
        }
        self._resent = Counter(
            "janus_exchange_resent",
            "MoE layers that were sent again, by why: an instance was lost, late, refused, lacked a replica, "
            "or took no frame",
            ["reason"],
            registry=registry,
        )
        self._resent_seen = dict.fromkeys(RESENT, 0)
        for reason in RESENT:
            self._resent.labels(reason)
        self._seen = dict.fromkeys(self._sums, 0)
        self._ways = {
            suffix: Counter(name, text, ["way"], registry=registry)
            for suffix, name, text in (
                ("", "janus_exchange_dispatches", "Dispatches by the way that they went"),
                ("_ns", "janus_exchange_seconds", "Time from dispatch to combine, the experts' work left out"),
                ("_predicted_ns", "janus_exchange_predicted_seconds", "What that time was predicted to be"),
                ("_followed", "janus_exchange_followed_dispatches", "Dispatches that the next layer's followed"),
                ("_cadence_ns", "janus_exchange_cadence_seconds", "After how long, by the way that the first one went"),
            )
        }
        self._way_seen: dict[str, int] = {}
        self._link_cost = Gauge(
            "janus_link_cost_seconds",
            "What links cost, as measured: per message at each end, latency, per byte",
            ["kind", "of"],
            registry=registry,
        )
        self._micro_batches = Gauge(
            "janus_micro_batches", "Micro-batches that the running requests are split into", registry=registry
        )
        self._turns = {
            field: Counter(name, text, registry=registry)
            for field, name, text in (
                ("compute_ns", "janus_compute_seconds", "Time in which a step computed"),
                (
                    "overlap_ns",
                    "janus_overlap_seconds",
                    "Time in which one micro-batch computed while another waited for its experts",
                ),
                ("idle_ns", "janus_idle_seconds", "Time in which every step in flight waited for its experts"),
            )
        }
        self._turned = dict.fromkeys(self._turns, 0)
        Gauge("janus_scheduler", "1 for the scheduler in use", ["name"], registry=registry).labels(scheduler).set(1)

    def record(self, news: StepNews) -> None:
        """Take one step's news in."""
        self.gauges(news.stats)
        for finish in news.finished:
            self._finished.labels(finish.reason).inc()
        if news.step_s:
            self._step.observe(news.step_s)
            self._prompt.inc(news.rows)
            self._sampled.inc(news.sampled)
            self._preemptions.inc(news.preempted)
            for waited in news.queue_s:
                self._queue.observe(waited)
            for counts in zip(*news.activated.values(), strict=True):
                self._a_max.observe(max(counts))
                self._imbalance.observe(max(counts) - min(counts))
            for instance, counts_of_layers in news.activated.items():
                activated = self._activated.labels(instance)
                for count in counts_of_layers:
                    activated.observe(count)

    def exchange(self, times: dict[str, int]) -> None:
        """Bring the counters up to the sums of ``ExchangeTimes``; empty where there is no exchange."""
        for field, counter in self._sums.items():
            now = times.get(field, 0)
            counter.inc((now - self._seen[field]) * (1e-9 if field.endswith("_ns") else 1))
            self._seen[field] = now
        for reason, seen in self._resent_seen.items():
            now = times.get(f"resent_{reason}", 0)
            self._resent.labels(reason).inc(now - seen)
            self._resent_seen[reason] = now
        for way in MODES:
            for suffix, counter in self._ways.items():
                field = way.replace("-", "_") + suffix
                now, seen = times.get(field, 0), self._way_seen.get(field, 0)
                counter.labels(way).inc((now - seen) * (1e-9 if suffix.endswith("_ns") else 1))
                self._way_seen[field] = now

    def link_costs(self, costs: dict[str, LinkCost]) -> None:
        """Show what the cost model takes links to cost."""
        for kind, cost in costs.items():
            for of in ("message", "latency", "byte"):
                self._link_cost.labels(kind, of).set(getattr(cost, f"{of}_s"))

    def turns(self, times: StepTimes, micro_batches: int) -> None:
        """Bring the counters of computing, overlap and waiting up to ``times``."""
        self._micro_batches.set(micro_batches)
        for field, counter in self._turns.items():
            now = getattr(times, field)
            counter.inc((now - self._turned[field]) * 1e-9)
            self._turned[field] = now

    def gauges(self, stats: BatcherStats) -> None:
        """Refresh what is a state, not an event."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._kv.set(stats.kv_usage)
