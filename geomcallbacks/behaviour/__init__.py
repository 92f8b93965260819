"""What geometry is held against: loss, preference, and what a model writes.

Importing this imports no training framework; `geomcallbacks.behaviour.hf` holds the callback.
"""

from __future__ import annotations

from geomcallbacks.behaviour.completions import Completions
from geomcallbacks.behaviour.diversity import answer_entropy, distinct_answers, distinct_n, self_bleu
from geomcallbacks.behaviour.loss import CompletionLoss, completion_logprobs
from geomcallbacks.behaviour.monitor import BehaviourMonitor
from geomcallbacks.behaviour.passk import pass_at_k, pass_at_k_curve
from geomcallbacks.behaviour.preference import PreferenceScore, preference
from geomcallbacks.behaviour.rollouts import RolloutScore
from geomcallbacks.behaviour.sampling import Rollouts, sample

__all__ = [
    "BehaviourMonitor",
    "CompletionLoss",
    "Completions",
    "PreferenceScore",
    "RolloutScore",
    "Rollouts",
    "answer_entropy",
    "completion_logprobs",
    "distinct_answers",
    "distinct_n",
    "pass_at_k",
    "pass_at_k_curve",
    "preference",
    "sample",
    "self_bleu",
]
