"""What geometry is held against: loss, preference, and what a model writes.

Importing this imports no training framework; `geomcallbacks.behaviour.hf` holds the callback.
"""

from __future__ import annotations

from geomcallbacks.behaviour.infinigram.api import InfiniGramAPI
from geomcallbacks.behaviour.infinigram.index import InfiniGramIndex
from geomcallbacks.behaviour.infinigram.scores import NgramScores, ngram_scores
from geomcallbacks.behaviour.measures.accuracy import ChoiceAccuracy
from geomcallbacks.behaviour.measures.intervention import SpectralIntervention
from geomcallbacks.behaviour.measures.loss import CompletionLoss, completion_logprobs
from geomcallbacks.behaviour.measures.memorisation import Memorisation
from geomcallbacks.behaviour.measures.preference import PreferenceScore, preference
from geomcallbacks.behaviour.measures.primacy import FrequencyLoss, first_below, learned_at
from geomcallbacks.behaviour.measures.rollouts import RolloutScore
from geomcallbacks.behaviour.monitor import BehaviourMonitor
from geomcallbacks.behaviour.rows.choices import Choices
from geomcallbacks.behaviour.rows.completions import Completions, continuations
from geomcallbacks.behaviour.rows.counts import load_counts, save_counts, token_counts
from geomcallbacks.behaviour.sampling.diversity import answer_entropy, distinct_answers, distinct_n, self_bleu
from geomcallbacks.behaviour.sampling.draw import Rollouts, sample
from geomcallbacks.behaviour.sampling.passk import pass_at_k, pass_at_k_curve

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
]
