"""Claim: on texts, pre-training then fine-tuning on few labels is at least at TF-IDF's lower bound.

`wordnet-nouns` (82,115 glosses, 26 classes; 10 labels a class) and `fortunes` (14,396 quotations, 40 files; 400
labels); SimCLR between two views of a text (a span and single words deleted) with one dense layer over each token and
the mean of them, then scratch, probe and lp-ft beside TF-IDF + logistic regression with the same validation rows and
number of trials; intervals over labelled subsets, seeds and test rows.
"""

from __future__ import annotations

from _common import Bench
from _few import measure

OBJECTIVE = "simclr(views=views(delete=.3, drop=.3))"
ENCODER = "mlp(over='set', width=512, depth=1)"


def main() -> None:
    bench = Bench("texts", seeds=5, wordnet_epochs=12, fortunes_epochs=20)
    for data, epochs, few in (
        ("wordnet-nouns", bench.asked.wordnet_epochs, {"labels_per_class": 10}),
        ("fortunes", bench.asked.fortunes_epochs, {"labels": 400}),
    ):
        measure(bench, data, few, objective=OBJECTIVE, encoder=ENCODER, epochs=epochs, batch=512)
    bench.finish()


if __name__ == "__main__":
    main()
