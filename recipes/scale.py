"""What a measurement costs at sizes that nobody ran here: arithmetic on measured pieces and published figures.

python recipes/scale.py        # make scale: the tables of README.md, section "Toward internet scale"
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from writing.markdown import table, table_of

PEAK = 989e12  # H100 SXM, bf16, dense: NVIDIA's data sheet. TF32: 494e12; fp32 outside the tensor cores: 67e12
PEAK_FP64 = 67e12  # the same sheet, tensor cores
MEMORY = 80e9
#: Bytes a second at which a collective of many nodes moves a tensor: half of a node's eight links of 400 Gb/s
#: (Llama 3's RoCE cluster, arXiv 2407.21783, section 3.3.1). The half is an assumption.
BUS = 0.5 * 8 * 50e9
NVLINK = 0.5 * 450e9  # the same within one node of eight: 450e9 in each direction by the data sheet, half by assumption
TRAINING_BYTES = 16  # a parameter, its gradient and AdamW's state, mixed precision: ZeRO, arXiv 1910.02054
#: Seconds on one H100, by a prototype: the forward of an OLMo-2-1B shape (precision not noted), spectra of n x d rows.
FORWARD_1B, FORWARD_1B_TOKENS = 7.8, 2048 * 512
SPECTRA = {(10_000, 2048): 0.027, (15_000, 4096): 0.126}
SOLVES = 2  # of the centred and of the uncentred moments
MATRICES = 4  # d x d float64 matrices alive in the solve: two moments, and eigvalsh's copy and workspace
LENGTH, BATCH = 512, 32  # tokens of a probe row, and rows at once, as by default
SHARE = 0.001  # of the training time


@dataclass(frozen=True)
class Model:
    """A dense decoder and how it was trained, at `mfu` of PEAK by 6 operations a parameter and token."""

    name: str
    d: int
    layers: int
    feed_forward: int
    key_values: float  # heads of keys and values for each head of queries
    vocabulary: int
    mfu: float
    tokens: float  # of one update
    updates: int

    @property
    def block_parameters(self) -> float:
        """Of all blocks, norms left out."""
        return self.layers * self.d * ((2 + 2 * self.key_values) * self.d + 3 * self.feed_forward)

    @property
    def parameters(self) -> float:
        """With embedding and head, which share nothing."""
        return self.block_parameters + 2 * self.vocabulary * self.d

    def forward_flops(self, tokens: float) -> float:
        """Of the blocks, without the head, over rows of LENGTH tokens under a causal mask."""
        return tokens * (2 * self.block_parameters + 2 * LENGTH * self.d * self.layers)


#: Shapes: OLMo 2, arXiv 2501.00656, and the models' config.json; Llama 3, arXiv 2407.21783, table 3. Batches and
#: tokens: the same papers and model cards. The MFU of OLMo 2 is an assumption; Llama's is 0.38 to 0.43 in its table 4.
MODELS = (
    Model("OLMo-2-1B", 2048, 16, 8192, 1.0, 100_352, 0.40, 2.1e6, 1_900_000),
    Model("OLMo-2-7B", 4096, 32, 11_008, 1.0, 100_352, 0.40, 4.2e6, 930_000),
    Model("OLMo-2-32B", 5120, 64, 27_648, 0.2, 100_352, 0.40, 8.4e6, 720_000),
    Model("Llama-3.1-405B", 16_384, 126, 53_248, 0.0625, 128_256, 0.41, 16e6, 975_000),
)
GPUS = (8, 64, 512, 4096)
FORWARD_RATE = MODELS[0].forward_flops(FORWARD_1B_TOKENS) / FORWARD_1B


@dataclass(frozen=True)
class Cost:
    """Seconds of a training update and of one measurement, its parts, and its bytes on each GPU."""

    update: float
    forward: float
    gather: float
    solve: float
    measurement: float
    memory: float

    @property
    def interval(self) -> int:
        """Updates between two measurements that keep to SHARE."""
        return math.ceil(self.measurement / (SHARE * self.update))


def cost_of(model: Model, gpus: int, n: int, positions: int = 1) -> Cost:
    """Return the cost of n features on data-parallel or fully sharded GPUs, which take as many whole batches each."""
    update = 6 * model.parameters * model.tokens / (gpus * model.mfu * PEAK)
    rows, bus, size = math.ceil(n / positions), NVLINK if gpus <= 8 else BUS, min(n, model.d)
    batch = min(BATCH, math.ceil(rows / gpus))
    rounds = math.ceil(math.ceil(rows / batch) / gpus)
    forward = model.forward_flops(rounds * batch * LENGTH) / FORWARD_RATE
    sharded = TRAINING_BYTES * model.parameters > MEMORY / 2
    gather = rounds * 2 * model.parameters / bus if sharded else 0.0  # while the batch before computes
    kept = 8 * model.d**2 if n > model.d else 4 * n * model.d
    # Both solves grow with the cube of the size, from the nearest that was measured.
    solves = {d: seconds - 2 * rows * d**2 / PEAK_FP64 for (rows, d), seconds in SPECTRA.items()}
    nearest = max((d for d in solves if d <= size), default=min(solves))
    solve = SOLVES * solves[nearest] * (size / nearest) ** 3
    # Hidden states, the two halves of a gated feed-forward, queries, keys, values and mask in bf16, one block at a time
    states = 2 * batch * LENGTH * (4 * model.d + 3 * model.feed_forward)
    memory = states + MATRICES * 8 * size**2 + (kept if n <= model.d else 0)
    return Cost(update, forward, gather, solve, max(forward, gather) + 2 * kept / bus + solve, memory)


def expected_rankme(eigenvalues_d: np.ndarray, n: int) -> float:
    """Return the RankMe that n Gaussian rows of these true eigenvalues (d,) give on average.

    Silverstein 1995, J. Multivariate Anal. 55: s = 1/v - (1/n) sum l v / (1 + l v) gives sum x / (x + s) =
    sum l v / (1 + l v) over the sample's eigenvalues x; x ln x = integral of x / (1 + s) - x / (x + s) over s > 0.
    """
    p_d = eigenvalues_d / eigenvalues_d.sum()
    v = np.geomspace(1e12, 1e-7, 4000)
    shares = np.array([(p_d * x / (1 + p_d * x)).sum() for x in v])
    s = (1 - shares / n) / v
    s, shares = s[s > 1e-16], shares[s > 1e-16]
    integrand = 1 / (1 + s) - shares
    return float(np.exp(-np.trapezoid(integrand * s, np.log(s)) - integrand[0] * s[0]))


def cost_row(model: Model, gpus: int, positions: int) -> dict[str, str]:
    """Return a row of the table of costs, for n = 4 d."""
    cost = cost_of(model, gpus, 4 * model.d, positions)
    cells = {"model": model.name, "n": f"{4 * model.d:,}", "GPUs": f"{gpus:,}"}
    for part in ("update", "forward", "gather", "solve", "measurement"):
        seconds = getattr(cost, part)
        cells[part] = f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    counts = {"interval": f"{cost.interval:,}", "in a run": f"{model.updates // cost.interval:,}"}
    return cells | {"memory": f"{cost.memory / 1e9:.1f} GB"} | counts


def main() -> None:
    """Print the tables."""
    print(f"Measured forward: {FORWARD_RATE / 1e12:.0f} TFLOP/s, {FORWARD_RATE / PEAK:.2f} of the bf16 peak")
    cells = [(model, gpus) for model in MODELS for gpus in GPUS if TRAINING_BYTES * model.parameters <= gpus * MEMORY]
    for positions in (1, 8):
        print(f"\n### positions={positions}\n\n{table_of([cost_row(*cell, positions) for cell in cells])}")
    bias, factors = [], (0.25, 0.5, 1, 2, 4, 8)
    for d in sorted({model.d for model in MODELS}):
        true, *seen = (expected_rankme(1 / np.arange(1, d + 1), int(n * d)) for n in (1e9, *factors))
        bias.append([f"{d:,}", f"{true:.0f}", *(f"{value / true:.3f}" for value in seen)])
    head = ["d", "true", *(f"n = {factor} d" for factor in factors)]
    print(f"\n### Share of the true RankMe that n rows show, eigenvalues 1/i\n\n{table(head, bias)}")


if __name__ == "__main__":
    main()
