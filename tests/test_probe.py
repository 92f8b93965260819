"""A probe is the same rows whatever the padding, drawn by its own seed, and tells when it was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import tiny
import torch
from datasets import Dataset, IterableDataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from geomcallbacks import ProbeSet

THREE = [[5, 6, 7], [8, 9, 10, 11, 12], [3, 4]]


def rows_of(probe: ProbeSet) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(probe.input_ids_nt, probe.lengths_n.tolist(), strict=True)]


def built(texts: object, tokenizer: object = None, **changes: object) -> ProbeSet:
    settings = {"size": 10, "max_length": 20, "min_length": 8} | changes
    return ProbeSet.from_texts(texts, tokenizer or tiny.tokenizer(), **settings)


# --- from token ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, -100, 2], ids=lambda padding: f"padding={padding}")
@pytest.mark.parametrize("before", [[0, 0, 0], [2, 0, 3], [1, 0, 1]], ids=["right", "left", "centre"])
def test_either_padding_gives_the_same_rows(padding: int, before: list[int]) -> None:
    probe = ProbeSet.from_token_ids(THREE)
    assert rows_of(probe) == THREE
    rows = [[padding] * n + row + [padding] * (7 - n - len(row)) for n, row in zip(before, THREE, strict=True)]
    ids_nt = torch.tensor(rows)
    for mask_nt in ((ids_nt != padding).long(), ids_nt != padding):
        other = ProbeSet.from_token_ids(ids_nt.int(), mask_nt)
        assert torch.equal(other.input_ids_nt, probe.input_ids_nt)
        assert other.fingerprint == probe.fingerprint


def test_padding_token_inside_a_row_is_a_token() -> None:
    ids_nt = torch.tensor([[0, 5, 0, 0], [4, 0, 6, 7]])
    masked = ProbeSet.from_token_ids(ids_nt, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    assert rows_of(masked) == [[0, 5, 0], [4, 0, 6, 7]]
    assert rows_of(ProbeSet.from_token_ids(ids_nt)) == ids_nt.tolist()


def test_fingerprint_tells_probes_apart() -> None:
    base = [[5, 6, 7], [8, 9]]
    others = [[[8, 9], [5, 6, 7]], [[5, 6, 7], [8, 9, 0]], [[5, 6, 7, 0], [8, 9]], [[5, 6, 7]], [[5, 6, 8], [8, 9]]]
    prints = {ProbeSet.from_token_ids(rows).fingerprint for rows in [base, *others]}
    assert len(prints) == 6
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in prints)


def test_building_does_not_keep_the_callers_tensor() -> None:
    ids_nt = torch.randint(3, 100, (4, 6))
    before = ids_nt.tolist()
    probe = ProbeSet.from_token_ids(ids_nt)
    ids_nt.zero_()
    assert rows_of(probe) == before


# --- from texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [False, True], ids=["no eos", "eos added"])
def test_texts_keep_bos_and_lose_eos(eos: bool) -> None:
    texts = {
        "w0 w1 w2 w3": [1, 4, 5, 6, 7],
        "w4 w5 w6 w7 w8 w9 w10 w11": [1, 8, 9, 10, 11, 12],  # full, whether or not an EOS was put behind the cut text
        "w13 w14 w15 </s>": [1, 17, 18, 19],
        "w0 w1 w2 </s> </s>": [1, 4, 5, 6],
        "w3 w4 w5 w6 </s> w7 w8": [1, 7, 8, 9, 10],
    }
    probe = built(iter(texts), tiny.tokenizer(eos), size=5, max_length=6, min_length=2)
    assert rows_of(probe) == list(texts.values())


def test_short_texts_are_dropped_and_counted() -> None:
    texts = ["w1 w2", "w1 w2 w3 w4", "w5", "w1 w2 w3 w4 w5", "w6"]
    probe = built(iter(texts), size=2, max_length=8, min_length=5)
    assert (probe.dropped, probe.lengths_n.tolist()) == (2, [5, 6])
    texts = [" ".join(["w1"] * words) for words in (30, 31, 32, 8)]
    probe = ProbeSet.from_texts(
        iter(texts), tiny.tokenizer(), size=2, max_length=64
    )  # the default minimum is 32 tokens
    assert (probe.dropped, probe.lengths_n.tolist()) == (1, [32, 33])


def test_a_text_is_cut_behind_whatever_the_tokenizer_cuts() -> None:
    """Trainers on preferences and rollouts have it cut prompts in front; the probe's rows must not depend on that."""
    expected, tokenizer = built(tiny.texts(), max_length=12, min_length=4), tiny.tokenizer()
    tokenizer.truncation_side = "left"
    probe = ProbeSet.from_texts(tiny.texts(), tokenizer, size=len(expected), max_length=12, min_length=4)
    assert rows_of(probe) == rows_of(expected)
    assert tokenizer.truncation_side == "left"


def test_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    tokenizer(["w1 w2 w3 w4", "w5"], truncation=True, max_length=3, padding="max_length")  # sets both on the backend
    before = tokenizer.backend_tokenizer.to_str()
    assert json.loads(before)["truncation"]["max_length"] == 3
    built(tiny.texts(30), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.padding_side == "left"


def test_seed_alone_decides_the_rows_and_no_global_random_state_moves() -> None:
    texts, prints = tiny.texts(60), {}
    for noise in (3, 4):
        torch.manual_seed(noise)
        before = tiny.random_states()
        prints[noise] = [built(texts, seed=seed).fingerprint for seed in (0, 1)]
        ProbeSet.split(Dataset.from_dict({"text": texts}), tiny.tokenizer(), size=5, max_length=40)
        built(texts).batches(4)
        assert tiny.random_states() == before
    assert prints[3] == prints[4]
    assert prints[3][0] != prints[3][1]


@pytest.mark.parametrize(("kind", "most"), [("texts", 7), ("data set", 9)])  # data sets look one row ahead
def test_stream_is_read_in_order_and_no_further_than_needed(kind: str, most: int) -> None:
    read = []

    def stream() -> Iterator[dict[str, str]]:
        for text in tiny.texts(50):
            read.append(text)
            yield {"body": text}

    settings = dict(size=7, max_length=20, min_length=8, seed=5)
    if kind == "texts":
        probe = ProbeSet.from_texts((row["body"] for row in stream()), tiny.tokenizer(), **settings)
    else:
        streamed = IterableDataset.from_generator(stream)
        read.clear()
        probe = ProbeSet.from_dataset(streamed, tiny.tokenizer(), text_column="body", **settings)
    assert rows_of(probe) == rows_of(built(iter(tiny.texts(7)), size=7))
    assert 7 <= len(read) <= most


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_split_has_no_overlap_even_for_duplicates(kind: str) -> None:
    distinct = tiny.texts(30)
    texts = distinct + distinct[::-1] + distinct[:10]
    tokenizer, settings = tiny.tokenizer(), dict(size=8, max_length=64)
    data = texts if kind == "list" else Dataset.from_dict({"text": texts})
    train, probe = ProbeSet.split(data, tokenizer, **settings)
    left = train if kind == "list" else list(train["text"])
    assert isinstance(train, type(data))
    held_out = {tuple(row) for row in rows_of(probe)}
    trained = {tuple(row) for row in rows_of(built(iter(left), size=len(left), max_length=64))}
    assert not held_out & trained
    assert len(held_out) + len(trained) == 30
    assert left == [text for text in texts if text in set(left)]  # in their own order, duplicates of others kept
    assert probe.fingerprint == ProbeSet.from_texts(texts, tokenizer, **settings).fingerprint
    if kind == "dataset":
        assert probe.fingerprint == ProbeSet.from_dataset(data, tokenizer, **settings).fingerprint


# --- files and batches --------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path) -> None:
    probe = built(iter(["w1", *tiny.texts(20)]))
    probe.save(tmp_path / "probe.safetensors")
    loaded = ProbeSet.load(tmp_path / "probe.safetensors")
    assert rows_of(loaded) == rows_of(probe)
    assert (loaded.fingerprint, loaded.dropped) == (probe.fingerprint, 1)
    assert repr(loaded) == repr(probe)


@pytest.mark.parametrize("part", ["input_ids", "lengths"])
def test_changed_file_is_refused(tmp_path, part: str) -> None:
    path = tmp_path / "probe.safetensors"
    probe = tiny.probe(6)
    probe.save(path)
    tensors = load_file(path)
    tensors[part].view(-1)[0] = 4 if part == "lengths" else 119 - tensors[part].view(-1)[0]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=rf"probe.safetensors was changed.* was {probe.fingerprint} when saved.*again"):
        ProbeSet.load(path)


def test_a_folder_is_no_probe(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is a folder: give the file in it that ProbeSet\.save wrote"):
        ProbeSet.load(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 5, 64, 100])
def test_batches_hold_each_row_once_longest_first(batch_size: int) -> None:
    probe = tiny.probe(64)
    batches = probe.batches(batch_size)
    assert [len(batch.rows_b) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sorted(torch.cat([batch.rows_b for batch in batches]).tolist()) == list(range(64))
    assert (torch.cat([batch.lengths_b for batch in batches]).diff() <= 0).all()
    for batch in batches:
        assert batch.input_ids_bt.shape[1] == batch.lengths_b.max()
        assert torch.equal(batch.mask_bt.sum(1), batch.lengths_b)
        for row, ids, mask in zip(batch.rows_b.tolist(), batch.input_ids_bt, batch.mask_bt, strict=True):
            assert ids[mask.bool()].tolist() == rows_of(probe)[row]


def test_length_bucketed_batches_carry_little_padding() -> None:
    """Rows of 8 to 20 tokens, 1,024 of them: padded each to the longest they would be a third padding."""
    probe = tiny.probe(1024)
    padded = sum(batch.input_ids_bt.numel() for batch in probe.batches(32))
    assert padded < 1.05 * int(probe.lengths_n.sum()) < 0.75 * probe.input_ids_nt.numel()


# --- refusals -----------------------------------------------------------------------------------------------------

ONE_ROW = torch.tensor([[5, 6, 7, 8]])
NO_ROWS = torch.zeros(0, 5, dtype=torch.long)
THREE_ROWS = ONE_ROW.expand(3, 4)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([], None, r"the probe is empty: give at least one row"),
        (NO_ROWS, None, r"the probe is empty: give at least one row"),
        ([[5, 6], [7]], None, r"row 1 has 1 token\(s\): drop it"),
        (ONE_ROW, torch.tensor([[0, 0, 0, 1]]), r"row 0 has 1 token\(s\)"),
        ([[5, -1]], None, r"token id -1 is negative: mark padding in mask_nt"),
        (THREE_ROWS, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]), r"mask_nt has a hole in row 1: real"),
        (ONE_ROW, torch.tensor([[1, 0, 0, 1]]), r"mask_nt has a hole in row 0"),
        (ONE_ROW, torch.ones(1, 5), r"mask_nt has shape \(1, 5\), ids_nt \(1, 4\)"),
        ([[5, 6]], torch.ones(1, 2), r"mask_nt goes with a tensor of ids"),
        (torch.rand(3, 4), None, r"ids_nt of shape \(3, 4\) is torch.float32: give.*integers"),
        (torch.tensor([5, 6]), None, r"ids_nt of shape \(2,\).*give.*\(n, t\)"),
    ],
)
def test_token_ids_that_make_no_probe(ids, mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_token_ids(ids, mask)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        ([], {}, r"the probe is empty: there are no texts"),
        ([*tiny.texts(9), "w1"], {}, r"size=10, but only 9 of 10 texts have min_length=8 tokens: give more texts"),
        (tiny.texts(9), {"size": 0}, r"size=0 makes no probe: give a whole number of at least 1"),
        (tiny.texts(9), {"min_length": 30}, r"max_length=20 makes no probe: give a whole number of at least 30"),
        (tiny.texts(9), {"min_length": 1}, r"min_length=1 makes no probe: give a whole number of at least 2"),
        (tiny.texts(9), {"max_length": 2**70}, r"max_length=\d+ makes no probe"),
        (["w1 \ud800 w2"], {}, r"text 0 is no Unicode"),
        ([*tiny.texts(2), 5], {"seed": 1}, r"text 2 is a int, not a string: clean the texts"),
        ("w1 w2", {}, r"texts is one str: give a list of texts"),
    ],
)
def test_texts_that_make_no_probe(texts, changes, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        built(texts, **changes)


def test_data_sets_that_make_no_probe() -> None:
    with pytest.raises(ValueError, match=r"text_column='text' is not in the data set: it has body, id"):
        ProbeSet.from_dataset(Dataset.from_dict({"body": ["w1"], "id": [1]}), tiny.tokenizer(), size=1, max_length=8)
    streamed = Dataset.from_dict({"text": ["w1"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"a stream cannot be split: take the probe from its head"):
        ProbeSet.split(streamed, tiny.tokenizer(), size=1, max_length=8)
