"""The large public ∞-gram indexes, by the API of infini-gram.io."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

#: The API takes no longer query; far fewer tokens of a context are ever found.
_LONGEST = 500
#: Seconds that one request may take, and before it is repeated where it failed on the way or on the server.
_TIMEOUT, _WAITS = 30.0, (0.5, 1.0, 2.0, 4.0)


class InfiniGramAPI:
    """∞-gram probabilities from a public index. Nothing is asked before the first call of `probabilities`.

    Requests and answers as https://infini-gram.io/api_doc describes them (`infgram_prob` with `query_ids`).

    Args:
        index: one of the API's names. Its ids are those of the tokenizer that its last word names: "llama" is
            Llama-2's, so questions and answers are tokenised for it apart from the model's.
        url: where the API is.

    Attributes:
        source: what `InfiniGram` asks for.

    Raises:
        ValueError: the address is none of HTTP.
    """

    def __init__(self, index: str = "v4_piletrain_llama", *, url: str = "https://api.infini-gram.io/") -> None:
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"url={url!r}: give an address that begins with https:// or http://")
        self.index, self.url = index, url
        self.source = f"{index} at {url}"

    def probabilities(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> tuple[list[float], list[int]]:
        """As `InfiniGramIndex.probabilities`; one request for each token of the answer.

        Raises:
            ConnectionError: no answer came, however often it was asked.
            ValueError: the API refuses the query, or answers in another way than it is documented to.
        """
        ids = [int(token) for token in (*prompt_ids, *answer_ids)]
        found: list[float] = []
        lengths: list[int] = []
        for end in range(len(ids) - len(answer_ids) + 1, len(ids) + 1):
            answer = self._read(self._ask(ids[max(0, end - _LONGEST) : end]))
            try:
                found.append(float(answer["prob"]))
                lengths.append(int(answer["suffix_len"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.url} answered without 'prob' and 'suffix_len': {str(answer)[:200]}") from error
        return found, lengths

    def _ask(self, query_ids: list[int]) -> bytes:
        """The body of the answer to one query, asked again where a request failed."""
        payload = {"index": self.index, "query_type": "infgram_prob", "query_ids": query_ids}
        headers = {"Content-Type": "application/json", "User-Agent": "geomcallbacks"}
        request = urllib.request.Request(self.url, json.dumps(payload).encode(), headers)
        failed: Exception | None = None
        for wait in (0.0, *_WAITS):
            time.sleep(wait)
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                # Too many requests, or the server's own trouble: both pass. Anything else is a wrong query.
                if error.code != 429 and error.code < 500:
                    return error.read()
                failed = error
            except OSError as error:
                failed = error
        remedy = "look at the network and the address, or build an index of your own with InfiniGramIndex.build"
        raise ConnectionError(f"{self.url} failed in {len(_WAITS) + 1} attempts ({failed}): {remedy}") from failed

    def _read(self, body: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise ValueError(f"{self.url} did not answer in JSON: {body[:200]!r}") from error
        if not isinstance(answer, dict) or "error" in answer:
            raise ValueError(f"{self.url} refused the query to index {self.index!r}: {str(answer)[:300]}")
        return answer
