"""Samples that each rule of `SampleBudget` draws on images like those of a finished run, and what that costs.

    python tests/benchmarks/budget_samples.py [RECORDS.tsv ...] [--n 100000] [--draws 4] [--radii 0.5 0.25]

Binomial simulation, no network: each image of a record file hits its class with the probability (count + 1/2) / (n + 1)
that the file suggests (count / n would make unanimous images certain, which no rule could ever exhaust). The samples
that choose the class are not counted: they are the same for all. The last column is what a fixed n with the same
average radius would have to be: the honest price of stopping early.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddviz.budget import Rule, SampleBudget
from ddviz.records import Record, read_records
from ddviz.smoothing import SMOOTHINGS

RESULTS = Path(__file__).parents[2] / "notebooks" / "results" / "cifar10"
DEFAULT = [RESULTS / f"cifar10-resnet20-cohen-0.25-fs-l2-0.25-{kind}" / "records.tsv" for kind in ("fixed", "ds")]
L2 = SMOOTHINGS["l2"]
CUTS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)


def spent(budget: SampleBudget, records: Sequence[Record], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Radius (wrong and abstaining: 0) and samples of each record, `draws` times."""
    rng = np.random.default_rng(0)
    rows = []
    for record in records:
        p = (record.count + 0.5) / (record.n + 1)
        rule = budget.for_noise(L2, record.sigma)
        for _ in range(draws):
            count, drawn = one_image(rule, p, rng)
            radius = L2.certified_radius(record.sigma, rule.p_lower(count, drawn))
            rows.append((radius * record.correct, drawn))
    radii, samples = np.array(rows).T
    return radii, samples


def one_image(rule: Rule, p: float, rng: np.random.Generator) -> tuple[int, int]:
    """Hits and samples at which the rule stops."""
    count = drawn = 0
    while (until := rule.until(count, drawn)) > drawn:
        count += int(rng.binomial(until - drawn, p))
        drawn = until
    return count, drawn


def row(name: str, samples: np.ndarray, n: int, *cells: str) -> str:
    mean, median = samples.mean(), np.median(samples)
    return (
        f"| {name} | {mean:,.0f} | {n / mean:.1f}x | {median:,.0f} | {n / max(1, median):.1f}x | {' | '.join(cells)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("records", nargs="*", type=Path, default=DEFAULT)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--radii", nargs="*", type=float, default=[0.5, 0.25])
    args = parser.parse_args()

    for path in args.records:
        records = [record for record in read_records(path) if record.n]
        shares = [share for share in CUTS if share * args.n >= 100]
        cuts = [SampleBudget("fixed", round(args.n * share)) for share in shares]
        radii = [spent(cut, records, args.draws)[0].mean() for cut in cuts]
        full, samples = spent(SampleBudget("fixed", args.n), records, args.draws)
        print(f"\n{path.parent.name}: {len(records)} images, n={args.n}, alpha=0.001\n")
        print("| rule | mean | fewer | median | fewer | ACR, certified accuracy | fixed n of that ACR |")
        print("|---|---:|---:|---:|---:|---|---:|")
        print(row("fixed", samples, args.n, f"ACR {full.mean():.4f}", f"{args.n:,}"))
        for gain in (0.05, 0.1, 0.2):
            found, samples = spent(SampleBudget("staged", args.n, gain=gain), records, args.draws)
            same = np.interp(found.mean(), radii, [cut.n for cut in cuts])
            acr = f"ACR {found.mean():.4f} ({found.mean() / full.mean() - 1:+.1%})"
            print(row(f"staged, gain {gain}", samples, args.n, acr, f"{same:,.0f}"))
        for radius in args.radii:
            shown, samples = spent(SampleBudget("decide", args.n, radius=radius), records, args.draws)
            accuracy = f"{np.mean(shown > 0):.1%} at r = {radius} (fixed: {np.mean(full >= radius):.1%})"
            print(row(f"decide, r = {radius}", samples, args.n, accuracy, "-"))


if __name__ == "__main__":
    main()
