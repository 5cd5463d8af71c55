"""The code in docs/ runs, and does what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

from modicum.core import seeds
from modicum.core.spec import build
from modicum.nn.encoder import Encoder
from modicum.probes import ridge
from modicum.training.apply import embed

DOCS = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


def code(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))


def test_simclr_in_thirty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    page = next(page for page in DOCS if page.name == "simclr.md")
    source = code(page)
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) <= 30, len(lines)
    trained, untrained = (run(part) for part in (source, source.partition("for step in ")[0]))  # of the same seed
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0] - 0.05
    assert few_labels(trained) > few_labels(untrained) + 0.05  # over seeds 0 to 4, between .086 and .109 higher


def run(source: str) -> dict[str, Any]:
    """What the code leaves behind, with first weights that are the same every time."""
    room: dict[str, Any] = {}
    with seeds.forked(0):
        exec(compile(source, "page", "exec"), room)
    return room


def few_labels(room: dict[str, Any], draws: int = 5) -> float:
    """Accuracy of a linear rule from three labels a class on all other rows, over draws of the labels."""
    labels = room["data"].labels().values
    z = embed(room["objective"].encoder, room["batches"].source, room["rows"])
    found = []
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(z))
        bank = np.concatenate([order[labels[order] == c][:3] for c in range(10)])
        rest = np.setdiff1d(order, bank)
        found.append((ridge(z[bank], labels[bank], z[rest]) == labels[rest]).mean())
    return float(np.mean(found))


def test_the_published_settings_of_mae_hide_patches_from_the_encoder() -> None:
    page = next(page for page in DOCS if page.name == "objectives.md").read_text("utf-8")
    (command,) = re.findall(r"^```bash\nmodicum pretrain (.*?)\n```", page, re.M)
    _, *options = shlex.split(command)
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert set(given) == {"--objective", "--encoder"}
    encoder = Encoder.of(zoo.images()[0], given["--encoder"])  # the same on all images
    objective: Any = build("objective", given["--objective"], encoder=encoder)
    assert (objective.ratio, objective.normalise, objective.hiding.visible_only) == (0.75, True, True)


def test_many_models_as_the_page_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    page = next(page for page in DOCS if page.name == "diagnostics.md")
    exec(compile(code(page), str(page), "exec"), {})
    found = [float(v) for v in re.findall(r": ([\d.]+)", capsys.readouterr().out)]
    assert len(found) == 3
    assert min(found) < 0.15
    assert max(found) > 2 * min(found)
