"""The tokenizer of a curve: where it is found, and whether a checkpoint's own means the same by a token id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomcallbacks.probe import ProbeSet
from geomcallbacks.trace.checkpoints.checkpoint import Checkpoint
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.loading import Reading, explained, refusal

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
_REMEDY = "give one with --tokenizer FOLDER or hub name, or a saved probe with --probe FILE.safetensors"


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer that a curve's probes were made with.

    Attributes:
        tokenizer: as Transformers loads it.
        files: hash of its files, where it is a checkpoint's own; None: it was given, and is not held against any.
    """

    tokenizer: Any
    files: str | None = None

    def check(self, source: Path, probes: Mapping[str, ProbeSet], name: object, trust_remote_code: bool) -> None:
        """Raise ``ValueError`` where a checkpoint's own tokenizer means something else by a token id of the probes."""
        if self.files is None or _hash_of_files(source) in (None, self.files):
            return
        theirs = load_tokenizer(source, trust_remote_code=trust_remote_code)
        ids = sorted({token for probe in probes.values() for token in probe.input_ids_nt.flatten().tolist()})
        names = zip(ids, theirs.convert_ids_to_tokens(ids), self.tokenizer.convert_ids_to_tokens(ids), strict=True)
        for token, there, here in names:
            if there != here:
                clash = f"token {token} is {there!r} there, and {here!r} in the probe's tokenizer"
                raise ValueError(f"{name} has another vocabulary than the probe: {clash}; trace it to another --out")


def find_vocabulary(checkpoints: Iterable[Checkpoint], hub: Hub, reading: Reading) -> Vocabulary:
    """Return the tokenizer that was given, else that of the first of the checkpoints which has one.

    Raises:
        ValueError, OSError: none of them has one; says it of the first.
    """
    remote = reading.trust_remote_code
    if reading.tokenizer is not None:
        return Vocabulary(load_tokenizer(reading.tokenizer, trust_remote_code=remote))
    problems: list[Exception] = []
    for checkpoint in checkpoints:
        try:
            source = checkpoint.source or hub.fetch(checkpoint.model, checkpoint.revision, weights=False)
            folder = _folder(source, reading.config)
            if folder == source and source.is_file():
                return Vocabulary(load_tokenizer(source))  # the GGUF file's own
            return Vocabulary(load_tokenizer(folder, trust_remote_code=remote), _hash_of_files(folder))
        except (ValueError, OSError) as error:
            problems.append(error)
    raise problems[0]


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer in a folder or on the hub.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        place, file = (Path(source).parent, Path(source).name) if Path(source).suffix == ".gguf" else (source, None)
        return AutoTokenizer.from_pretrained(place, gguf_file=file, trust_remote_code=trust_remote_code)
    except Exception as error:  # Transformers raises what its guesses at a class ran into: TypeError, KeyError, …
        if "trust_remote_code" in str(error):
            raise explained(error, source) from error
        raise ValueError(f"{source} has no tokenizer that can be read ({refusal(error)}): {_REMEDY}") from error


def _folder(source: Path, config: str | None) -> Path:
    """Return the folder with a checkpoint's tokenizer: its own, or one near a Lightning file; a GGUF file holds one."""
    near = [*([Path(config)] if config else []), *source.parents[:3]] if source.is_file() else [source]
    for place in (*near, *(folder / "tokenizer" for folder in near)):
        if _hash_of_files(place) is not None or (place / "tokenizer_config.json").is_file():
            return place
    if source.suffix == ".gguf":
        return source
    raise ValueError(f"{source} has no tokenizer: {_REMEDY}")


def _hash_of_files(folder: Path) -> str | None:
    """Return a hash of the files that make a tokenizer; None where there are none."""
    found = [(folder / name).read_bytes() for name in _FILES if (folder / name).is_file()]
    return hashlib.sha256(b"\0".join(found)).hexdigest() if found else None
