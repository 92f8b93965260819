"""Files and folders of others run no code of theirs, and secrets and gathered objects have no way into ours."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import micro
import pytest
import tiny
import torch
import wandb
from hub_cache import save_model
from pretrain import PretrainSettings, read_tokenizer
from pretrain import main as pretrain
from text.corpus import Corpus, open_dataset
from training.run_folder import RunFolder
from training.shapes import build_model

from geomcallbacks.cli import main
from geomcallbacks.running.messages import printable
from geomcallbacks.trace.checkpoints.loading import Reading, load_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code was run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a model and a tokenizer."""
    return save_model(tmp_path / "run")


def traced(source: Path, probe: Path | None = None) -> int:
    probe = probe or source.parent / "probe.safetensors"
    if not probe.exists():
        tiny.probe().save(probe)
    window = ["--alpha-window", *map(str, tiny.WINDOW)]
    return main(["trace", str(source), "--probe", str(probe), *window, "--out", str(probe.parent / "g.jsonl")])


# What is written here.

CALLS = "exec eval os.system os.popen pickle.load pickle.loads marshal.load marshal.loads yaml.load torch.save"
NAMES = "all_gather_object gather_object broadcast_object_list scatter_object_list send_object_list recv_object_list"
NAMES += " dill joblib cloudpickle shelve"
BAD = [
    "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f)", "eval(x)", "os.system(x)",
    "subprocess.run(x, shell=True)", "torch.save(x, f)", "np.load(f, allow_pickle=True)", "import dill",
    "trainer.fit(model, ckpt_path=x)", "dist.all_gather_object(a, b)", "AutoTokenizer.from_pretrained(x)",
    "AutoConfig.from_pretrained(x, trust_remote_code=True)", "from accelerate.utils import gather_object",
    "from pickle import loads", "from marshal import load",
]  # fmt: skip


def findings(folder: Path) -> Iterator[str]:
    """Places in the sources below a folder that could run what a file or another process says, or gather objects."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = {getattr(node, "id", ""), getattr(node, "attr", "")} | {a.name for a in getattr(node, "names", ())}
            hides = isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal")
            if hides or names & set(NAMES.split()):
                yield f"{file}: {names}"
            if not isinstance(node, ast.Call):
                continue
            call, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            asks = call.startswith("Auto") and call.endswith(".from_pretrained") and "trust_remote_code" not in given
            reads = call == "torch.load" or (call.endswith(".fit") and "ckpt_path" in given)
            unpickles = reads and given.get("weights_only") != "True"
            trusts = "True" in map(given.get, ("trust_remote_code", "allow_pickle", "shell"))
            if trusts or unpickles or call in CALLS.split() or (asks and None not in given):
                yield f"{file}: {call}"


def test_no_call_runs_what_a_file_says(tmp_path: Path) -> None:
    for number, bad in enumerate(BAD):
        (tmp_path / f"bad{number}.py").write_text(f"{bad}\n")
    found = list(findings(tmp_path))
    assert [bad for number, bad in enumerate(BAD) if not any(f"bad{number}.py" in line for line in found)] == []
    for folder in (ROOT / "geomcallbacks", ROOT / "recipes"):
        assert len(list(folder.rglob("*.py"))) > 20
        assert list(findings(folder)) == []


# Pickles.


class Weapon:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(params=["pickle", "torch", "torch, old format"])
def weapon(request: pytest.FixtureRequest, mark: Path) -> bytes:
    """A file that makes `mark` when it is unpickled, as pickle or as torch writes it."""
    content = {"state_dict": {"w": torch.zeros(2)}, "global_step": 1, "x": Weapon(mark)}
    if request.param == "pickle":
        return pickle.dumps({"state_dict": Weapon(mark), "global_step": 1})
    written = io.BytesIO()
    torch.save(content, written, _use_new_zipfile_serialization=request.param == "torch")
    return written.getvalue()


def test_the_weapon_works(weapon: bytes, mark: Path) -> None:
    with suppress(pickle.UnpicklingError):
        pickle.loads(weapon)
    if not mark.exists():
        torch.load(io.BytesIO(weapon), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    "place", ["pytorch_model.bin", "model.safetensors", "step=1.ckpt", "other.ckpt", "adapter_model.bin"]
)
def test_a_checkpoint_that_is_a_pickle_is_refused(
    place: str, weapon: bytes, mark: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "model.safetensors").unlink()
    (run / place).write_bytes(weapon)
    if place.startswith("adapter"):
        (run / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "."}')
    assert traced(run) in (1, 2)
    assert not mark.exists()
    reason = capfd.readouterr().err
    assert "geomcallbacks trace: " in reason
    if zipfile.is_zipfile(io.BytesIO(weapon)) and place.endswith((".bin", ".ckpt")) and not place.startswith("adapter"):
        assert "holds code besides tensors, and was refused" in reason


def test_pickles_beside_a_checkpoint_are_not_looked_at(weapon: bytes, mark: Path, run: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        (run / name).write_bytes(weapon)
    assert traced(run) == 0
    for suffix in ("parquet", "jsonl", "txt", "pkl", "safetensors"):  # nor is a probe of them unpickled
        (run / f"probe.{suffix}").write_bytes(weapon)
        assert traced(run, run / f"probe.{suffix}") == 2
    assert not mark.exists()


def test_a_resume_file_that_is_a_pickle_is_refused(weapon: bytes, mark: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.resume_file.parent.mkdir()
    folder.resume_file.write_bytes(weapon)
    (tmp_path / "settings.json").write_text(json.dumps(vars(PretrainSettings())))
    with pytest.raises(SystemExit, match=r"last\.ckpt cannot be read"):
        folder.resumed_update(PretrainSettings())
    assert not mark.exists()


# Code that comes with a model or a data set.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What Transformers asks the terminal, which answers yes."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return questions


@pytest.fixture
def armed(run: Path, mark: Path) -> Path:
    """A model and a tokenizer that come with code which makes `mark`."""
    code = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    for name, changes in (
        ("config.json", {"model_type": "strange", "auto_map": code}),
        ("tokenizer_config.json", {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", "own.T"]}}),
    ):
        (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | changes))
    (run / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    # Of a configuration that Transformers knows, and a model that it does not.
    vit = {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": f"{run}--own.M"}}
    (run.parent / "vit.json").write_text(json.dumps(vit))
    return run


def test_code_of_a_model_is_not_run_by_the_command(
    armed: Path, mark: Path, asked: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert traced(armed) == 1
    assert "--trust-remote-code" in capfd.readouterr().err
    assert main(["trace", str(armed), "--out", str(armed.parent / "t.jsonl")]) == 2  # its tokenizer comes first
    assert "--trust-remote-code" in capfd.readouterr().err
    torch.save({"state_dict": {"w": torch.zeros(1)}, "global_step": 1}, armed / "last.ckpt")
    (armed / "config.json").write_bytes((armed.parent / "vit.json").read_bytes())
    assert traced(armed / "last.ckpt") in (1, 2)
    assert not mark.exists()
    assert asked == []


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "dpo", "grpo"])
def test_code_of_a_model_is_not_run_by_the_recipes(
    recipe: str, armed: Path, mark: Path, tmp_path: Path, asked: list[str]
) -> None:
    if recipe == "pretrain":
        with pytest.raises(ValueError, match="custom code"):
            read_tokenizer(PretrainSettings(tokenizer=str(armed)), Corpus({}, {}))
        for config in (armed, armed.parent / "vit.json"):
            with pytest.raises((ValueError, AttributeError)):
                build_model(PretrainSettings(model_config=str(config), tokenizer="x"), tiny.tokenizer(), 8)
    else:
        module = micro.MODULES[recipe]
        settings, args = module.make_parser().parse(micro.arguments(recipe, tmp_path / "out", model=armed))
        assert args.trust_remote_code is False
        with pytest.raises(ValueError, match="custom code"):
            module.main(settings, args)
    assert not mark.exists()
    assert asked == []


def test_code_of_a_model_is_run_where_it_is_trusted(armed: Path, mark: Path, asked: list[str]) -> None:
    with pytest.raises(Exception, match=r"has no attribute|does not|own"):
        load_model(armed, Reading("fp32", "cpu", trust_remote_code=True))
    assert mark.exists()


def test_the_script_of_a_data_set_is_not_run(run: Path, mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    assert traced(run, folder) == 2
    for name in (str(folder), str(folder / "evil.py")):
        with pytest.raises(ValueError, match="holds files of the kinds"):
            open_dataset(name)
    assert not mark.exists()


# Secrets.

KEYS = "WANDB_API_KEY HF_TOKEN HUGGING_FACE_HUB_TOKEN AWS_SECRET_ACCESS_KEY OPENAI_API_KEY COMET_API_KEY GITHUB_TOKEN"
SECRETS = {name: f"{name.lower()}-5ecre7-{number}" for number, name in enumerate(KEYS.split())}


def test_no_secret_of_the_environment_is_left_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it reads the environment once in a process, and other tests have their own
    pretrain(micro.pretraining(tmp_path / "run", micro.write_texts(tmp_path), updates=4, wandb="offline"))
    wandb.teardown()
    assert main(["trace", "run"]) == 0
    assert main(["report", "run", "--out", "report", "--format", "svg"]) == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"geometry.jsonl", "geometry-trace.jsonl", "index.html", "settings.json"} <= {file.name for file in files}
    assert any(file.suffix == ".wandb" for file in files)
    left = {str(file): file.read_bytes() for file in files} | {"the terminal": "".join(capfd.readouterr()).encode()}
    found = [(name, place) for name, value in SECRETS.items() for place, text in left.items() if value.encode() in text]
    assert found == []


def test_secrets_in_addresses_reach_neither_terminal_nor_record(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    address = "https://me:5ecre7@example.org/a/b?X-Amz-Signature=5ecre7"

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(f"403 Client Error for url '{address}'")

    assert main(["trace", address]) == 2
    monkeypatch.setattr("geomcallbacks.trace.measuring.load_model", fails)
    assert traced(run) == 1
    shown, record = capfd.readouterr(), (run.parent / "g.jsonl").read_text()
    assert "403 Client Error for url 'https://example.org/a/b?…'" in record
    assert "example.org" in shown.err
    assert "5ecre7" not in shown.out + shown.err + record
    assert printable("\x1b]0;x\x07 a\u202eb https://h/p ftp://u@h") == "\ufffd]0;x\ufffd a\ufffdb https://h/p ftp://h"
