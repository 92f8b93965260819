"""The data sets of the post-training recipes: instruction pairs, preference pairs, problems with an answer.

Offline they are cut from parts of the corpus that the base was not trained on, and generated. They are made in the
columns of public data sets, and go through the code that reads those: Anthropic/hh-rlhf (``chosen``, ``rejected``),
AlpacaFarm (``instruction``, ``input``, ``output``), GSM8K (``question``, ``answer`` with ``####``).
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from text.arithmetic import Problem, distinct_problems, prompt_of, worked_solution
from text.corpus import open_dataset

Row = dict[str, str]

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant:"
SUMMARY_CHARACTERS, CODE_CHARACTERS = 100, 240
"""Longest summary line and longest function that are cut from the corpus: both fit a row of the smallest preset."""

_LINE_END = re.compile(r"\r\n|\r|\n")  # what the parser counts; str.splitlines cuts at form feeds and others as well
_GSM8K_ANSWER = re.compile(r"####\s*(.+?)\s*$")


def functions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (first line of the docstring, source without the docstring) of each short function of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes of old modules; until Python 3.12 a DeprecationWarning
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    lines = _LINE_END.split(text)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        docstring, first = (ast.get_docstring(node) or "").strip(), node.body[0]
        if not docstring or not _stands_alone(lines, first, node.body[1]):
            continue
        source = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
        code = textwrap.dedent("\n".join(line for line in source if line.strip()))
        summary = docstring.splitlines()[0].strip()
        if 10 <= len(summary) <= SUMMARY_CHARACTERS and len(code) <= CODE_CHARACTERS:
            yield summary, code


def _stands_alone(lines: list[str], docstring: ast.stmt, following: ast.stmt) -> bool:
    """Whether the lines of the docstring hold nothing else."""
    return not lines[docstring.lineno - 1][: docstring.col_offset].strip() and following.lineno != docstring.end_lineno


def write_rows(texts: Iterable[str]) -> list[Row]:
    """Cut pairs "summary -> function" from modules, as the ``chosen`` dialogue of hh-rlhf."""
    return [_dialogue(f"Write a function. {summary}", code) for summary, code in _distinct(texts)]


def describe_rows(texts: Iterable[str]) -> list[Row]:
    """Cut pairs "function -> summary", another instruction than that of ``write_rows``."""
    return [_dialogue(f"Describe this function.\n{code}", summary) for summary, code in _distinct(texts)]


def problem_rows(count: int, terms: tuple[int, ...], held_out: bool, seed: int) -> list[Row]:
    """Generate different problems with a worked solution, in the columns of GSM8K."""
    rng = random.Random(seed)

    def answer(problem: Problem) -> str:
        working, _, _ = worked_solution(problem, rng).rpartition("Answer:")
        return f"{working}#### {problem.answer}"

    found = distinct_problems(count, terms, held_out, seed)
    return [{"question": problem.question, "answer": answer(problem)} for problem in found]


def _dialogue(request: str, reply: str) -> Row:
    return {"chosen": f"{HUMAN}{request}{ASSISTANT} {reply}"}


def _distinct(texts: Iterable[str]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(pair for text in texts for pair in functions(text)))


def read_rows(
    name: str, limit: int | None = None, config: str | None = None, revision: str | None = None, split: str = "train"
) -> list[Row]:
    """Read a hub data set, or local files in the same columns.

    Args:
        name: A hub name, a file, or a folder of files.
        limit: At most so many rows, drawn without replacement; all of them where None.
        config: The configuration of a hub data set.
        revision: The revision of a hub data set.
        split: The split to read; local files have "train" alone.
    """
    rows = open_dataset(name, config, revision, split)
    if limit is not None and limit < len(rows):
        rows = rows.select(sorted(random.Random(0).sample(range(len(rows)), limit)))
    return [dict(row) for row in rows]


def to_pairs(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Turn rows into ``prompt`` and ``completion``.

    Raises:
        ValueError: The columns are none of those that the table of ``recipes/README.md`` lists.
    """
    return _convert(rows, "instruction pairs", _PAIR_READERS)


def to_preferences(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Turn rows into ``prompt``, ``chosen`` and ``rejected``; rows whose replies have different prompts are left out.

    Raises:
        ValueError: The columns are none of those that the table of ``recipes/README.md`` lists, or no row is left.
    """
    found = _convert(rows, "preference pairs", _PREFERENCE_READERS)
    if not found:
        raise ValueError(f"preference pairs: in none of the {len(rows)} rows do both replies have the same prompt")
    return found


def to_problems(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Turn rows into ``prompt`` and ``answer``, the final answer alone.

    Raises:
        ValueError: The columns are not those of GSM8K, or an answer has no ``####`` line.
    """
    return _convert(rows, "problems", _PROBLEM_READERS)


Reader = Callable[[Mapping[str, Any]], Row | None]
Readers = dict[tuple[str, ...], Reader]


def _convert(rows: Sequence[Mapping[str, Any]], what: str, readers: Readers) -> list[Row]:
    if not rows:
        raise ValueError(f"{what}: there are no rows; give a data set, a split or a corpus that has some")
    converted = (_reader_of(row, what, readers)(row) for row in rows)
    return [row for row in converted if row is not None]


def _reader_of(row: Mapping[str, Any], what: str, readers: Readers) -> Reader:
    """Return the first reader whose columns a row has.

    Raises:
        ValueError: There is none, or a column holds something other than text.
    """
    for columns, reader in readers.items():
        if row.keys() >= set(columns):
            for name, value in [*((name, row[name]) for name in columns), ("input", row.get("input") or "")]:
                if not isinstance(value, str):
                    raise ValueError(f"{what}: column {name!r} holds {value!r:.60}, not a text; leave such rows out")
            return reader
    known = "; or ".join(map(", ".join, readers))
    raise ValueError(f"{what}: the data set has the columns {sorted(row)}; rename them to {known}")


def _split_dialogue(dialogue: str) -> tuple[str, str]:
    prompt, mark, reply = dialogue.rpartition(ASSISTANT)
    if not mark:
        raise ValueError(f"the dialogue {dialogue[:60]!r} has no {ASSISTANT!r} turn; give hh-rlhf's format")
    return prompt + mark, reply


def _chosen_pair(row: Mapping[str, Any]) -> Row:
    prompt, reply = _split_dialogue(row["chosen"])
    return {"prompt": prompt, "completion": reply}


def _alpaca_pair(row: Mapping[str, Any]) -> Row:
    request = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    return {"prompt": f"{HUMAN}{request}{ASSISTANT}", "completion": f" {row['output']}"}


def _gsm8k_pair(row: Mapping[str, Any]) -> Row:
    answer = _final_answer(row)
    working = row["answer"][: row["answer"].rindex("####")]
    return {"prompt": prompt_of(row["question"]), "completion": f"{working}Answer: {answer}\n"}


def _dialogue_preference(row: Mapping[str, Any]) -> Row | None:
    (prompt, chosen), (other, rejected) = _split_dialogue(row["chosen"]), _split_dialogue(row["rejected"])
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} if prompt == other else None


def _gsm8k_problem(row: Mapping[str, Any]) -> Row:
    return {"prompt": prompt_of(row["question"]), "answer": _final_answer(row)}


def _final_answer(row: Mapping[str, Any]) -> str:
    found = _GSM8K_ANSWER.search(row["answer"])
    if not found or not found[1].replace(",", ""):
        raise ValueError(f"the answer {row['answer'][-60:]!r} has no '####' line; give GSM8K's format")
    return found[1].replace(",", "")


def _columns(*names: str) -> Reader:
    return lambda row: {name: row[name] for name in names}


_PAIR_READERS: Readers = {
    ("prompt", "completion"): _columns("prompt", "completion"),
    ("prompt", "chosen"): lambda row: {"prompt": row["prompt"], "completion": row["chosen"]},
    ("chosen",): _chosen_pair,
    ("instruction", "output"): _alpaca_pair,
    ("question", "answer"): _gsm8k_pair,
}
_PREFERENCE_READERS: Readers = {
    ("prompt", "chosen", "rejected"): _columns("prompt", "chosen", "rejected"),
    ("chosen", "rejected"): _dialogue_preference,
}
_PROBLEM_READERS: Readers = {("question", "answer"): _gsm8k_problem}
