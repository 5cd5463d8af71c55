"""Folders of files, a sample a file: which files there are, and what the names of their folders mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from modicum.core.errors import UserError
from modicum.modalities._imagearrays import SPLITS

CLUTTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
UNLABELLED = ("unlabeled", "unlabelled")


def name_of(name: str) -> str:
    """A file's name as valid text: Linux allows any bytes in it."""
    return os.fsencode(name).decode("utf-8", "replace")


def walk(folder: Path) -> Iterator[tuple[str, ...]]:
    """The files below a folder as parts of their relative paths; hidden ones and system clutter left out."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error

    seen = set()  # links to folders are followed, but never around a circle
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        shown = (f for f in folders if not f.startswith(".") and f not in CLUTTER)
        folders[:] = sorted(f for f in shown if os.path.realpath(os.path.join(root, f)) not in seen)
        base = Path(root).relative_to(folder).parts
        yield from ((*base, f) for f in files if not f.startswith(".") and f not in CLUTTER)


def meaning(files: list[tuple[str, ...]], folder: Path) -> tuple[list[str | None], list[str | None]]:
    """The label and the split of every file, from the names of its folders."""
    tops = {parts[0] for parts in files if len(parts) > 1}
    known = {top for top in tops if top.lower() in (*SPLITS, *UNLABELLED)}
    if {SPLITS.get(top.lower()) for top in known} >= {"train", "test"} and known != tops:
        others = ", ".join(sorted(tops - known)[:5])
        raise UserError(
            f"{folder}: has the splits {', '.join(sorted(known))} beside other folders ({others}); "
            "move the others away, or rename the splits if they are classes"
        )
    if not tops or known != tops:
        return [name_of(parts[0]) if len(parts) > 1 else None for parts in files], [None] * len(files)
    labels, splits = [], []
    for parts in files:
        top = parts[0].lower() if len(parts) > 1 else ""
        labels.append(name_of(parts[1]) if len(parts) > 2 and top in SPLITS else None)
        splits.append("train" if top in UNLABELLED else SPLITS.get(top))
    return labels, splits
