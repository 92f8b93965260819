"""Each measure of the package, on small rows."""

from __future__ import annotations

import tiny
import torch

from geomcallbacks import behaviour

COUNTS = torch.arange(tiny.VOCABULARY)
SCORES = behaviour.NgramScores([[0.05 * (row + 1)] for row in range(11)], [[1]] * 11, "made by hand")


def rollouts(**changes):
    settings = {"answer": str.strip, "samples": 2, "max_new_tokens": 4, "ks": (1, 2)} | changes
    return behaviour.RolloutScore(["w1", "w2 w3"], lambda text, p: float(len(text)), tiny.tokenizer(), **settings)


KEYS = {
    "loss": "loss",
    "preference": "accuracy margin accuracy_per_token margin_per_token",
    "memorisation": "rho n low high",
    "primacy": "band_1 band_2",
    "accuracy": "accuracy low high",
    "intervention": "full full_low full_high remove_top_2 remove_top_2_low remove_top_2_high",
    "rollouts": "reward pass@1 pass@2 distinct_answers answer_entropy distinct_1 distinct_2 no_answer length",
}


def make(name, rows, probe, asked, **settings):
    """One of the measures above."""
    measures = {
        "loss": lambda: behaviour.CompletionLoss(rows, **settings),
        "preference": lambda: behaviour.PreferenceScore(rows, rows, **settings),
        "memorisation": lambda: behaviour.Memorisation(rows, SCORES, **settings),
        "primacy": lambda: behaviour.FrequencyLoss(probe, COUNTS, bands=2, **settings),
        "accuracy": lambda: behaviour.ChoiceAccuracy(asked, **settings),
        "intervention": lambda: behaviour.SpectralIntervention(probe, asked, ks=[2], kinds=["remove_top"], **settings),
        "rollouts": lambda: rollouts(**settings),
    }
    return measures[name]()
