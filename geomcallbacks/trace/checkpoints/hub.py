"""Checkpoints on the hub and in its local cache: which there are, fetching one, and deleting what was fetched."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

from geomcallbacks.trace.checkpoints.loading import refusal
from geomcallbacks.trace.checkpoints.revisions import COMMIT
from geomcallbacks.trace.checkpoints.steps import parse_name

#: What a causal model and its tokenizer need; weights in other formats, and files in subfolders, are left on the hub.
_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_SAFETENSORS, _PICKLES, _CODE = "*.safetensors", "*.bin", "*.py"


class Hub:
    """The hub, behind the cache that the hub's own client keeps.

    Args:
        cache_dir: folder of the cache; None: the client's own, where HF_HOME or HF_HUB_CACHE say.
        code: fetch a repository's Python files too.
    """

    def __init__(self, cache_dir: str | Path | None = None, *, code: bool = False) -> None:
        from huggingface_hub import constants

        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self.code = code
        self._before: dict[str, set[str]] = {}  # commits in the cache before this object fetched any
        self._fetched: dict[tuple[str, str], str] = {}  # (model, revision) -> commit

    def revisions(self, model: str) -> list[str]:
        """Return branches and tags of a model; those in the cache where the hub cannot be reached.

        Raises:
            ValueError: there is no such model, or it is neither cached nor within reach.
        """
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = HfApi().list_repo_refs(model)
            return [ref.name for ref in (*refs.branches, *refs.tags)]
        except RepositoryNotFoundError as error:  # a gated one, too
            gated = f"if it is gated, ask for access on https://huggingface.co/{model}, then hf auth login"
            text = f"{model!r} is no folder here and no model on the hub that you may read"
            raise ValueError(f"{text}; {gated}") from error
        except Exception as error:  # no network, by many names; the hub down
            names = list(self.cached(model)) or sorted(self._commits(model))  # what was fetched by commit has no name
            if not names:
                raise ValueError(_not_cached(model, None, error)) from error
            later = any(named.stage > 1 for name in names if (named := parse_name(name)) is not None)
            if later or not constants.HF_HUB_OFFLINE:  # which the user has set, and knows
                stages = ", and stages are placed by them alone" if later else ""
                known = f"only the {len(names)} revisions of {model} in the cache are known{stages}"
                warnings.warn(f"the hub cannot be reached ({refusal(error)}): {known}", stacklevel=4)
            return names

    def cached(self, model: str) -> dict[str, str]:
        """Return the commit of each branch and tag whose snapshot is in the cache, in part at least."""
        folder = self._folder(model)
        files = [file for file in sorted((folder / "refs").rglob("*")) if file.is_file()]
        refs = {file.relative_to(folder / "refs").as_posix(): file.read_text("utf-8").strip() for file in files}
        return {name: commit for name, commit in refs.items() if (folder / "snapshots" / commit).is_dir()}

    def fetch(self, model: str, revision: str, *, weights: bool = True) -> Path:
        """Return the folder with the files of one revision; fetch what is not in the cache.

        Args:
            model: hub name.
            revision: branch, tag or commit.
            weights: with the weights, or configuration and tokenizer alone.

        Raises:
            ValueError: it is neither cached nor within reach.
            OSError: fetching failed.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

        self._before.setdefault(model, self._commits(model))
        allowed = _FILES + ([_SAFETENSORS] if weights else []) + ([_CODE] if self.code else [])
        fetch = partial(snapshot_download, model, revision=revision, cache_dir=self.cache_dir, ignore_patterns=["*/*"])
        try:
            try:
                folder = Path(fetch(allow_patterns=allowed))
                if weights and not any(folder.glob(_SAFETENSORS)):
                    fetch(allow_patterns=[_PICKLES])
            except OfflineModeIsEnabled:  # the client 1.33 asks the hub before it looks for a commit
                folder = Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise ValueError(_not_cached(model, revision, error)) from error
        finally:  # a fetch that broke off leaves files, too; other processes fetch other commits meanwhile
            commit = self.cached(model).get(revision, revision)
            if commit in self._commits(model) - self._before[model]:
                self._fetched[model, revision] = commit
        return folder

    def evict(self, keep: tuple[str, str] | None = None) -> None:
        """Delete from the cache what this object fetched and what was not there, even in part, before.

        Args:
            keep: model and revision that stay.
        """
        from huggingface_hub import scan_cache_dir

        kept = {key: commit for key, commit in self._fetched.items() if key == keep}
        gone = set(self._fetched.values()) - set(kept.values())
        self._fetched = kept
        if gone:
            scan_cache_dir(self.cache_dir).delete_revisions(*gone).execute()

    def _commits(self, model: str) -> set[str]:
        return {folder.name for folder in self._folder(model).glob("snapshots/*") if COMMIT.fullmatch(folder.name)}

    def _folder(self, model: str) -> Path:
        return self.cache_dir / f"models--{model.replace('/', '--')}"


def _not_cached(model: str, revision: str | None, error: Exception) -> str:
    name, option = (f"{model}@{revision}", f" --revision {revision}") if revision else (model, "")
    text = f"{name} is no folder here and not in the hub's cache, and the hub cannot be reached ({refusal(error)})"
    return f"{text}: with a network, run `hf download {model}{option}` first, or unset HF_HUB_OFFLINE"
