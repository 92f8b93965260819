"""The large public ∞-gram indexes, by the API of infini-gram.io."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

_URL = "https://api.infini-gram.io/"
#: The API takes no longer query; far fewer tokens of a context are ever found.
_LONGEST = 500


class InfiniGramAPI:
    """∞-gram probabilities from a public index. Nothing is asked before the first call of `probabilities`.

    Requests and answers as https://infini-gram.io/api_doc describes them (`infgram_prob` with `query_ids`).

    Args:
        index: one of the API's names. Its ids are those of the tokenizer that its last word names: "llama" is
            Llama-2's, so questions and answers are tokenised for it apart from the model's.
        url: where the API is.
        timeout: seconds that one request may take.
        retries: how often a request is repeated that failed on the way or on the server.
        wait: seconds before the first repetition; before each further one it is twice as long.

    Attributes:
        source: what `InfiniGram` asks for.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        index: str = "v4_piletrain_llama",
        *,
        url: str = _URL,
        timeout: float = 30.0,
        retries: int = 4,
        wait: float = 0.5,
    ) -> None:
        if timeout <= 0 or retries < 0 or wait < 0:
            raise ValueError(f"timeout={timeout}, retries={retries}, wait={wait}: give positive numbers")
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"url={url!r}: give an address that begins with https:// or http://")
        self.index, self.url, self.timeout, self.retries, self.wait = index, url, timeout, retries, wait
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
            query = ids[max(0, end - _LONGEST) : end]
            answer = self._ask({"index": self.index, "query_type": "infgram_prob", "query_ids": query})
            try:
                found.append(float(answer["prob"]))
                lengths.append(int(answer["suffix_len"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.url} answered without 'prob' and 'suffix_len': {str(answer)[:200]}") from error
        return found, lengths

    def _ask(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The API's answer to one request."""
        request = urllib.request.Request(
            self.url, json.dumps(payload).encode(), {"Content-Type": "application/json", "User-Agent": "geomcallbacks"}
        )
        failed: Exception | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    text = response.read()
            except urllib.error.HTTPError as error:
                text = error.read()
                # Too many requests, or the server's own trouble: both pass. Anything else is a wrong query.
                if error.code == 429 or error.code >= 500:
                    failed = error
                    continue
            except OSError as error:
                failed = error
                continue
            return self._read(text)
        raise ConnectionError(
            f"{self.url} gave no answer in {self.retries + 1} attempts ({failed}): look at the network and the address,"
            " or build an index of your own with InfiniGramIndex.build"
        ) from failed

    def _read(self, text: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self.url} did not answer in JSON: {text[:200]!r}") from error
        if not isinstance(answer, dict) or "error" in answer:
            said = answer["error"] if isinstance(answer, dict) else answer
            raise ValueError(f"{self.url} refused the query to index {self.index!r}: {str(said)[:300]}")
        return answer
