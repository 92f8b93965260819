"""The ∞-gram model of a text: an index of one's own tokens, or a public one by its API."""

from geomcallbacks.behaviour.infinigram.api import InfiniGramAPI
from geomcallbacks.behaviour.infinigram.index import InfiniGram, InfiniGramIndex

__all__ = ["InfiniGram", "InfiniGramAPI", "InfiniGramIndex"]
