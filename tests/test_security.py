"""Files and folders of others run no code of theirs, and secrets and gathered objects have no way into ours."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import run
from typing import Any

import micro
import pytest
import source_check
import tiny
import torch
from pretrain import PretrainSettings, read_tokenizer
from text.corpus import Corpus, open_dataset
from training.posttrain import Stage
from training.run_folder import RunFolder
from training.shapes import build_model
from transformers import TrainerState

from geomcallbacks import GeometryMonitor, ProbeSet, Schedule, hf, lightning, read_records
from geomcallbacks.behaviour import BehaviourMonitor, Choices, CompletionLoss, Completions, Memorisation
from geomcallbacks.behaviour.hf import BehaviourCallback
from geomcallbacks.behaviour.lightning import BehaviourCallback as LightningBehaviour
from geomcallbacks.cli import main
from geomcallbacks.record import read_spectra
from geomcallbacks.report.loss import read_loss
from geomcallbacks.running.messages import printable
from geomcallbacks.trace.checkpoints.loading import load_model, read_config

ROOT = Path(__file__).parents[1]
Tally = Callable[..., None]
pytestmark = pytest.mark.fault


class Weapon:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code was run"


@pytest.fixture(params=["pickle", "torch", "torch, old format"])
def weapon(request: pytest.FixtureRequest, mark: Path) -> bytes:
    """A file that makes `mark` when it is unpickled, as pickle or as torch writes it."""
    if request.param == "pickle":
        return pickle.dumps({"state_dict": Weapon(mark), "global_step": 1})
    written = io.BytesIO()
    content = {"state_dict": {"w": torch.zeros(2)}, "global_step": 1, "x": Weapon(mark)}
    torch.save(content, written, _use_new_zipfile_serialization=request.param == "torch")
    return written.getvalue()


@pytest.fixture
def probe_file(tmp_path: Path) -> Path:
    tiny.probe().save(tmp_path / "probe.safetensors")
    return tmp_path / "probe.safetensors"


def traced(folder: Path, probe: Path, *more: str) -> int:
    window = ["--alpha-window", *map(str, tiny.WINDOW)]
    return main(["trace", str(folder), "--probe", str(probe), *window, "--out", str(folder.parent / "g.jsonl"), *more])


BAD = [
    "import dill",
    "from pickle import loads",
    "pickle.load(f)",
    "torch.load(f)",
    "torch.load(f, weights_only=False)",
    "torch.save(x, f)",
    "np.load(f, allow_pickle=True)",
    "yaml.load(f)",
    "eval(x)",
    "os.system(x)",
    "subprocess.run(x, shell=True)",
    "trainer.fit(model, ckpt_path=x)",
    "dist.all_gather_object(a, b)",
    "from accelerate.utils import gather_object\ngather_object(x)",
    "AutoTokenizer.from_pretrained(x)",
    "AutoConfig.from_pretrained(x, trust_remote_code=True)",
]


def test_neither_package_nor_recipes_hold_a_call_that_runs_what_a_file_says(tally: Tally) -> None:
    for bad in BAD:
        assert list(source_check.findings(bad)), bad
        tally("code in files")
    assert source_check.of_files([ROOT / "geomcallbacks", ROOT / "recipes"]) == []


def test_the_weapon_works(weapon: bytes, mark: Path) -> None:
    with suppress(pickle.UnpicklingError):
        pickle.loads(weapon)
    if not mark.exists():
        torch.load(io.BytesIO(weapon), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("place", ["pytorch_model.bin", "model.safetensors", "step=1.ckpt", "other.ckpt", "adapter"])
def test_a_checkpoint_that_is_a_pickle_is_refused(
    place: str, weapon: bytes, mark: Path, probe_file: Path, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    folder = probe_file.parent / "run"
    tiny.model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / {"adapter": "adapter_model.bin"}.get(place, place)).write_bytes(weapon)
    if place == "adapter":
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "."}')
    status = traced(folder, probe_file)
    assert status in (1, 2)
    assert not mark.exists()
    said = capfd.readouterr().err
    assert "was not measured (" in said or "geomcallbacks trace: " in said
    tally("code in files")


def test_pickles_beside_a_checkpoint_are_not_looked_at(
    weapon: bytes, mark: Path, probe_file: Path, tally: Tally
) -> None:
    folder = probe_file.parent / "run"
    tiny.model().save_pretrained(folder / "checkpoint-3")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        (folder / "checkpoint-3" / name).write_bytes(weapon)
    assert traced(folder, probe_file) == 0
    assert not mark.exists()
    tally("code in files")


READERS: dict[str, Callable[[Path], object]] = {
    "records": read_records,
    "probe": ProbeSet.load,
    "spectrum": lambda file: read_spectra(file.parent / "geometry.jsonl", {"step": 1, "spectrum": [file.name, "a/b"]}),
    "choices": Choices.load,
    "memorisation": Memorisation.load,
}


@pytest.mark.parametrize("reader", [*READERS, "loss", "corpus", "resume", "report", "probe of text"])
def test_what_is_read_of_a_run_is_never_unpickled(
    reader: str, weapon: bytes, mark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    file = tmp_path / "file"
    file.write_bytes(weapon)
    if reader in READERS:
        with pytest.raises(ValueError, match="file"):
            READERS[reader](file)
    elif reader == "loss":
        for name in ("trainer_state.json", "metrics.csv", "loss.jsonl"):
            with pytest.raises(ValueError, match="no training loss"):
                read_loss(file.rename(tmp_path / name))
            file = tmp_path / name
    elif reader == "corpus":
        (tmp_path / "manifest.json").write_text('{"files": {}, "source": {}, "fingerprint": ""}')
        file.rename(tmp_path / "corpus.parquet")
        with pytest.raises(ValueError, match=r"[Pp]arquet"):
            Corpus.load(tmp_path)
    elif reader == "resume":
        folder = RunFolder(tmp_path)
        folder.resume_file.parent.mkdir()
        file.rename(folder.resume_file)
        (tmp_path / "settings.json").write_text(json.dumps(vars(PretrainSettings())))
        with pytest.raises(SystemExit, match=r"last\.ckpt cannot be read"):
            folder.resumed_update(PretrainSettings())
    elif reader == "report":
        assert main(["report", str(file)]) == 2
        assert "geomcallbacks report: " in capfd.readouterr().err
    else:
        tiny.model().save_pretrained(tmp_path / "run")
        tiny.tokenizer().save_pretrained(tmp_path / "run")
        for name in ("probe.parquet", "probe.jsonl", "probe.txt", "probe.pkl", "probe.safetensors"):
            (tmp_path / name).write_bytes(weapon)
            assert traced(tmp_path / "run", tmp_path / name) == 2
    assert not mark.exists()
    tally("code in files")


def with_own_code(folder: Path, mark: Path, **config: Any) -> Path:
    """A model and a tokenizer that come with code which makes `mark`."""
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    for name, changes in (
        (
            "config.json",
            {"model_type": "strange", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}},
        ),
        ("tokenizer_config.json", {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", "own.T"]}}),
    ):
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(known | changes | (config if name == "config.json" else {})))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What Transformers asks the terminal, which answers yes."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return questions


def test_code_of_a_model_is_not_run_by_the_command(
    mark: Path, probe_file: Path, asked: list[str], capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    folder = with_own_code(probe_file.parent / "run", mark)
    assert traced(folder, probe_file) in (1, 2)
    assert "--trust-remote-code" in capfd.readouterr().err
    assert main(["trace", str(folder), "--out", str(probe_file.parent / "t.jsonl")]) == 2  # its tokenizer comes first
    assert "--trust-remote-code" in capfd.readouterr().err
    # A Lightning checkpoint whose configuration is one that Transformers knows, of a model that it does not.
    torch.save({"state_dict": {"w": torch.zeros(1)}, "global_step": 1}, folder / "last.ckpt")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vit", "auto_map": {"AutoModelForCausalLM": f"{folder}--own.M"}})
    )
    read_config(folder / "last.ckpt", None)
    assert traced(folder / "last.ckpt", probe_file) in (1, 2)
    assert not mark.exists()
    assert asked == []
    tally("code of a model", injected=3, survived=3)


def test_code_of_a_model_is_not_run_by_the_recipes(mark: Path, tmp_path: Path, asked: list[str], tally: Tally) -> None:
    folder = with_own_code(tmp_path / "own", mark)
    vit = tmp_path / "vit.json"
    vit.write_text(json.dumps({"model_type": "vit", "auto_map": {"AutoModelForCausalLM": f"{folder}--own.M"}}))
    with pytest.raises(ValueError, match="custom code"):
        read_tokenizer(PretrainSettings(tokenizer=str(folder)), Corpus({}, {}))
    for config in (folder, vit):
        with pytest.raises((ValueError, AttributeError)):
            build_model(PretrainSettings(model_config=str(config), tokenizer="x"), tiny.tokenizer(), 8)
    assert not mark.exists()
    assert asked == []
    tally("code of a model", injected=3, survived=3)


@pytest.mark.parametrize("recipe", ["sft", "dpo", "grpo"])
def test_code_of_a_model_is_not_run_by_post_training(
    recipe: str, mark: Path, tmp_path: Path, asked: list[str], tally: Tally
) -> None:
    module, folder = micro.MODULES[recipe], with_own_code(tmp_path / "own", mark)
    settings, args = module.make_parser().parse(micro.arguments(recipe, tmp_path / "out", model=folder))
    assert args.trust_remote_code is False
    stage = Stage(settings, args)
    for load in (stage.weights.tokenizer, stage.weights.model):
        with pytest.raises(ValueError, match="custom code"):
            load()
    assert not mark.exists()
    assert asked == []
    tally("code of a model", injected=2, survived=2)


def test_code_of_a_model_is_run_where_it_is_trusted(mark: Path, tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(Exception, match=r"has no attribute|does not|own"):
        load_model(with_own_code(tmp_path / "own", mark), trust_remote_code=True)
    assert mark.exists()


def test_the_script_of_a_data_set_is_not_run(
    mark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    tiny.model().save_pretrained(tmp_path / "run")
    tiny.tokenizer().save_pretrained(tmp_path / "run")
    assert traced(tmp_path / "run", folder) == 2
    assert "--probe" in capfd.readouterr().err
    for name in (str(folder), str(folder / "evil.py")):
        with pytest.raises(ValueError, match="holds files of the kinds"):
            open_dataset(name)
    assert not mark.exists()
    tally("code of a data set", injected=3, survived=3)


def plain(value: Any) -> bool:
    """Whether it is made of what JSON holds, and of nothing that only looks like it."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return type(value) in (str, int, float, bool, type(None)) or (type(value) is list and all(map(plain, value)))


def test_our_state_in_a_checkpoint_is_numbers_and_strings(tmp_path: Path, tally: Tally) -> None:
    model, settings = tiny.model(), {"schedule": Schedule(every=1, budget=0.5)}
    rows = {"held_out": CompletionLoss(Completions([[5, 6]] * 4, [[7, 8, 9]] * 4))}
    probes = {"a": tiny.probe(), "b": tiny.probe(seed=2)}
    for number, kind in enumerate((GeometryMonitor, hf.GeometryCallback, lightning.GeometryCallback)):
        mine = kind(probes, alpha_window=tiny.WINDOW, path=tmp_path / f"{number}.jsonl", **settings)
        _check_state(mine, model, tally)
    for number, kind in enumerate((BehaviourMonitor, BehaviourCallback, LightningBehaviour)):
        _check_state(kind(rows, path=tmp_path / f"b{number}.jsonl", **settings), model, tally)


def _check_state(mine: Any, model: torch.nn.Module, tally: Tally) -> None:
    monitor = getattr(mine, "_driven", mine)
    for step in range(4):
        monitor.step(model, step)
    if hasattr(mine, "_keep"):  # Trainer keeps it in trainer_state.json
        trainer = TrainerState()
        mine._keep(trainer)
        trainer.save_to_json(str(monitor.path) + ".state")
        state = trainer.stateful_callbacks
        assert TrainerState.load_from_json(str(monitor.path) + ".state").stateful_callbacks == state
    else:
        state = mine.state_dict()
    assert plain(state), state
    assert state
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    written = io.BytesIO()
    torch.save(state, written)
    assert torch.load(io.BytesIO(written.getvalue()), weights_only=True) == state
    monitor.close()
    tally("state in checkpoints")


_NAMES = ["WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"]
_NAMES += ["COMET_API_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "DATABASE_URL"]
SECRETS = {name: f"{name.lower()}-5ecre7-{number}" for number, name in enumerate(_NAMES)}
_RUN = """
import sys; sys.path[:0] = ["tests", "recipes"]
from pathlib import Path
from training.posttrain import Stage
from pretrain import PretrainSettings, main as pretrain
from geomcallbacks.cli import main
out = sys.argv[1]
pretrain(PretrainSettings(output_dir=f"{out}/run", dataset=f"{out}/texts.jsonl", vocab_size=300, hidden_size=16,
    layers=1, updates=6, batch_size=4, seq_length=16, warmup=2, threads=1, probe_rows=24, probe_length=16,
    positions="4", alpha_first=2, alpha_last=12, accelerator="cpu", wandb="offline"))
assert main(["trace", f"{out}/run"]) == 0
assert main(["report", f"{out}/run", "--out", f"{out}/report", "--format", "svg"]) == 0
"""


def test_no_secret_of_the_environment_is_left_anywhere(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "return", "def", "self", "value", "import", "for"]
    texts = [
        "\n".join(" ".join(rng.choices(words, k=8)) + f" {rng.randrange(10**4)}" for _ in range(12)) for _ in range(150)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    environment = {**os.environ, **SECRETS, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _RUN, str(tmp_path)]
    done = run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"geometry.jsonl", "geometry-trace.jsonl", "index.html", "settings.json"} <= {file.name for file in files}
    assert any(file.suffix == ".wandb" for file in files)
    left = {"the terminal": (done.stdout + done.stderr).encode()} | {str(file): file.read_bytes() for file in files}
    found = [(name, place) for name, value in SECRETS.items() for place, text in left.items() if value.encode() in text]
    assert found == []
    tally("secrets", len(SECRETS), len(SECRETS))


def test_secrets_in_addresses_reach_neither_terminal_nor_record(
    tmp_path: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tally: Tally
) -> None:
    address = "https://me:5ecre7@example.org/a/b?X-Amz-Signature=5ecre7"
    assert main(["trace", address]) == 2
    folder = tmp_path / "run"
    tiny.model().save_pretrained(folder / "checkpoint-3")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(f"403 Client Error for url '{address}'")

    monkeypatch.setattr("geomcallbacks.trace.measuring.load_model", fails)
    assert traced(folder, probe_file) == 1
    said = capfd.readouterr()
    record = (tmp_path / "g.jsonl").read_text()
    assert "403 Client Error for url 'https://example.org/a/b?…'" in record
    assert "example.org" in said.err
    assert "5ecre7" not in said.out + said.err + record
    assert printable("\x1b]0;x\x07 a\u202eb https://h/p ftp://u@h") == "\ufffd]0;x\ufffd a\ufffdb https://h/p ftp://h"
    tally("secrets", 2, 2)
