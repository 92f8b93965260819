"""Reads source without running it: calls by which a file or another process could make ours run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PICKLES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
GATHERS = {
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list", "all_gather_into_object", "broadcast_object",
}  # fmt: skip
#: Names of pickle that neither read nor write.
_ERRORS = {"UnpicklingError", "PicklingError", "PickleError"}


def findings(source: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong there) for each place that should not be."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES:
            if not {name.name for name in node.names} <= _ERRORS:
                yield node.lineno, f"from {node.module} import"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name in PICKLES - {"pickle"}:
                    yield node.lineno, f"import {name.name}"
        elif isinstance(node, ast.Attribute) and node.attr in GATHERS:
            yield node.lineno, f"object gather: {node.attr}"
        elif isinstance(node, ast.Attribute) and _dotted(node.value) == "pickle" and node.attr not in _ERRORS:
            yield node.lineno, f"pickle.{node.attr}"
        elif isinstance(node, ast.Name) and node.id in GATHERS:
            yield node.lineno, f"object gather: {node.id}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, problem) for problem in _of_call(node))


def of_files(folders: list[Path]) -> list[str]:
    """The findings in every Python file below these folders, as file:line: problem."""
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    assert len(files) > 20
    return [f"{file}:{line}: {said}" for file in files for line, said in findings(file.read_text(encoding="utf-8"))]


def _of_call(call: ast.Call) -> Iterator[str]:
    name, given = _dotted(call.func), {word.arg: word.value for word in call.keywords}
    last = name.rpartition(".")[2]
    says = lambda word, value: isinstance(given.get(word), ast.Constant) and given[word].value is value  # type: ignore[attr-defined]
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"):
        yield f"runs code: {name}"
    if name == "torch.load" and not says("weights_only", True):
        yield "torch.load without weights_only=True"
    if name in ("torch.save", "torch.package.PackageExporter") or last in ("dump_module", "to_pickle", "read_pickle"):
        yield f"writes or reads pickle: {name}"
    if last == "fit" and "ckpt_path" in given and not says("weights_only", True):
        yield "Lightning resumes without weights_only=True"
    if name in ("np.load", "numpy.load") and "allow_pickle" in given and not says("allow_pickle", False):
        yield "numpy.load with allow_pickle"
    if name.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load"):
        yield f"{name} makes objects"
    if "shell" in given and not says("shell", False):
        yield "a shell"
    remote = last == "from_pretrained" and name.startswith("Auto")
    if remote and "trust_remote_code" not in given and not any(word.arg is None for word in call.keywords):
        yield f"{name} without trust_remote_code: Transformers asks the terminal"
    if isinstance(given.get("trust_remote_code"), ast.Constant) and not says("trust_remote_code", False):
        yield "remote code is on"


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
