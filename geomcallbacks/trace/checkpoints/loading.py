"""A checkpoint's files in, a model in evaluation mode out; whatever is missing or foreign in them is refused.

Transformers fills weights that a file lacks with random numbers and a warning: here that is an error.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Reading:
    """How checkpoints are turned into models.

    Attributes:
        dtype: of the weights: "fp32", "bf16", "fp16", or "auto", as they were saved. None: as the run's records imply,
            else "fp32".
        device: where they are measured; None: this process's GPU, where there is one.
        tokenizer: folder or hub name, for models that have none of their own.
        config: configuration of Lightning checkpoints, where it does not lie beside them.
        trust_remote_code: run Python code that comes with a checkpoint.
        evict: delete from the hub's cache what was fetched, once it is measured. A trace that is killed leaves the
            checkpoint in hand and the next one there.
        cache_dir: the hub's cache, where it is not the client's own.
    """

    dtype: str | None = None
    device: str | None = None
    tokenizer: str | None = None
    config: str | None = None
    trust_remote_code: bool = False
    evict: bool = False
    cache_dir: str | None = None

    def resolve(self, dtype: str) -> Reading:
        """Return this reading with a device, and with `dtype` where it has none.

        Raises:
            ValueError: there is no such device.
        """
        device = self.device or _own_device()
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
            raise ValueError(f"--device {device} cannot be used here: {refusal(error)}") from error
        return replace(self, dtype=self.dtype or dtype, device=device)


def load_model(source: Path, reading: Reading, *, head: bool = True) -> nn.Module:
    """Load the causal language model in a folder as `from_pretrained` reads it, or in a Lightning checkpoint.

    Args:
        source: the folder, or the `*.ckpt` file.
        reading: with dtype and device (`Reading.resolve`).
        head: refuse a model whose output embedding is missing; hidden states do not need it.

    Raises:
        ValueError: weights are missing or of another shape, no configuration, code of its own that is not trusted.
        OSError: a file cannot be read.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "dtype": _DTYPES.get(str(reading.dtype), reading.dtype),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are refused below, by name
    }
    try:
        if source.is_file():
            config = read_config(source, reading)
            state = _lightning_state(source, config, reading.trust_remote_code)
            kind = AutoModelForCausalLM._model_mapping[type(config)]
            if reading.dtype == "auto":
                options["dtype"] = next(value.dtype for value in state.values() if value.is_floating_point())
            model, info = kind.from_pretrained(None, config=config, state_dict=state, **options)
        else:
            remote = reading.trust_remote_code
            model, info = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=remote, **options)
    except (ValueError, pickle.UnpicklingError) as error:
        raise explained(error, source) from error
    _check_complete(model, info, source, head)
    return model.to(reading.device).eval()  # type: ignore[no-any-return]


def read_config(source: Path, reading: Reading) -> Any:
    """Load the configuration of a Lightning checkpoint: the one given, else `config.json` beside it or one folder up.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoConfig

    beside = [file for folder in source.parents[:2] if (file := folder / "config.json").is_file()]
    if reading.config is None and not beside:
        raise ValueError(f"{source} holds weights without their shape: put config.json beside it, or give --config")
    return AutoConfig.from_pretrained(reading.config or beside[0], trust_remote_code=reading.trust_remote_code)


def refusal(error: Exception) -> str:
    """Say in a line why something was not read."""
    first = "".join(str(error).strip().splitlines()[:1])[:160]
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return f"the file holds code besides tensors, and was refused: {first}"
    return f"{type(error).__name__}: {first}"


def explained(error: Exception, source: Any) -> ValueError:
    """Return the error in words that say what to do."""
    if "trust_remote_code" in str(error):
        return ValueError(f"{source} needs Python code of its own: read it, then give --trust-remote-code to run it")
    return ValueError(f"{source}: {refusal(error) if isinstance(error, pickle.UnpicklingError) else error}")


def _lightning_state(source: Path, config: Any, trust_remote_code: bool) -> dict[str, Any]:
    """Return the language model's weights in a LightningModule's, under the model's own names."""
    from transformers import AutoModelForCausalLM

    try:
        state = torch.load(source, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    except Exception as error:
        raise ValueError(f"{source} is not a Lightning checkpoint of tensors ({refusal(error)})") from error
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}  # torch.compile's wrapper
    with torch.device("meta"):
        wanted = list(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).state_dict())
    prefixes = {name[: -len(key)] for key in wanted for name in state if name.endswith(key)}
    score = lambda prefix: sum(prefix + key in state for key in wanted)
    prefix = max(sorted(prefixes), key=score, default="")
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _check_complete(model: Any, info: Any, source: Path, head: bool) -> None:
    """Raise ``ValueError`` where weights are missing, or of other shapes than the configuration's."""
    other = sorted(f"{key}: {tuple(there)}, not {tuple(here)}" for key, there, here in info["mismatched_keys"])
    if other:
        found = f"{source} has {len(other)} weights of other shapes than its configuration ({'; '.join(other[:3])}…)"
        raise ValueError(f"{found}: the config.json is that of another model")
    output = None if head else model.get_output_embeddings()
    spared = tuple(f"{name}." for name, child in model.named_modules() if child is output)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(spared))
    if missing:
        found = f"{source} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}…)"
        raise ValueError(f"{found}: the checkpoint is incomplete, or of another shape than its configuration")


def _own_device() -> str:
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return "cpu"
    return f"{kind.type}:{int(os.environ.get('LOCAL_RANK', 0)) % torch.accelerator.device_count()}"
