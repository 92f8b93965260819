"""A checkpoint's files in, a model in evaluation mode out; whatever is missing or foreign in them is refused.

Transformers fills weights that a file lacks with random numbers and a warning: here that is an error.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch import nn

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPES = (*_DTYPES, "auto")


def load_model(
    source: Path,
    *,
    dtype: str = "fp32",
    device: str = "cpu",
    config: str | Path | None = None,
    trust_remote_code: bool = False,
    head: bool = True,
) -> nn.Module:
    """The causal language model in a folder as `from_pretrained` reads it, or in a Lightning checkpoint.

    Args:
        source: the folder, or the `*.ckpt` file.
        dtype: of the weights: "fp32", "bf16", "fp16", or "auto": as they were saved.
        device: where it goes.
        config: folder or file with the configuration of a Lightning checkpoint; None: beside it.
        trust_remote_code: run Python code that comes with the checkpoint.
        head: refuse a model whose output embedding is missing; hidden states do not need it.

    Raises:
        ValueError: weights are missing or of another shape, no configuration, code of its own that is not trusted.
        OSError: a file cannot be read.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "dtype": _DTYPES.get(dtype, dtype),
        "trust_remote_code": trust_remote_code,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are refused below, by name
    }
    try:
        if source.is_file():
            known = read_config(source, config, trust_remote_code)
            state = _lightning_state(source, known, trust_remote_code)
            kind: Any = AutoModelForCausalLM._model_mapping[type(known)]
            kind = kind if isinstance(kind, type) else kind[0]
            if dtype == "auto":
                options["dtype"] = next(value.dtype for value in state.values() if value.is_floating_point())
            options.pop("trust_remote_code")
            model, said = kind.from_pretrained(None, config=known, state_dict=state, **options)
        else:
            model, said = AutoModelForCausalLM.from_pretrained(source, **options)
    except ValueError as error:
        raise explained(error, source) from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{source}: {refusal(error)}") from error
    _check_complete(model, said, source, head)
    return model.to(device).eval()  # type: ignore[no-any-return]


def read_config(source: Path, config: str | Path | None, trust_remote_code: bool = False) -> Any:
    """The configuration of a Lightning checkpoint: the one given, else `config.json` beside it or one folder up.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoConfig

    for place in [Path(config)] if config is not None else [source.parent, source.parent.parent]:
        file = place / "config.json" if place.is_dir() else place
        if file.is_file():
            return AutoConfig.from_pretrained(file, trust_remote_code=trust_remote_code)
    if config is not None:
        return AutoConfig.from_pretrained(str(config), trust_remote_code=trust_remote_code)
    raise ValueError(
        f"{source} holds weights without their shape: put the model's config.json beside it, or give --config"
    )


def _lightning_state(source: Path, config: Any, trust_remote_code: bool) -> dict[str, Any]:
    """The language model's weights in a LightningModule's, under the model's own names."""
    import torch
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


def _check_complete(model: Any, said: Any, source: Path, head: bool) -> None:
    output = model.get_output_embeddings()
    names = [name for name, child in model.named_modules() if child is output] if output is not None else []
    missing = sorted(
        key for key in said["missing_keys"] if head or not any(key.startswith(f"{name}.") for name in names)
    )
    other = sorted(f"{key}: {tuple(there)}, not {tuple(here)}" for key, there, here in said["mismatched_keys"])
    if other:
        raise ValueError(
            f"{source} has {len(other)} weights of other shapes than its configuration says ({'; '.join(other[:3])}…):"
            " the config.json is that of another model"
        )
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}…): the checkpoint is"
            " incomplete, or of another shape than its configuration"
        )


def refusal(error: Exception) -> str:
    """Why a file of weights was not read, in a line."""
    first = "".join(str(error).strip().splitlines()[:1])[:160]
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return f"the file holds code besides tensors, and was refused: {first}"
    return f"{type(error).__name__}: {first}"


def explained(error: Exception, source: Any) -> ValueError:
    """The error in words that say what to do."""
    if "trust_remote_code" in str(error):
        return ValueError(
            f"{source} needs Python code that comes with it: read it, and give --trust-remote-code if you trust it"
        )
    return ValueError(f"{source}: {error}")
