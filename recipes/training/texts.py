"""What a post-training stage trains on, is tested on and is measured on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from text.corpus import Corpus, offline_corpus, open_dataset
from text.data import Row, describe_rows, problem_rows, read_rows, to_pairs, write_rows
from text.tokens import probe_rows
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from geomcallbacks import ProbeSet
from geomcallbacks.behaviour import CompletionLoss, Completions
from geomcallbacks.running.processes import first_before_others
from training.settings import StageSettings


class Texts:
    """Rows of the data sets that the settings name, else of the corpus, and the tests and probes made of them.

    Args:
        settings: Those of the recipe.
        folder: The stage's, where a corpus is kept that comes from no base.
        tokenizer: The model's.
    """

    def __init__(self, settings: StageSettings, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings, self.folder, self.tokenizer = settings, folder, tokenizer
        self.base = None if settings.base is None else Path(settings.base)

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus of the base, whose parts it was not trained on; without a base, the standard library."""
        if self.base is not None:
            return Corpus.load(self.base / "corpus")
        folder = self.folder / "corpus"
        with first_before_others():
            if not (folder / "manifest.json").is_file():
                offline_corpus(arithmetic_share=0.0).save(folder)
        return Corpus.load(folder)

    def train_rows(self, part: str) -> list[Row]:
        """Return rows to train on: of ``--dataset``, else cut from a part of the corpus, and worked problems."""
        s = self.settings
        if s.dataset is not None:
            return self._dataset_rows(s.dataset_split, s.train_rows)
        problems = problem_rows(s.worked_problems, (2, 3), held_out=False, seed=4)
        return write_rows(self.corpus.texts(part))[: s.train_rows] + problems

    def test_rows(self, limit: int | None = None) -> list[Row]:
        """Return rows of the in-distribution test, at most ``test_rows`` or ``limit``."""
        s, limit = self.settings, self.settings.test_rows if limit is None else limit
        if s.test_dataset is not None:
            return self.read_test(s.test_dataset, limit)
        if s.dataset is not None:
            return self._dataset_rows(s.test_split, limit)
        return write_rows(self.corpus.texts("id_test"))[:limit]

    def _dataset_rows(self, split: str, limit: int | None) -> list[Row]:
        s = self.settings
        return read_rows(str(s.dataset), limit, s.dataset_config, s.dataset_revision, split)

    def read_test(self, name: str, limit: int) -> list[Row]:
        """Read a data set that is for tests alone: local files have the split "train" alone."""
        return read_rows(name, limit, split="train" if Path(name).exists() else self.settings.test_split)

    def ood_rows(self) -> list[Row]:
        """Return instruction pairs out of distribution: another instruction, and text of another domain."""
        s = self.settings
        if s.ood_dataset is None:
            return describe_rows(self.corpus.texts("ood_test"))[: s.test_rows]
        return read_rows(s.ood_dataset, s.test_rows, s.ood_config, s.ood_revision, s.ood_split)

    def completions(self, pairs: Sequence[Row], key: str = "completion") -> Completions:
        """Turn pairs into the token rows of a test."""
        prompts, replies = [row["prompt"] for row in pairs], [row[key] for row in pairs]
        return Completions.from_texts(prompts, replies, self.tokenizer, max_length=self.settings.test_length)

    def losses(self, probe: ProbeSet) -> dict[str, CompletionLoss]:
        """Return the loss on instruction pairs in and out of distribution, and on the general text of a probe."""
        in_distribution = self.completions(to_pairs(self.test_rows()))
        out_of_it = self.completions(to_pairs(self.ood_rows()))
        rows = [row[:length].tolist() for row, length in zip(probe.input_ids_nt, probe.lengths_n, strict=True)]
        general = Completions([row[:1] for row in rows], [row[1:] for row in rows])
        named = {"id": in_distribution, "ood": out_of_it, "general": general}
        return {name: CompletionLoss(rows, batch_size=self.settings.test_batch) for name, rows in named.items()}

    def general_probe(self) -> ProbeSet:
        """Return held-out general text: of ``--probe_dataset``, the probe of the base, or text of the corpus."""
        s = self.settings
        if s.probe_dataset is not None:
            texts = open_dataset(s.probe_dataset, s.probe_config, streaming=not Path(s.probe_dataset).exists())
            size = dict(size=s.probe_rows, max_length=s.probe_length, text_column=s.probe_text_column)
            return ProbeSet.from_dataset(texts, self.tokenizer, **size)
        if self.base is not None:
            of_base = AutoTokenizer.from_pretrained(self.base / "tokenizer", trust_remote_code=False)
            if of_base.get_vocab() == self.tokenizer.get_vocab():
                return ProbeSet.load(self.base / "probe.safetensors")
        texts = self.corpus.texts("probe")
        return ProbeSet.from_token_ids(probe_rows(texts, self.tokenizer, s.probe_rows, s.probe_length))

    def completion_probe(self, rows: Completions) -> ProbeSet:
        """Return a probe of prompts and completions, without the EOS whose state every row would share."""
        eos, pairs = self.tokenizer.eos_token_id, zip(rows.prompt_ids, rows.completion_ids, strict=True)
        return self.probe_of([p + (c[:-1] if c[-1] == eos else c) for p, c in pairs])

    def probe_of(self, rows: Sequence[Sequence[int]]) -> ProbeSet:
        """Return a probe of those token rows that are long enough for the positions that are read."""
        positions = self.settings.read_positions()
        shortest = positions + 1 if isinstance(positions, int) else 2
        kept = [list(row)[: self.settings.test_length] for row in rows if len(row) >= shortest]
        return ProbeSet.from_token_ids(kept[: self.settings.probe_rows])
