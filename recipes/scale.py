"""What a measurement costs at sizes that nobody ran here: arithmetic on measured pieces and published figures.

    python recipes/scale.py        # make scale: the tables of README.md, section "Toward internet scale", as Markdown

Nothing is measured by this file. Seconds, bytes and floating-point operations throughout; `scale_check.py` holds the
same arithmetic against real measurements of small models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PEAK = 989e12  # H100 SXM, bf16, dense: NVIDIA's data sheet. TF32: 494e12; fp32 outside the tensor cores: 67e12
PEAK_FP64 = 67e12  # the same sheet, tensor cores
MEMORY = 80e9
#: Bytes a second at which a collective of many nodes moves a tensor: half of a node's eight links of 400 Gb/s
#: (Llama 3's RoCE cluster, arXiv 2407.21783, section 3.3.1). The half is an assumption.
BUS = 0.5 * 8 * 50e9
NVLINK = 0.5 * 450e9  # the same within one node of eight: 450e9 in each direction by the data sheet, half by assumption
TRAINING_BYTES = 16  # a parameter, its gradient and AdamW's state, mixed precision: ZeRO, arXiv 1910.02054
#: Measured on one H100 by a prototype of this package (seconds): the forward of an OLMo-2-1B shape over 2048 x 512
#: tokens, and spectra of n x d features by one float64 solve. In which precision the forward ran was not noted.
FORWARD_1B = 7.8
FORWARD_1B_TOKENS = 2048 * 512
SPECTRA = {(10_000, 2048): 0.027, (15_000, 4096): 0.126}
SOLVES = 2  # of the centred and of the uncentred moments
MATRICES = 4  # d x d float64 matrices alive in the solve: two moments, and eigvalsh's copy and workspace
LENGTH = 512  # tokens of a probe row
BATCH = 32  # rows at once, as by default
SHARE = 0.001  # of the training time


@dataclass(frozen=True)
class Model:
    """A dense decoder and how it was trained.

    Attributes:
        mfu: share of PEAK that training reaches, by 6 operations a parameter and token.
        tokens: of one update.
        updates: of the whole run.
    """

    name: str
    d: int
    layers: int
    feed_forward: int
    key_values: float  # heads of keys and values for each head of queries
    vocabulary: int
    mfu: float
    tokens: float
    updates: int

    @property
    def block_parameters(self) -> float:
        """Of all blocks, norms left out."""
        attention = (2 + 2 * self.key_values) * self.d**2
        return self.layers * (attention + 3 * self.d * self.feed_forward)

    @property
    def parameters(self) -> float:
        """With embedding and head, which share nothing."""
        return self.block_parameters + 2 * self.vocabulary * self.d

    def forward_flops(self, tokens: float, length: int = LENGTH) -> float:
        """Of the blocks, without the head, over rows of `length` tokens under a causal mask."""
        return tokens * (2 * self.block_parameters + 2 * length * self.d * self.layers)

    def update_seconds(self, gpus: int) -> float:
        """Of one training update."""
        return 6 * self.parameters * self.tokens / (gpus * self.mfu * PEAK)

    @property
    def least_gpus(self) -> int:
        """That hold the state of training."""
        return math.ceil(TRAINING_BYTES * self.parameters / MEMORY)


#: Shapes: OLMo 2, arXiv 2501.00656, and the models' config.json; Llama 3, arXiv 2407.21783, table 3. Batches and
#: tokens: the same papers and model cards. The MFU of OLMo 2 is an assumption; Llama's is 0.38 to 0.43 in its table 4.
MODELS = (
    Model("OLMo-2-1B", 2048, 16, 8192, 1.0, 100_352, 0.40, 2.1e6, 1_900_000),
    Model("OLMo-2-7B", 4096, 32, 11_008, 1.0, 100_352, 0.40, 4.2e6, 930_000),
    Model("OLMo-2-32B", 5120, 64, 27_648, 0.2, 100_352, 0.40, 8.4e6, 720_000),
    Model("Llama-3.1-405B", 16_384, 126, 53_248, 0.0625, 128_256, 0.41, 16e6, 975_000),
)
GPUS = (8, 64, 512, 4096)


def forward_rate() -> float:
    """Operations a second of the measured forward."""
    return MODELS[0].forward_flops(FORWARD_1B_TOKENS) / FORWARD_1B


def solve_seconds(size: int) -> float:
    """Both solves of a size x size Gram matrix; beyond the largest that was measured they grow with its cube."""
    seconds = {d: taken - 2 * n * d**2 / PEAK_FP64 for (n, d), taken in SPECTRA.items()}
    smallest, largest = min(seconds), max(seconds)
    if size >= largest:
        return SOLVES * seconds[largest] * (size / largest) ** 3
    power = math.log(seconds[largest] / seconds[smallest]) / math.log(largest / smallest)
    return SOLVES * seconds[smallest] * (size / smallest) ** power


@dataclass(frozen=True)
class Cost:
    """One measurement: seconds of its parts, bytes on each GPU beyond the model's, and seconds of an update."""

    forward: float
    gather: float
    reduce: float
    solve: float
    memory: float
    update: float

    @property
    def seconds(self) -> float:
        """All together: parameters are gathered while the batch before computes."""
        return max(self.forward, self.gather) + self.reduce + self.solve

    @property
    def interval(self) -> int:
        """Updates between two measurements that keep to SHARE."""
        return math.ceil(self.seconds / (SHARE * self.update))


def measurement(model: Model, gpus: int, n: int, positions: int = 1, batch: int = BATCH) -> Cost:
    """Of n features on data-parallel or fully sharded GPUs; each takes whole batches, as many as any other."""
    rows = math.ceil(n / positions)
    batch = min(batch, math.ceil(rows / gpus))
    rounds = math.ceil(math.ceil(rows / batch) / gpus)
    forward = model.forward_flops(rounds * batch * LENGTH) / forward_rate()
    bus = NVLINK if gpus <= 8 else BUS
    sharded = TRAINING_BYTES * model.parameters > MEMORY / 2
    gather = rounds * 2 * model.parameters / bus if sharded else 0.0
    size = min(n, model.d)
    kept = 8 * model.d**2 if n > model.d else 4 * n * model.d
    reduce, solve = 2 * kept / bus, solve_seconds(size)
    # Hidden states, the two halves of a gated feed-forward, queries, keys, values and mask in bf16, one block at a time
    memory = (
        2 * batch * LENGTH * (4 * model.d + 3 * model.feed_forward)
        + MATRICES * 8 * size**2
        + (kept if n <= model.d else 0)
    )
    return Cost(forward, gather, reduce, solve, memory, model.update_seconds(gpus))


def expected_rankme(eigenvalues_d: np.ndarray, n: int, points: int = 4000) -> float:
    """RankMe that n Gaussian rows give on average, where `eigenvalues_d` (d,) are those of the true covariance.

    The deterministic equivalent for large n and d: Silverstein's equation s = 1/v - (1/n) sum l v / (1 + l v) gives
    sum x / (x + s) = sum l v / (1 + l v) over the sample's eigenvalues x (Silverstein 1995, J. Multivariate Anal. 55),
    and their entropy follows from x ln x = integral of x / (1 + s) - x / (x + s) over s > 0.
    """
    p_d = eigenvalues_d / eigenvalues_d.sum()
    v = np.geomspace(1e-7, 1e12, points)
    shares = np.array([(p_d * x / (1 + p_d * x)).sum() for x in v])
    s = (1 - shares / n) / v
    keep = s > 1e-16
    s, shares = s[keep][::-1], shares[keep][::-1]
    integrand = 1 / (1 + s) - shares
    return float(np.exp(-np.trapezoid(integrand * s, np.log(s)) - integrand[0] * s[0]))


def power_law(d: int) -> np.ndarray:
    """Eigenvalues 1/i, (d,)."""
    return 1.0 / np.arange(1, d + 1)


def cost_table(positions: int) -> list[str]:
    """For each model and number of GPUs, n = 4 d."""
    names = "model | n | GPUs | update | forward | gather | solve | measurement | memory | interval | in a run"
    lines = [f"| {names} |", "|" + "---|" * 11]
    for model in MODELS:
        n = 4 * model.d
        for gpus in (gpus for gpus in GPUS if gpus >= model.least_gpus):
            cost = measurement(model, gpus, n, positions)
            parts = (cost.update, cost.forward, cost.gather, cost.solve, cost.seconds)
            shown = [f"{part:.2g} s" if part < 10 else f"{part:.0f} s" for part in parts]
            counts = (f"{cost.memory / 1e9:.1f} GB", f"{cost.interval:,}", f"{model.updates // cost.interval:,}")
            lines.append("| " + " | ".join([model.name, f"{n:,}", f"{gpus:,}", *shown, *counts]) + " |")
    return lines


def bias_table() -> list[str]:
    """How much of the true RankMe is seen, by n and d."""
    factors = (0.25, 0.5, 1, 2, 4, 8)
    head = ["d", "true", *(f"n = {factor:g} d" for factor in factors)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for d in sorted({model.d for model in MODELS}):
        true = expected_rankme(power_law(d), 10**9)
        seen = (expected_rankme(power_law(d), int(factor * d)) / true for factor in factors)
        lines.append(f"| {d:,} | {true:.0f} | " + " | ".join(f"{share:.3f}" for share in seen) + " |")
    return lines


def main() -> None:
    """Print the tables."""
    rate = forward_rate()
    print(f"Measured forward: {rate / 1e12:.0f} TFLOP/s, {rate / PEAK:.2f} of the bf16 peak\n")
    for positions in (1, 8):
        print(f"### positions={positions}\n", *cost_table(positions), "", sep="\n")
    print("### Share of the true RankMe that n rows show, eigenvalues 1/i\n", *bias_table(), sep="\n")


if __name__ == "__main__":
    main()
