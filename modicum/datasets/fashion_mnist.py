"""Fashion-MNIST: 28×28 grey pictures of clothes (Xiao, Rasul & Vollgraf 2017)."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError
from modicum.core.spec import part
from modicum.datasets.data import Data
from modicum.modalities._files import cache_dir

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
UPSTREAM = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FILES = {  # MD5 sums as published in the upstream README
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load() -> Data:
    """60,000 training and 10,000 test images of 10 classes."""
    kind = part("modality", "images")
    raw, table = kind.scan(_folder())  # type: ignore[attr-defined]
    codes = pc.cast(table.column("label"), pa.int64())
    table = table.set_column(table.column_names.index("label"), "label", pa.array(CLASSES).take(codes.combine_chunks()))
    return Data("fashion-mnist", kind, raw, table, {}, "MIT", "https://github.com/zalandoresearch/fashion-mnist")


def _folder() -> Path:
    """Where the four files are: Debian's package, else the cache, filled from upstream and checked."""
    if all((DEBIAN / name).exists() for name in FILES):
        return DEBIAN
    folder = cache_dir() / "fashion-mnist"
    for name, md5 in FILES.items():
        if not (folder / name).exists():
            _fetch(name, md5, folder / name)
    return folder


def _fetch(name: str, md5: str, path: Path) -> None:
    try:
        with atomic_path(path) as temporary:
            with urllib.request.urlopen(f"{UPSTREAM}/{name}", timeout=30) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
            found = hashlib.md5(temporary.read_bytes(), usedforsecurity=False).hexdigest()
            if found != md5:
                raise UserError(f"{name} from {UPSTREAM} has MD5 {found}, wanted {md5}: download it by hand to {path}")
    except OSError as error:
        raise UserError(
            f"fashion-mnist is not on this machine and could not be downloaded ({error}). Either  apt-get install "
            f"dataset-fashion-mnist  or put {', '.join(FILES)} from {UPSTREAM} into {path.parent}"
        ) from None
