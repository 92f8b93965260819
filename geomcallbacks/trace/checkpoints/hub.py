"""Checkpoints on the hub and in its local cache: which there are, fetching one, and deleting what was fetched."""

from __future__ import annotations

import logging
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from geomcallbacks.trace.checkpoints.find import no_model

#: What a causal model and its tokenizer need; weights in other formats, and files in subfolders, are left on the hub.
_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_SAFETENSORS, _PICKLES, _CODE = "*.safetensors", "*.bin", "*.py"
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
        self._cached_only: set[str] = set()  # models whose list is the cache's

    def revisions(self, model: str) -> list[str]:
        """Branches and tags of a model; those in the cache where the hub cannot be reached.

        Raises:
            ValueError: there is no such model, or it is neither cached nor within reach.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

        try:
            refs = HfApi().list_repo_refs(model)
        except GatedRepoError as error:
            raise ValueError(
                f"{model} is gated: ask for access on https://huggingface.co/{model}, then hf auth login"
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(f"{model!r} is no folder here and no model on the hub that you may read") from error
        except HFValidationError as error:
            raise ValueError(no_model(model)) from error
        except Exception as error:  # no network, by many names; the hub down
            return self._listed_offline(model, error)
        return [ref.name for ref in (*refs.branches, *refs.tags)]

    def knows_all(self, model: str) -> bool:
        """Whether `revisions` has listed the hub's, and not those in the cache alone."""
        return model not in self._cached_only

    def _listed_offline(self, model: str, error: Exception) -> list[str]:
        from huggingface_hub import constants

        names = list(self.cached(model)) or sorted(self._commits(model))  # what was fetched by its commit has no name
        if not names:
            raise ValueError(not_cached(model, None, error)) from error
        self._cached_only.add(model)
        text = f"only the {len(names)} revisions of {model} in the cache are known"
        if constants.HF_HUB_OFFLINE:  # as the user wants it
            logging.getLogger(__name__).info(text)
        else:
            warnings.warn(f"the hub cannot be reached ({_reason(error)}): {text}", stacklevel=3)
        return names

    def cached(self, model: str) -> dict[str, str]:
        """Commit of each branch and tag whose snapshot is in the cache, in part at least."""
        folder = self._folder(model)
        refs = {
            file.relative_to(folder / "refs").as_posix(): file.read_text(encoding="utf-8").strip()
            for file in sorted((folder / "refs").rglob("*"))
            if file.is_file()
        }
        return {name: commit for name, commit in refs.items() if (folder / "snapshots" / commit).is_dir()}

    def fetch(self, model: str, revision: str, *, weights: bool = True) -> Path:
        """Folder with the files of one revision, fetched unless they are in the cache.

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
        allowed = _FILES + (self._weights(model, revision) if weights else []) + ([_CODE] if self.code else [])
        download = partial(snapshot_download, model, revision=revision, cache_dir=self.cache_dir)
        download = partial(download, allow_patterns=allowed, ignore_patterns=["*/*"])
        try:
            try:
                folder = download()
            except OfflineModeIsEnabled:  # the client 1.33 asks the hub before it looks for a commit
                folder = download(local_files_only=True)
        except LocalEntryNotFoundError as error:
            raise ValueError(not_cached(model, revision, error)) from error
        finally:  # a fetch that broke off leaves files, too; other processes fetch other commits meanwhile
            commit = self.cached(model).get(revision, revision)
            if commit in self._commits(model) - self._before[model]:
                self._fetched[model, revision] = commit
        return Path(folder)

    def _weights(self, model: str, revision: str) -> list[str]:
        """Patterns of the weights: one format of them, where the hub says which there are."""
        from huggingface_hub import HfApi

        try:
            files = HfApi().list_repo_files(model, revision=revision)
        except Exception:  # out of reach: the cache has it, or the next call says why not
            return [_SAFETENSORS, _PICKLES]
        safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
        return [_SAFETENSORS] if safe else [_PICKLES]

    def evict(self, model: str, revision: str) -> None:
        """Delete a revision from the cache, if this object fetched it and it was not there, even in part, before."""
        from huggingface_hub import scan_cache_dir

        commit = self._fetched.pop((model, revision), None)
        if commit is not None and commit not in self._fetched.values():
            scan_cache_dir(self.cache_dir).delete_revisions(commit).execute()

    def evict_all(self) -> None:
        """Delete all that this object fetched and that is still in the cache."""
        for model, revision in list(self._fetched):
            self.evict(model, revision)

    def _commits(self, model: str) -> set[str]:
        return {folder.name for folder in self._folder(model).glob("snapshots/*") if _COMMIT.fullmatch(folder.name)}

    def _folder(self, model: str) -> Path:
        return self.cache_dir / f"models--{model.replace('/', '--')}"


def not_cached(model: str, revision: str | None, error: Any) -> str:
    """What would have to be fetched, and how."""
    at = f" --revision {revision}" if revision else ""
    wanted = f"revision {revision!r} of {model}" if revision else f"{model!r} is no folder here; as a hub name, it"
    return (
        f"{wanted} is not in the hub's cache, and the hub cannot be reached ({_reason(error)}): with a network, run"
        f" `hf download {model}{at}` first, or unset HF_HUB_OFFLINE"
    )


def _reason(error: Any) -> str:
    first = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")[:160]
