"""Claim: on tables, pre-training then fine-tuning on few labels is at least at the lower bound of the best baseline.

Four real tables (`breast-cancer`, `wine`, `diabetes`, `diamonds`), the defaults of `modicum pretrain` and `finetune`:
10 labels a class, or 100 labelled rows for numbers; scratch, logistic or ridge regression, SVM, gradient boosting and
1-NN beside it with the same validation rows and number of trials; intervals over labelled subsets, seeds and test rows.
Run: python bench/tables.py [--steps 500] [--seeds 5] [--record]
"""

from __future__ import annotations

from _common import Bench
from _few import measure

FEW: dict[str, dict[str, int]] = {
    "breast-cancer": {"labels_per_class": 10},
    "wine": {"labels_per_class": 10},
    "diabetes": {"labels": 100},
    "diamonds": {"labels": 100},
}


def main() -> None:
    bench = Bench("tables", steps=500, seeds=5)
    for data, few in FEW.items():
        measure(bench, data, few, steps=bench.asked.steps)
    bench.finish()


if __name__ == "__main__":
    main()
