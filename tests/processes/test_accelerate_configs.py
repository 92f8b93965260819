"""What `accelerate launch --config_file` makes of recipes/accelerate/*.yaml, by its own loader and plugins."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_accelerate_knows_every_key(name: str) -> None:
    """That each spreads weights as its name says is held by the launches of test_frameworks."""
    file = RECIPES / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 1, "bf16")
    paper = yaml.safe_load((RECIPES / "configs" / "sft_paper.yaml").read_text())
    assert paper["bf16"] is True  # Trainer's own setting wins: they must agree
    assert f"--config_file recipes/accelerate/{name}.yaml" in file.read_text()


@pytest.mark.parametrize(("kind", "block"), [("gpt_neox", "GPTNeoXLayer"), ("olmo2", "Olmo2DecoderLayer")])
def test_fsdp2_arrives_and_shards_each_block(monkeypatch: pytest.MonkeyPatch, kind: str, block: str) -> None:
    command = ["--config_file", str(RECIPES / "accelerate" / "fsdp2.yaml"), "recipes/sft.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    args.nproc_per_node = args.num_processes
    for key, value in prepare_multi_gpu_env(args).items():  # what each process is given
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    model = tiny.model(kind)
    plugin.set_auto_wrap_policy(model)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert [type(child).__name__ for child in model.modules() if wraps(child)] == [block] * 3
