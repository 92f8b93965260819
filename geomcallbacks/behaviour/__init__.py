"""What geometry is held against: loss, preference, and what a model writes.

Importing this imports no training framework; `geomcallbacks.behaviour.hf` holds the callback.
"""

from __future__ import annotations

from geomcallbacks.behaviour.choices import Choices
from geomcallbacks.behaviour.completions import Completions
from geomcallbacks.behaviour.continuations import continuations, trivia_rows
from geomcallbacks.behaviour.diversity import answer_entropy, distinct_answers, distinct_n, self_bleu
from geomcallbacks.behaviour.infinigram.api import InfiniGramAPI
from geomcallbacks.behaviour.infinigram.index import InfiniGramIndex
from geomcallbacks.behaviour.intervention import SpectralIntervention
from geomcallbacks.behaviour.loss import CompletionLoss, completion_logprobs
from geomcallbacks.behaviour.memorisation import Memorisation, NgramScores, ngram_scores
from geomcallbacks.behaviour.monitor import BehaviourMonitor
from geomcallbacks.behaviour.option_scores import ChoiceAccuracy
from geomcallbacks.behaviour.passk import pass_at_k, pass_at_k_curve
from geomcallbacks.behaviour.preference import PreferenceScore, preference
from geomcallbacks.behaviour.primacy import (
    FrequencyLoss,
    first_below,
    learned_at,
    load_counts,
    save_counts,
    token_counts,
)
from geomcallbacks.behaviour.rollouts import RolloutScore
from geomcallbacks.behaviour.sampling import Rollouts, sample

__all__ = [
    "BehaviourMonitor",
    "ChoiceAccuracy",
    "Choices",
    "CompletionLoss",
    "Completions",
    "FrequencyLoss",
    "InfiniGramAPI",
    "InfiniGramIndex",
    "Memorisation",
    "NgramScores",
    "PreferenceScore",
    "RolloutScore",
    "Rollouts",
    "SpectralIntervention",
    "answer_entropy",
    "completion_logprobs",
    "continuations",
    "distinct_answers",
    "distinct_n",
    "first_below",
    "learned_at",
    "load_counts",
    "ngram_scores",
    "pass_at_k",
    "pass_at_k_curve",
    "preference",
    "sample",
    "save_counts",
    "self_bleu",
    "token_counts",
    "trivia_rows",
]
