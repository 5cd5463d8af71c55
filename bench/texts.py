"""Claim: on texts, pre-training then fine-tuning on few labels is at least at TF-IDF's lower bound.

`wordnet-nouns` (82,115 glosses, 26 classes; 10 labels a class) and `fortunes` (14,396 quotations, 40 files; 400
labels); masked prediction with the default transformer, then scratch, probe and lp-ft beside TF-IDF + logistic
regression with the same validation rows and number of trials; intervals over labelled subsets, seeds and test rows.
"""

from __future__ import annotations

from _common import Bench
from _few import measure


def main() -> None:
    bench = Bench("texts", seeds=5, wordnet_epochs=6, fortunes_epochs=20)
    for data, epochs, few in (
        ("wordnet-nouns", bench.asked.wordnet_epochs, {"labels_per_class": 10}),
        ("fortunes", bench.asked.fortunes_epochs, {"labels": 400}),
    ):
        measure(bench, data, few, objective="masked(ratio=.3)", epochs=epochs, batch=128, lr=2e-3)
    bench.finish()


if __name__ == "__main__":
    main()
