"""A probe is the same rows whatever the padding, drawn by its own seed, and tells when it was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import tiny
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from geomcallbacks import ProbeSet
from geomcallbacks.probe import deal


def rows_of(probe: ProbeSet) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(probe.input_ids_nt, probe.lengths_n.tolist(), strict=True)]


def built(texts: object, tokenizer: object = None, **changes: object) -> ProbeSet:
    settings = {"size": 10, "max_length": 20, "min_length": 8} | changes
    return ProbeSet.from_texts(texts, tokenizer or tiny.tokenizer(), **settings)


@pytest.mark.parametrize("padding", [0, -100, 2], ids=lambda padding: f"padding={padding}")
def test_either_padding_gives_the_same_rows(padding: int) -> None:
    right_nt = torch.tensor([[5, 6, 7, padding, padding], [8, 9, 10, 11, 12], [3, 4, padding, padding, padding]])
    left_nt = torch.tensor([[padding, padding, 5, 6, 7], [8, 9, 10, 11, 12], [padding, padding, padding, 3, 4]])
    centre_nt = torch.tensor([[padding, 5, 6, 7, padding], [8, 9, 10, 11, 12], [padding, 3, 4, padding, padding]])
    probes = [ProbeSet.from_token_ids([[5, 6, 7], [8, 9, 10, 11, 12], [3, 4]])]
    for ids_nt in (right_nt, left_nt, centre_nt):
        mask_nt = (ids_nt != padding).long()
        probes += [ProbeSet.from_token_ids(ids_nt, mask_nt), ProbeSet.from_token_ids(ids_nt.int(), mask_nt.bool())]
        wider_nt = torch.nn.functional.pad(ids_nt, (1, 4), value=padding)
        probes.append(ProbeSet.from_token_ids(wider_nt, wider_nt != padding))
    for probe in probes:
        assert rows_of(probe) == [[5, 6, 7], [8, 9, 10, 11, 12], [3, 4]]
        assert probe.fingerprint == probes[0].fingerprint
        assert torch.equal(probe.input_ids_nt, probes[0].input_ids_nt)


def test_padding_token_inside_a_row_is_a_token() -> None:
    ids_nt = torch.tensor([[0, 5, 0, 0], [4, 0, 6, 7]])
    assert rows_of(ProbeSet.from_token_ids(ids_nt, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))) == [
        [0, 5, 0],
        [4, 0, 6, 7],
    ]
    assert rows_of(ProbeSet.from_token_ids(ids_nt)) == [[0, 5, 0, 0], [4, 0, 6, 7]]


def test_fingerprint_tells_probes_apart() -> None:
    base = [[5, 6, 7], [8, 9]]
    others = [[[8, 9], [5, 6, 7]], [[5, 6, 7], [8, 9, 0]], [[5, 6, 7, 0], [8, 9]], [[5, 6, 7]], [[5, 6, 8], [8, 9]]]
    prints = {ProbeSet.from_token_ids(rows).fingerprint for rows in [base, *others]}
    assert len(prints) == 6
    assert ProbeSet.from_token_ids(base).fingerprint in prints
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in prints)


def test_building_does_not_keep_the_callers_tensor() -> None:
    ids_nt = torch.randint(3, 100, (4, 6))
    probe = ProbeSet.from_token_ids(ids_nt)
    before = rows_of(probe)
    ids_nt.zero_()
    assert rows_of(probe) == before


@pytest.mark.parametrize("eos", [False, True], ids=["no eos", "eos added"])
def test_texts_keep_bos_and_lose_eos(eos: bool) -> None:
    texts = ["w0 w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10 w11 w12", "w13 w14 w15 </s>", "w16 w17 w18 w19 w20"]
    probe = built(iter(texts), tiny.tokenizer(eos), size=4, max_length=6, min_length=2)
    assert rows_of(probe) == [
        [1, 4, 5, 6, 7],
        [1, 8, 9, 10, 11, 12],  # as full as asked for, whether or not an EOS was put behind the cut text
        [1, 17, 18, 19],
        [1, 20, 21, 22, 23, 24],
    ]


@pytest.mark.parametrize("eos", [False, True], ids=["no eos", "eos added"])
def test_no_row_ends_in_eos(eos: bool) -> None:
    texts = ["w0 w1 w2 </s> </s>", "w3 w4 w5 w6 </s> w7 w8"]
    probe = built(iter(texts), tiny.tokenizer(eos), size=2, max_length=6, min_length=2)
    assert rows_of(probe) == [[1, 4, 5, 6], [1, 7, 8, 9, 10]]


def test_short_texts_are_dropped_and_counted() -> None:
    texts = ["w1 w2", "w1 w2 w3 w4", "w5", "w1 w2 w3 w4 w5", "w6"]
    probe = built(iter(texts), size=2, max_length=8, min_length=5)
    assert (probe.dropped, len(probe)) == (2, 2)
    assert probe.lengths_n.tolist() == [5, 6]
    assert built(iter(["w1 w2 w3"] * 3), size=3, max_length=8, min_length=4).dropped == 0


def test_default_minimum_is_32_tokens() -> None:
    texts = [" ".join(["w1"] * words) for words in (30, 31, 32, 8)]
    probe = ProbeSet.from_texts(iter(texts), tiny.tokenizer(), size=2, max_length=64)
    assert (probe.lengths_n.tolist(), probe.dropped) == ([32, 33], 1)


def test_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    tokenizer(["w1 w2 w3 w4", "w5"], truncation=True, max_length=3, padding="max_length")  # sets both on the backend
    before = tokenizer.backend_tokenizer.to_str()
    assert json.loads(before)["truncation"]["max_length"] == 3
    assert json.loads(before)["padding"] is not None
    built(tiny.texts(30), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.padding_side == "left"


def test_seed_alone_decides_the_rows() -> None:
    texts = tiny.texts(60)
    fingerprints = {}
    for seed in (0, 1):
        for noise in (3, 4):
            torch.manual_seed(noise)
            fingerprints[seed, noise] = built(texts, seed=seed).fingerprint
    assert fingerprints[0, 3] == fingerprints[0, 4] == built(texts).fingerprint
    assert fingerprints[1, 3] == fingerprints[1, 4]
    assert fingerprints[0, 3] != fingerprints[1, 3]


def test_no_global_random_state_moves() -> None:
    texts = tiny.texts(60)
    before = tiny.random_states()
    probe = built(texts)
    ProbeSet.split(Dataset.from_dict({"text": texts}), tiny.tokenizer(), size=5, max_length=40)
    probe.batches(4)
    assert tiny.random_states() == before


def test_stream_is_read_in_order_and_no_further_than_needed() -> None:
    read = []

    def stream() -> Iterator[str]:
        for text in tiny.texts(50):
            read.append(text)
            yield text

    probe = built(stream(), size=7, seed=5)
    assert len(read) == 7
    assert rows_of(probe) == rows_of(built(iter(tiny.texts(7)), size=7))


def test_streamed_dataset_is_read_no_further_than_needed() -> None:
    read = []

    def rows() -> Iterator[dict[str, str]]:
        for text in tiny.texts(50):
            read.append(text)
            yield {"body": text}

    from datasets import IterableDataset

    stream = IterableDataset.from_generator(rows)
    read.clear()
    probe = ProbeSet.from_dataset(stream, tiny.tokenizer(), text_column="body", size=7, max_length=20, min_length=8)
    assert rows_of(probe) == rows_of(built(iter(tiny.texts(7)), size=7))
    assert len(read) <= 9  # data sets look one row ahead


def test_dataset_gives_what_its_texts_give() -> None:
    texts = tiny.texts(40)
    dataset = Dataset.from_dict({"text": texts, "id": list(range(40))})
    probe = ProbeSet.from_dataset(dataset, tiny.tokenizer(), size=10, max_length=20, min_length=8)
    assert probe.fingerprint == built(texts).fingerprint


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_split_has_no_overlap_even_for_duplicates(kind: str) -> None:
    distinct = tiny.texts(30)
    texts = distinct + distinct[::-1] + distinct[:10]
    data = texts if kind == "list" else Dataset.from_dict({"text": texts})
    train, probe = ProbeSet.split(data, tiny.tokenizer(), size=8, max_length=64)
    left = train if kind == "list" else list(train["text"])
    assert isinstance(train, type(data))
    held_out = {tuple(row) for row in rows_of(probe)}
    trained = {tuple(row) for row in rows_of(built(iter(left), size=len(left), max_length=64))}
    assert not held_out & trained
    assert len(held_out) + len(trained) == 30
    assert left == [text for text in texts if text in set(left)]  # in their own order, duplicates of others kept
    assert probe.fingerprint == built(texts, size=8, max_length=64, min_length=32).fingerprint


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
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(
        ValueError, match=rf"probe.safetensors holds rows .* says {probe.fingerprint}.*build the probe again"
    ):
        ProbeSet.load(path)


def test_other_file_is_refused(tmp_path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is not a saved probe"):
        ProbeSet.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("batch_size", [1, 5, 64, 100])
def test_batches_hold_each_row_once_longest_first(batch_size: int) -> None:
    probe = tiny.probe(64)
    batches = probe.batches(batch_size)
    assert sorted(torch.cat([batch.rows_b for batch in batches]).tolist()) == list(range(64))
    assert all(len(batch.rows_b) <= batch_size for batch in batches)
    lengths = torch.cat([batch.lengths_b for batch in batches])
    assert (lengths.diff() <= 0).all()
    for batch in batches:
        assert batch.input_ids_bt.shape[1] == batch.lengths_b.max()
        for row, ids, mask, length in zip(
            batch.rows_b.tolist(), batch.input_ids_bt, batch.mask_bt, batch.lengths_b.tolist(), strict=True
        ):
            assert ids[mask.bool()].tolist() == rows_of(probe)[row]
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)


def test_batches_are_cut_once() -> None:
    probe = tiny.probe(64)
    assert probe.batches(16) is probe.batches(16)
    assert probe.batches(16) is not probe.batches(8)


def test_batches_of_one_width_have_one_shape_and_the_same_rows() -> None:
    probe = tiny.probe(64)
    plain, wide = probe.batches(16), probe.batches(16, one_width=True)
    assert {batch.input_ids_bt.shape for batch in wide} == {(16, int(probe.lengths_n.max()))}
    assert len({batch.input_ids_bt.shape for batch in plain}) > 1
    for one, other in zip(plain, wide, strict=True):
        assert torch.equal(one.rows_b, other.rows_b)
        assert torch.equal(one.lengths_b, other.lengths_b)
        assert torch.equal(one.input_ids_bt[one.mask_bt.bool()], other.input_ids_bt[other.mask_bt.bool()])


def test_length_bucketed_batches_carry_little_padding() -> None:
    """Rows of 8 to 20 tokens, 1,024 of them: padded each to the longest they would be a third padding."""
    probe = tiny.probe(1024)
    real = int(probe.lengths_n.sum())
    assert sum(batch.input_ids_bt.numel() for batch in probe.batches(32)) < 1.05 * real
    assert probe.input_ids_nt.numel() > 1.4 * real


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_dealing_gives_whole_batches_and_equal_shares(rows: int, world_size: int) -> None:
    batches = tiny.probe(rows).batches(2)
    shares = [deal(batches, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch for share in shares for batch, counts in share if counts]
    assert sorted(map(id, counted)) == sorted(map(id, batches))
    assert len(shares[0]) == -(-len(batches) // world_size)


ONE_ROW = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProbeSet.from_token_ids([]), r"the probe is empty: give at least one row"),
        (lambda: ProbeSet.from_token_ids(torch.zeros(0, 5, dtype=torch.long)), r"the probe is empty: give at least"),
        (
            lambda: ProbeSet.from_token_ids(torch.zeros(0, 5, dtype=torch.long), torch.zeros(0, 5)),
            r"the probe is empty: give at least",
        ),
        (lambda: ProbeSet.from_token_ids([[5, 6], [7]]), r"row 1 has 1 token\(s\).*at least two.*drop the short rows"),
        (lambda: ProbeSet.from_token_ids([[5, 6], []]), r"row 1 has 0 token\(s\)"),
        (
            lambda: ProbeSet.from_token_ids(ONE_ROW, torch.tensor([[0, 0, 0, 1]])),
            r"row 0 has 1 token\(s\).*at least two",
        ),
        (lambda: ProbeSet.from_token_ids([[5, -1]]), r"token id -1 is negative: mark padding in mask_nt"),
        (lambda: ProbeSet.from_token_ids(torch.tensor([[5, -100]])), r"token id -100 is negative: mark padding"),
        (
            lambda: ProbeSet.from_token_ids(
                ONE_ROW.expand(3, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
            ),
            r"mask_nt has a hole in row 1: real tokens must stand together",
        ),
        (lambda: ProbeSet.from_token_ids(ONE_ROW, torch.tensor([[1, 0, 0, 1]])), r"mask_nt has a hole in row 0"),
        (lambda: ProbeSet.from_token_ids(ONE_ROW, torch.ones(1, 5)), r"mask_nt has shape \(1, 5\), ids_nt \(1, 4\)"),
        (lambda: ProbeSet.from_token_ids([[5, 6]], torch.ones(1, 2)), r"mask_nt goes with a tensor of ids"),
        (
            lambda: ProbeSet.from_token_ids(torch.rand(3, 4)),
            r"ids_nt of shape \(3, 4\).*torch.float32.*give.*integers",
        ),
        (lambda: ProbeSet.from_token_ids(torch.tensor([5, 6])), r"ids_nt of shape \(2,\).*give.*\(n, t\)"),
        (lambda: built([]), r"the probe is empty: there are no texts"),
        (lambda: built(iter([])), r"the probe is empty: there are no texts"),
        (lambda: built(tiny.texts(9)), r"size=10, but only 9 of 9 texts have min_length=8 tokens: give more texts"),
        (lambda: built([*tiny.texts(9), "w1"] * 1), r"size=10, but only 9 of 10 texts"),
        (lambda: built(tiny.texts(9), size=0), r"size=0 is an empty probe: give a positive number"),
        (
            lambda: built(tiny.texts(9), min_length=30),
            r"min_length=30 and max_length=20 leave no text: .*2 <= min_length <= max_length",
        ),
        (lambda: built(tiny.texts(9), min_length=1), r"min_length=1 and max_length=20 leave no text"),
        (
            lambda: ProbeSet.from_dataset(
                Dataset.from_dict({"body": ["w1"], "id": [1]}), tiny.tokenizer(), size=1, max_length=8, min_length=2
            ),
            r"text_column='text' is not in the data set: it has body, id",
        ),
        (
            lambda: ProbeSet.split(
                Dataset.from_dict({"text": ["w1"]}).to_iterable_dataset(), tiny.tokenizer(), size=1, max_length=8
            ),
            r"a stream cannot be split: take the probe from its head",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_text_that_is_none_is_named() -> None:
    with pytest.raises(TypeError, match=r"text 2 is a NoneType, not a string: clean the texts"):
        built(iter([*tiny.texts(2), None]))
