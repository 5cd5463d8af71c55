"""Wisconsin diagnostic breast cancer: 30 measures of cell nuclei, malignant or benign (bundled with scikit-learn)."""

from __future__ import annotations

import pyarrow as pa
from sklearn.datasets import load_breast_cancer

from modicum.core.spec import part
from modicum.datasets.data import Data


def load() -> Data:
    """569 rows of 30 numbers; the label says malignant or benign."""
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    labels = y.map({0: "malignant", 1: "benign"})
    table = pa.Table.from_pandas(x.assign(label=labels), preserve_index=False).replace_schema_metadata(None)
    origin = "scikit-learn's load_breast_cancer (UCI 17)"
    return Data("breast-cancer", part("modality", "tables"), table, table, {}, "CC BY 4.0", origin)
