"""What the paper reports: arXiv 2512.13525, version 3. Read off its text, tables and plots; nothing here is ours."""

from __future__ import annotations

#: Figure 17: a_max of DeepSeek-V2 with 27 slots per instance, by (expert instances, batch).
SLOTS = 27
A_MAX = {
    (6, 16): 8.46,
    (6, 64): 15.66,
    (6, 256): 19.98,
    (6, 512): 20.47,
    (12, 16): 5.84,
    (12, 64): 10.82,
    (16, 256): 10.78,
    (16, 512): 10.95,
}
#: The column that routing is fitted to; everything else is predicted.
FITTED_COLUMN = 6

#: Figure 9 and 16, DeepSeek-V2, loosest objective: batch -> (attention, expert instances, output tokens/s per GPU).
CHOICES = {64: (1, 6, 99.0), 256: (2, 6, 240.0), 512: (4, 6, 340.0)}
#: Figure 9, the tightest objective at a batch of 256.
TIGHTEST = {256: (5, 10, 170.0)}

#: Figure 8: most tokens/s per GPU over each baseline's, at the same TPOT objective.
GAIN = {"monolithic": 4.7, "megascale-infer": 2.2, "xdeepserve": 3.3}
TPOT_SLO_S = (0.200, 0.150)
BATCHES = (64, 256, 512)

#: Figure 10: Scaled-DS-2 on 16 expert instances, TPOT against MegaScale-Infer: least and most.
TPOT_CHANGE = (-0.41, -0.50)

#: Figure 11: GPU-hours of a day against SGLang and MegaScale-Infer; least and most GPUs of Janus; decision interval.
GPU_HOURS_CHANGE = {"monolithic": -0.39, "megascale-infer": -0.16}
GPUS = (7, 56)
INTERVAL_S = 900.0
#: Section 2: the peak of the traffic over its weekly mean.
PEAK_OVER_MEAN = 7.5

#: Figure 12: TPOT of 1PC + EGate by batch, and its throughput over that of the whole system; 2PC + EGate over
#: 2PC + AGate, least and most; what AEBS adds to throughput, least and most.
ONE_PHASE_EGATE_TPOT_S = {256: 0.185, 512: 0.350}
ONE_PHASE_EGATE_THROUGHPUT = {256: 0.44, 512: 0.30}
EGATE_OVER_AGATE = (1.04, 1.34)
AEBS_ADDS = (1.11, 1.15)

#: Figure 13: instances for which AEBS's a_max is below EPLB's at every batch.
BELOW_EPLB = (8, 12, 16)

#: Figure 15, H100: AEBS takes less than so many microseconds, by batch.
AEBS_US = {64: 20.0, 4096: 90.0}

#: Section 2: parameters' gigabytes in bfloat16, (experts, all).
EXPERT_GB = {
    "qwen3-235b-a22b": (423.0, 438.0),
    "deepseek-v2": (421.0, 472.0),
    "deepseek-v3": (1258.0, 1342.0),
    "grok-1": (586.0, 628.0),
}
#: Section 2: tokens from which on DeepSeek-V3's experts are bound by arithmetic.
RIDGE = {"H100": 18_000.0, "A100": 5_000.0}
#: Section 2: attention's time is flat up to about this batch; experts' time rises with small batches, then is flat.
ATTENTION_FLAT_TO = 256

#: Section 5: mean tokens of prompt and answer.
PROMPT, ANSWER = 16, 256
