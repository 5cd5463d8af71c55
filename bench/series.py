"""Claim: on series, pre-training then fine-tuning on few labels is at least at the lower bound of the best baseline.

Four sets of the UCR and UEA archives (`italy-power-demand`, `gun-point`, `arrow-head`, `basic-motions`) with their own
test rows, the defaults of `modicum pretrain` and `finetune`: all training series without labels, then 5 labels a class;
scratch, MiniRocket + ridge, 1-NN DTW and logistic regression on the values beside it with the same validation rows and
number of trials; intervals over labelled subsets, seeds and test rows.
Run: python bench/series.py [--steps 500] [--seeds 5] [--record]
"""

from __future__ import annotations

from _common import Bench
from _few import measure

SETS = ("italy-power-demand", "gun-point", "arrow-head", "basic-motions")


def main() -> None:
    bench = Bench("series", steps=500, seeds=5)
    for data in SETS:
        measure(bench, data, {"labels_per_class": 5}, steps=bench.asked.steps)
    bench.finish()


if __name__ == "__main__":
    main()
