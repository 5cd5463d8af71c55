"""Costs of encoders: FLOPs against hand counts, memory against what must be kept."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import zoo

from modicum.training.cost import BATCH, cost


def test_flops_are_those_counted_by_hand() -> None:
    # Two dense layers, 192 -> 16 -> 16, without batch norm: 2 FLOPs a weight.
    found = cost(zoo.trunk("mlp(width=16, norm='none')")())
    assert found.flops == 2 * (192 * 16 + 16 * 16)
    # A 5×5 stem of stride 2 on 8×8 pixels, then one block of two 3×3 convolutions.
    found = cost(zoo.trunk("convnet(width=4, stages=1)")())
    assert found.flops == 2 * 16 * (5 * 5 * 3 * 4 + 2 * 9 * 4 * 4)


def test_memory_is_at_least_what_backward_needs_and_of_its_order() -> None:
    trunk = zoo.trunk("mlp(width=512, norm='none', act='tanh')", dim=1, grid=(4,))()
    found = cost(trunk)
    kept = 4 * (2 * BATCH * 512 + sum(p.numel() for p in trunk.parameters()))  # two activations and all gradients
    assert kept <= found.memory <= 3 * kept
    assert 0 < found.training < found.forward


def test_listing_measures_every_encoder_that_needs_no_name() -> None:
    command = [sys.executable, "-m", "modicum", "list", "encoders", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(done.stdout.splitlines()[-1])["items"]}
    assert rows["mlp"]["parameters"] == 784 * 256 + 256 * 256 + 2 * 256 * (1 + 2)
    assert rows["convnet"]["can"] == ["pad_width", "stack"]
    assert rows["convnet"]["on"] == "28×28 grey pixels"


@pytest.mark.parametrize("row", zoo.TRUNKS, ids=str)
def test_every_trunk_can_be_measured(row: zoo.Row) -> None:
    found = cost(row.make())
    assert min(found.flops, found.forward, found.training, found.memory) > 0
