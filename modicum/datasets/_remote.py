"""Data at a URL that fsspec reads (s3://, gs://, https://, ...): copied into the cache, then a local path."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, need
from modicum.modalities._files import cache_dir


def is_url(data: Any) -> bool:
    """Whether `data` is a URL and no path."""
    return isinstance(data, str) and "://" in data


def fetch(url: str) -> Path:
    """A local copy of the file, or of every file below the folder, at `url`; made again where the original changed.

    UserError: nothing there, an unknown protocol, no access.
    """
    fsspec: Any = need("fsspec", "remote")
    try:
        system, root = fsspec.core.url_to_fs(url)
        root = root.rstrip("/")
        files = system.find(root) if system.isdir(root) else [root]
        marks = [f"{file} {system.ukey(file)}" for file in files]
        key = hashlib.blake2b("\n".join([url, *marks]).encode(), digest_size=16).hexdigest()
        top = cache_dir() / "remote" / key / Path(root).name
        for file in files:
            target = top / Path(file).relative_to(root) if file != root else top
            if not target.exists():
                with atomic_path(target) as temporary, system.open(file, "rb") as given, temporary.open("wb") as copy:
                    shutil.copyfileobj(given, copy, 1 << 24)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    if not files:
        raise UserError(f"{url}: the folder is empty")
    return top
