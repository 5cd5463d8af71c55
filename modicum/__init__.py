"""Modicum: deep learning from a modicum of labels."""

from modicum.core.errors import UserError
from modicum.core.version import VERSION as __version__
from modicum.datasets.data import open_data
from modicum.model import Model, load
from modicum.training.fit import fit
from modicum.training.run import Run
from modicum.verbs.demo import demo
from modicum.verbs.diagnose import diagnose
from modicum.verbs.finetune import finetune
from modicum.verbs.generate import generate
from modicum.verbs.listing import listing
from modicum.verbs.pretrain import pretrain
from modicum.verbs.report import report
from modicum.verbs.use import embed, predict, reconstruct

__all__ = [
    "Model",
    "Run",
    "UserError",
    "__version__",
    "demo",
    "diagnose",
    "embed",
    "finetune",
    "fit",
    "generate",
    "listing",
    "load",
    "open_data",
    "predict",
    "pretrain",
    "reconstruct",
    "report",
]
