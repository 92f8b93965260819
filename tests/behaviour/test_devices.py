"""Measures of behaviour where a device is unlike a CPU: no ambient default, no float64, no float sum in any order, and
memory that runs out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from behaviour_measures import KEYS, make
from behaviour_rows import choices, completions

from geomcallbacks.behaviour import completion_logprobs, logprobs, sample
from geomcallbacks.behaviour.sampling import draw


def asked(name: str) -> Any:
    return make(name, completions(), tiny.probe(), choices())


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_default_dtype_counts(name: str, dtype: torch.dtype) -> None:
    model, measure = tiny.model(), asked(name)
    wanted = measure(model)
    torch.set_default_dtype(dtype)
    try:
        assert measure(model) == wanted
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", [name for name in KEYS if name not in ("rollouts", "primacy", "intervention")])
def test_no_default_device_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook has set one, for which "meta" stands: whatever is made there holds no numbers."""
    model, measure = tiny.model(), asked(name)
    wanted, forward = measure(model), model.forward

    def as_before(**given: Any) -> Any:  # the model's own code may rely on it
        with torch.device("cpu"):
            return forward(**given)

    monkeypatch.setattr(model, "forward", as_before)
    with torch.device("meta"):
        assert measure(model) == wanted


class NoFloat64(torch.utils._python_dispatch.TorchDispatchMode):
    """Stands for a device without float64: sums over the vocabulary are not taken in it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            assert found.ndim < 2 or found.shape[-1] < tiny.VOCABULARY, f"{func} gives {tuple(found.shape)} in float64"
        assert not (str(func).startswith("aten.cumsum") and found.is_floating_point()), "not deterministic on CUDA"
        return found


@pytest.mark.parametrize("name", ["loss", "preference", "memorisation", "primacy", "accuracy", "rollouts"])
def test_neither_float64_nor_a_float_cumsum_of_the_vocabulary(name: str) -> None:
    model, measure = tiny.model(), asked(name)
    with NoFloat64():
        measure.part(model)


def test_draws_are_those_of_the_float64_distribution() -> None:
    """The numbers of runs recorded before are drawn again: one batch, the same seed."""
    scores_bv = 4 * torch.randn(500, 4096, generator=torch.Generator().manual_seed(3))
    scores_bv[:, ::7] = -torch.inf
    generator = torch.Generator().manual_seed(5)
    drawing = draw._Draw(0.8, 5)
    for _ in range(20):
        cdf_bv = torch.softmax(scores_bv / 0.8, dim=-1).cumsum(-1, dtype=torch.float64)
        uniform_b1 = torch.rand((500, 1), generator=generator, dtype=torch.float64)
        wanted = torch.searchsorted(cdf_bv, uniform_b1 * cdf_bv[:, -1:], right=True)[:, 0]
        assert torch.equal(drawing(None, scores_bv).argmax(-1), wanted)


@contextmanager
def room_for(rows: int, model: Any) -> Iterator[list[tuple[int, int]]]:
    """The model runs out of memory with more rows than that; what it was given, (rows, tokens)."""
    seen: list[tuple[int, int]] = []

    def limited(module: Any, args: Any, given: Any) -> None:
        seen.append(tuple(given["input_ids"].shape))
        if len(given["input_ids"]) > rows:
            raise torch.OutOfMemoryError("injected")

    handle = model.register_forward_pre_hook(limited, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.fault
@pytest.mark.parametrize("name", ["loss", "preference", "memorisation", "primacy", "accuracy"])
def test_rows_that_do_not_fit_are_measured_in_halves(name: str) -> None:
    model = tiny.model()
    wanted = asked(name)(model)
    with room_for(3, model) as seen:
        found = asked(name)(model)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert max(rows for rows, _ in seen) > 3
    with room_for(0, model), pytest.raises(torch.OutOfMemoryError):
        asked(name)(model)


def test_the_longest_rows_come_first() -> None:
    """So that memory runs out at once or not at all. In whatever order, sums are the same to the last bit."""
    model = tiny.model()
    with room_for(99, model) as seen:
        completion_logprobs(model, completions(), batch_size=3)
    assert [tokens for _, tokens in seen] == sorted((tokens for _, tokens in seen), reverse=True)


def test_logits_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    whole, _ = completion_logprobs(model, completions())
    monkeypatch.setattr(logprobs, "_TOGETHER", 7 * tiny.VOCABULARY)
    sizes: list[int] = []
    softmax = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim: [sizes.append(len(x)), softmax(x, dim=dim)][1])
    blocks, _ = completion_logprobs(model, completions())
    assert max(sizes) == 7
    assert torch.equal(whole, blocks)


@pytest.mark.fault
def test_completions_that_do_not_fit_are_drawn_in_halves() -> None:
    model, how = tiny.model(), {"samples": 4, "max_new_tokens": 5, "batch_size": 8}
    with room_for(3, model) as seen:
        made = sample(model, tiny.tokenizer(), ["w1 w2", "w3"], **how)
    assert {rows for rows, _ in seen} == {8, 4, 2}
    assert [len(group) for group in made.completions] == [4, 4]
    assert len({tuple(row) for row in made.token_ids}) > 2  # halves have numbers of their own
    with room_for(3, model):
        assert sample(model, tiny.tokenizer(), ["w1 w2", "w3"], **how) == made
