"""What test_behaviour_distributed runs in each of two processes under DDP."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import tiny
import torch
import torch.distributed as dist
from test_hf import trainer

from geomcallbacks import Schedule
from geomcallbacks.behaviour import CompletionLoss, Completions, RolloutScore
from geomcallbacks.behaviour.hf import BehaviourCallback


def measures():
    rows = Completions.from_texts(
        tiny.texts(6, words=4), tiny.texts(6, words=5, seed=3), tiny.tokenizer(), max_length=20
    )
    score = RolloutScore(
        tiny.texts(3, words=3),
        lambda text, p: float(len(text)),
        tiny.tokenizer(),
        answer=str.strip,
        samples=2,
        max_new_tokens=4,
    )

    def by_rank(model):
        return {"rank": float(dist.get_rank()) + 0.1, "missing": float("nan")}

    def broken(model):
        raise KeyError("injected")

    return {"loss": CompletionLoss(rows), "task": score, "who": by_rank, "broken": broken}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    added = BehaviourCallback(measures(), schedule=Schedule(every=2, per_decade=0))
    made = trainer(folder / "run", [added], ddp_find_unused_parameters=False, gradient_checkpointing=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.train()
    said = [str(w.message) for w in caught if "was not measured" in str(w.message)]
    wrapped = type(made.model_wrapped).__name__
    ours = [row for row in made.state.log_history if "behaviour/loss/loss" in row]
    raised = ""
    again = trainer(
        folder / "raised", [BehaviourCallback({"broken": measures()["broken"]}, on_error="raise")], max_steps=1
    )
    try:
        again.train()
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    found = {"world": dist.get_world_size(), "wrapped": wrapped, "rows": ours, "said": said, "raised": raised}
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
