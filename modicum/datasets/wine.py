"""Chemical analysis of Italian wines of three cultivars (UCI 109; bundled with scikit-learn)."""

from __future__ import annotations

import pyarrow as pa
from sklearn.datasets import load_wine

from modicum.core.spec import part
from modicum.datasets.data import Data


def load() -> Data:
    """178 rows of 13 numbers; the label is one of three cultivars."""
    x, y = load_wine(return_X_y=True, as_frame=True)
    labels = y.map({0: "cultivar 1", 1: "cultivar 2", 2: "cultivar 3"})
    table = pa.Table.from_pandas(x.assign(label=labels), preserve_index=False).replace_schema_metadata(None)
    return Data("wine", part("modality", "tables"), table, table, {}, "CC BY 4.0", "scikit-learn's load_wine (UCI 109)")
