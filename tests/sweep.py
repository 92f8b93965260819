"""Every causal language model class of the installed Transformers, built small: is each layer the class's own?

Run with `make sweep`; it writes recipes/results/sweep.md. Of each class, every hidden state by its number, and what
enters the head by `layers=-1`, are read as a probe of rows of differing length is, and held against what the model
itself gives of each row alone. A layer is equal, or refused in words; anything else ends the sweep with an error.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import small_causal
import torch
import transformers
from states import read
from torch import Tensor, nn

from geomcallbacks import ProbeSet

TOLERANCE = 1e-5
POSITIONS = 3
OUT = Path(__file__).parents[1] / "recipes" / "results" / "sweep.md"


@dataclass
class Row:
    """What is known of one class."""

    name: str
    built: str = "yes"
    equal: list[int] = field(default_factory=list)
    default: str = ""
    difference: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def probe(model: nn.Module, rows: int = 5) -> ProbeSet:
    """Rows of 9 to 24 tokens that no model takes for special ones."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(9, 24, rows).round().int().tolist()
    ids = [torch.randint(10, small_causal.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return ProbeSet.from_token_ids(ids)


@torch.no_grad()
def own(model: Any, rows: ProbeSet) -> dict[str, Tensor]:
    """By the class's own account, at the probe's positions (m, d): its hidden states, and what entered its head."""
    head, entered = model.get_output_embeddings(), []
    handle = head and head.register_forward_pre_hook(lambda module, args: entered.append(args[0].clone()))
    found: dict[str, list[Tensor]] = {}
    for ids_t, length in zip(rows.input_ids_nt, rows.lengths_n.tolist(), strict=True):
        out = model(input_ids=ids_t[None, :length], use_cache=False, output_hidden_states=True)
        places = [-(-length * j // POSITIONS) - 1 for j in range(1, POSITIONS + 1)]
        states = dict(zip(map(str, range(99)), out.hidden_states, strict=False))
        for name, state in (states | ({"-1": entered[-1]} if entered else {})).items():
            found.setdefault(name, []).append(state[0, places].double() if state.ndim == 3 else state.double())
    if handle:
        handle.remove()
    return {name: torch.cat(parts) if parts[0].ndim == 2 else parts[0] for name, parts in found.items()}


def sweep(name: str) -> Row:
    """Build one class and read all of its layers."""
    row = Row(name)
    try:
        model = small_causal.build(name)
        rows = probe(model)
        wanted = own(model, rows)
    except Exception as error:
        row.built = f"no: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return row
    for layer in wanted:
        try:
            (got,) = read(model, rows, int(layer), POSITIONS, batch_size=2).values()
        except ValueError as error:
            row.refused[layer] = str(error)
            continue
        except Exception as error:
            row.wrong.append(f"{layer}: {type(error).__name__}: {error}")
            continue
        scale = max(1.0, wanted[layer].abs().max().item())
        off = (got - wanted[layer]).abs().max().item() / scale if got.shape == wanted[layer].shape else float("inf")
        row.difference = max(row.difference, off)
        if not off <= TOLERANCE:
            row.wrong.append(f"{layer}: differs by {off:.3g}")
        elif layer == "-1":
            last = wanted[str(len(wanted) - 2)]
            row.default = "hidden_states[-1]" if torch.equal(last, wanted["-1"]) else "enters the head"
        else:
            row.equal.append(int(layer))
    return row


def spans(numbers: list[int]) -> str:
    """Numbers in order, runs of them as `0-4`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def table(found: list[Row], seconds: float) -> str:
    """The sweep as Markdown."""
    built = [row for row in found if row.built == "yes"]
    versions = f"Transformers {transformers.__version__}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}"
    whole = [row for row in built if not row.refused and not row.wrong]
    lines = [
        "# Which state is read: every causal language model class of Transformers",
        "",
        f"`make sweep` (tests/sweep.py), {date.today()}, {versions}; {seconds:.0f} s on one CPU thread, float32.",
        "",
        f"{len(found)} classes, those that take images or sound besides text included; {len(built)} built small from"
        f" their configs. Of {len(whole)} every layer is read; of {sum(bool(row.refused) for row in built)} some are"
        f" refused in words; {sum(bool(row.wrong) for row in built)} differ or crash. Layers are numbers of the class's"
        f" own `hidden_states`, compared at {POSITIONS} positions of 5 rows of 9 to 24 tokens, read two at a time and"
        " padded, with each row run alone. Largest difference: over all layers, in units of the largest state where"
        f" that is above 1; {TOLERANCE:g} is allowed. `-1` is what enters the head (`get_output_embeddings()`), mostly"
        " `hidden_states[-1]`.",
        "",
        "| class | layers equal | `layers=-1` | largest difference | refused, or not built |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        reasons: dict[str, list[int]] = {}
        for layer, reason in row.refused.items():
            general = re.sub(r"hidden_states\[\d+\]", "hidden_states[i]", re.sub(r", not even '[^']*'", "", reason))
            reasons.setdefault(general, []).append(int(layer))
        words = "; ".join([f"{spans(layers)}: {reason}" for reason, layers in reasons.items()] + row.wrong)
        built_words = "" if row.built == "yes" else row.built
        difference = f"{row.difference:.1e}" if row.equal or row.default else ""
        cells = [row.name, spans(row.equal), row.default, difference, (words or built_words).replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the sweep; the exit status is that of its worst class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="classes; where none is named, all, and the table is written")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    begin, found = time.perf_counter(), []
    for name in names or small_causal.classes():
        found.append(sweep(name))
        print(found[-1], flush=True)
    if not names:
        OUT.write_text(table(found, time.perf_counter() - begin), encoding="utf-8")
    wrong = [row.name for row in found if row.wrong]
    sys.exit(f"differ or crash: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
