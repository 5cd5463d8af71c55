"""Handwritten digits, 8×8 (UCI Optical Recognition of Handwritten Digits, test part; bundled with scikit-learn)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from modicum.core.spec import part
from modicum.datasets.data import Data


def load() -> Data:
    """1,797 grey images of 10 classes; 540 of them, drawn once and stratified, are for testing."""
    images, labels = load_digits(return_X_y=True)
    test = train_test_split(np.arange(len(labels)), test_size=540, random_state=0, stratify=labels)[1]
    split = np.full(len(labels), "train", object)
    split[test] = "test"
    kind = part("modality", "images")
    raw = kind.as_raw((images * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8))  # type: ignore[attr-defined]
    table = pa.table({"id": [str(i) for i in range(len(labels))], "label": labels.astype(str), "split": split.tolist()})
    views = {"flip": 0.0, "crop": (0.5, 1.0)}
    return Data("digits", kind, raw, table, views, "CC BY 4.0", "scikit-learn's load_digits")
