"""Progression of diabetes a year after ten baseline measures (Efron et al. 2004; bundled with scikit-learn)."""

from __future__ import annotations

import pyarrow as pa
from sklearn.datasets import load_diabetes

from modicum.core.spec import part
from modicum.datasets.data import Data

NAMES = {"bp": "blood pressure", "s1": "cholesterol", "s2": "ldl", "s3": "hdl", "s4": "cholesterol / hdl"}
NAMES |= {"s5": "log triglycerides", "s6": "glucose"}


def load() -> Data:
    """442 rows of 9 numbers and the sex (coded 1 and 2 in the source); the target is a measure from 25 to 346."""
    x, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    frame = x.rename(columns=NAMES).assign(sex=x["sex"].astype(int).astype(str), target=y)
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    origin = "scikit-learn's load_diabetes (Least Angle Regression, Annals of Statistics 2004)"
    return Data("diabetes", part("modality", "tables"), table, table, {}, "public domain", origin)
