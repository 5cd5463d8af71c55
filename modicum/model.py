"""`load(run)`: a trained model that takes arrays, lists, DataFrames and paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core import seeds
from modicum.core.device import choose_device
from modicum.core.errors import UserError
from modicum.core.ragged import join
from modicum.core.spec import build
from modicum.core.types import Batch, Input, Objective, Packed
from modicum.datasets.data import Data, open_data
from modicum.maths.sampling import Sampler
from modicum.nn.encoder import Tower
from modicum.training.apply import batches_of, embed, evaluating, predict
from modicum.training.run import Run


class Model:
    """The trained objective of a run, for use: `embed`, `predict`, `predict_proba`, `reconstruct`, `sample`.

    Every method takes rows as a path, a built-in name, a numpy array, a list or a DataFrame.
    """

    def __init__(self, run: Run, objective: Objective) -> None:
        self.run, self.objective = run, objective
        self.classes: list[str] = run.spec.get("classes", [])
        self.tasks: list[str] = run.spec.get("tasks", [])

    @property
    def encoder(self) -> Tower:
        """The encoder (the first tower of a pair)."""
        return next(iter(self.objective.encoders().values()))

    @property
    def input(self) -> Input:
        """What the encoder takes."""
        return self.encoder.input

    def open(self, x: Any, *, skip_bad: bool = False) -> tuple[Data, Packed]:
        """Rows of x, packed for the encoder; bad ones are an error, or left out with `skip_bad`."""
        data = open_data(x, type(self.input))
        packed = self.input.pack(data.raw, skip_bad=skip_bad)
        return (data.take(packed.keep) if packed.bad else data), packed

    def embed(self, x: Any) -> np.ndarray:
        """Features (n, d) float32."""
        packed = self.open(x)[1]
        return embed(self.encoder, packed.source, np.arange(packed.source.size))

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities (n, classes), in the order of `classes`."""
        if not self.classes:
            raise UserError(f"{self.run.path} predicts {self.what()}; probabilities need a run of finetune on classes")
        return self.outputs(self.open(x)[1])

    def predict(self, x: Any) -> np.ndarray:
        """Class names (n,), or numbers (n,) in the target's units."""
        out = self.outputs(self.open(x)[1])
        return np.array(self.classes)[out.argmax(1)] if self.classes else out

    def outputs(self, packed: Packed, rows: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (n, classes) or numbers (n,) of packed rows: all, or those of the index `rows`."""
        index = np.arange(packed.source.size) if rows is None else rows
        self.able("predict")
        return predict(self.objective, packed.source, index)

    def able(self, method: str) -> Callable[..., Any]:
        """The objective's method `predict`, `reconstruct` or `sample`; UserError where it has none."""
        found: Callable[..., Any] | None = getattr(self.objective, method, None)
        if found is None and method == "predict":
            raise UserError(
                f"{self.run.path} predicts {self.what()}: run  modicum finetune {self.run.path} DATA  first"
            )
        if found is None:
            which = {"reconstruct": "autoencoder", "sample": "next_token or vae"}[method]
            raise UserError(f"{self.run.path} does not {method}: pre-train with --objective {which}")
        return found

    def sample(
        self,
        n: int = 8,
        *,
        prompt: str | None = None,
        length: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Batch:
        """`n` new rows in raw units, of at most `length` tokens; texts may begin with `prompt`."""
        draw, device = self.able("sample"), next(self.objective.parameters()).device
        choose = Sampler(seeds.generator(seed, "sample", device=device), temperature, top_k, top_p)
        begun = self.input.prompt(prompt, n, length)
        begun = None if begun is None else {k: v.to(device) for k, v in begun.items()}
        with evaluating(self.objective):
            made: Batch = draw(n, choose, begun, length)
        return {key: value.cpu() for key, value in made.items()}

    def what(self) -> str:
        """What the run predicts, in words."""
        return "numbers" if hasattr(self.objective, "predict") else "nothing (it is a pre-training run)"

    def reconstruct(self, x: Any) -> tuple[Batch, np.ndarray]:
        """The rows rebuilt in raw units, and each row's mean error (n,); for autoencoders."""
        return self.rebuild(self.open(x)[1])

    def rebuild(self, packed: Packed, rows: np.ndarray | None = None) -> tuple[Batch, np.ndarray]:
        """`reconstruct` of packed rows: all, or those of the index `rows`."""
        index, rebuild = np.arange(packed.source.size) if rows is None else rows, self.able("reconstruct")
        device = next(self.objective.parameters()).device
        with evaluating(self.objective):
            parts = [rebuild(b) for b in batches_of(packed.source, index, device)]
        batch = {key: value.cpu() for key, value in join([p[0] for p in parts]).items()}
        return batch, torch.cat([p[1] for p in parts]).cpu().numpy()


def load(run: str | Path | Run, *, device: str | torch.device = "cpu") -> Model:
    """The model of a finished run's folder, on the device: auto, cpu, cuda or a torch.device."""
    where = choose_device(device)
    opened = run if isinstance(run, Run) else Run.open(run)
    parts = opened.spec.get("parts", {})
    if "objective" not in parts:
        raise UserError(f"{opened.path} records no model in its spec.json")
    objective: Objective = build("objective", parts["objective"])
    opened.load_model(objective)
    return Model(opened, objective.to(where).eval())
