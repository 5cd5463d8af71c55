"""How fine-tuning begins: the head of the probe, and its penalty."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import zoo
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from modicum.core import seeds
from modicum.nn.encoder import Encoder
from modicum.training.apply import embed, predict
from modicum.training.transfer import RIDGES, Task, _untrained, linear_head, scaled


@pytest.mark.parametrize("tasks", [1, 2])
def test_numbers_begin_from_the_ridge_that_errs_least_on_rows_left_out(tasks: int) -> None:
    """Every penalty is fitted anew without each row, which is what leave-one-out means."""
    columns, numbers = load_diabetes(return_X_y=True)
    raw, rows, every = pa.table({f"c{k}": own for k, own in enumerate(columns.T)}), np.arange(40), np.arange(442)
    input = zoo.kind("tables").infer(raw, rows)
    with seeds.forked(0, "init"):
        encoder = Encoder.of(input, "mlp(width=16, depth=1)")
    source = input.pack(raw).source
    target = np.stack([numbers, np.roll(numbers, 1)], 1)[:, :tasks]
    task = Task(source, target if tasks > 1 else numbers, "numbers", tasks)
    objective = _untrained(encoder, "lp-ft", task, rows)
    linear_head(objective, task, rows)
    found = predict(objective, source, every).reshape(442, tasks)

    x, mean, std = scaled(embed(encoder, source, rows))
    new = (embed(encoder, source, every) - mean) / std
    chosen = []
    for k, y in enumerate(target[:40].T):
        unit = (y - y.mean()) / y.std()
        errors = [
            sum((unit[i] - Ridge(a).fit(x[rows != i], unit[rows != i]).predict(x[[i]])[0]) ** 2 for i in rows)
            for a in RIDGES
        ]
        chosen.append(RIDGES[int(np.argmin(errors))])
        wanted = Ridge(chosen[-1]).fit(x, unit).predict(new) * y.std() + y.mean()
        wanted = wanted.clip(y.min() - np.ptp(y) / 4, y.max() + np.ptp(y) / 4)
        assert np.allclose(found[:, k], wanted, rtol=1e-4)
    assert RIDGES[0] < chosen[0] < RIDGES[-1], "at the end of the range the test shows little"
