"""What is said of rows that give too low a rank by themselves: most end alike, or repeat others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset

from geomcallbacks import GeometryMonitor, ProbeSet

SETTINGS = {"max_length": 20, "min_length": 8}


def told(build: Any) -> list[str]:
    """The warnings of a call, which must point at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    assert {Path(warning.filename).name for warning in caught} <= {Path(__file__).name}
    return [str(warning.message) for warning in caught]


def ending_alike(share: float, rows: int = 100) -> torch.Tensor:
    """Random rows (n, 20) of which so many end in token 5, and the others each in another token."""
    ids_nt, _ = tiny.rows(rows, 20)
    ids_nt[:, -1] = torch.arange(rows) % 100 + 10
    ids_nt[: round(share * rows), -1] = 5
    return ids_nt.clamp_min(3)


@pytest.mark.parametrize(
    ("share", "rows", "warned"), [(1, 100, 1), (0.51, 100, 1), (0.5, 100, 0), (1, 8, 1), (1, 7, 0)]
)
def test_rows_of_ids_that_end_alike_are_told(share: float, rows: int, warned: int) -> None:
    ids_nt = ending_alike(share, rows)
    for given in (ids_nt, ids_nt.tolist()):
        messages = told(lambda given=given: ProbeSet.from_token_ids(given))
        assert len(messages) == warned
        assert all(f"{round(share * rows)} of the probe's {rows} different rows end in token 5:" in m for m in messages)
        assert all("Cut that token off the rows" in m for m in messages)


def test_the_last_token_is_that_of_the_row_and_not_of_the_padding() -> None:
    ids_nt, mask_nt = tiny.rows(100, 20)
    assert told(lambda: ProbeSet.from_token_ids(ids_nt, mask_nt)) == []
    last_n1 = mask_nt.sum(1, keepdim=True) - 1
    assert "token 0: " in (padding := told(lambda: ProbeSet.from_token_ids(ids_nt))[0])
    assert "padding is marked in mask_nt" in padding
    alike_nt = ids_nt.scatter(1, last_n1, 7)
    assert "rows end in token 7:" in told(lambda: ProbeSet.from_token_ids(alike_nt, mask_nt))[0]


def test_the_rank_of_such_rows_is_too_low() -> None:
    """Of the same model and the same rows but for their last token: what the warning is for."""
    model, ranks = tiny.model("llama"), []
    for share in (0, 1):
        probe = ProbeSet.from_token_ids(ending_alike(share, 100))
        ranks.append(GeometryMonitor(probe, alpha_window=tiny.WINDOW).measure(model, 0)[0].metrics["rankme"])
    assert ranks[1] < 0.8 * ranks[0]


@pytest.mark.parametrize("kind", ["from_texts", "from_dataset", "split"])
def test_texts_that_end_alike_are_told_with_the_token_as_text(kind: str) -> None:
    texts = [f"{text} w9" for text in tiny.texts(40, words=15)]
    data = texts if kind == "from_texts" else Dataset.from_dict({"text": texts})
    build = getattr(ProbeSet, kind)
    messages = told(lambda: build(data, tiny.tokenizer(), size=30, **SETTINGS))
    assert len(messages) == 1
    assert "30 of the probe's 30 different rows end in token 13 ('w9')" in messages[0]
    assert told(lambda: build(data, tiny.tokenizer(), size=30, **SETTINGS | {"max_length": 12})) == []  # cut before it


def test_repeated_texts_are_told_and_counted() -> None:
    texts = tiny.texts(40)
    repeated = [texts[i % 30] for i in range(40)]
    messages = told(lambda: ProbeSet.from_texts(repeated, tiny.tokenizer(), size=40, **SETTINGS))
    assert messages == [
        "10 of the probe's 40 rows repeat another, which lowers RankMe: leave out repeated texts, with "
        "list(dict.fromkeys(texts)) say"
    ]
    probe = ProbeSet.from_texts(repeated, tiny.tokenizer(), size=40, **SETTINGS)
    assert (probe.distinct, len(probe)) == (30, 40)
    assert "40 rows of 20..20 tokens, 30 different, fingerprint=" in repr(probe)
    assert told(lambda: ProbeSet.from_texts(texts, tiny.tokenizer(), size=40, **SETTINGS)) == []
    begin_alike = [f"{texts[0]} {text}" for text in texts]  # and are cut where they still are
    assert (
        "39 of the probe's 40 rows"
        in told(lambda: ProbeSet.from_texts(begin_alike, tiny.tokenizer(), size=40, **SETTINGS))[0]
    )


def test_one_repeated_page_is_said_to_repeat_and_not_to_end_alike() -> None:
    page, texts = "w1 " * 20, tiny.texts(40)
    messages = told(lambda: ProbeSet.from_texts([page] * 60 + texts, tiny.tokenizer(), size=100, **SETTINGS))
    assert [message.split(", which")[0] for message in messages] == ["59 of the probe's 100 rows repeat another"]


def test_a_row_repeats_only_with_its_length() -> None:
    assert ProbeSet.from_token_ids([[5, 6, 0], [5, 6], [5, 6, 0]]).distinct == 2


def test_one_repeated_row_of_many_is_not_worth_a_word() -> None:
    ids_nt = ending_alike(0, 201)
    ids_nt[1] = ids_nt[0]
    assert told(lambda: ProbeSet.from_token_ids(ids_nt)) == []
    assert ProbeSet.from_token_ids(ids_nt).distinct == 200


def test_a_saved_probe_is_told_of_once(tmp_path: Path) -> None:
    probe = ProbeSet.from_token_ids(ending_alike(1))
    probe.save(tmp_path / "p.safetensors")
    assert told(lambda: ProbeSet.load(tmp_path / "p.safetensors")) == []
