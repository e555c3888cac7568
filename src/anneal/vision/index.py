"""Index of a folder of images: arrays that are made once and kept on disk."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anneal.system import cache_folder, key_of
from anneal.vision import layouts
from anneal.vision.files import ImageSource, endings, stamp
from anneal.vision.layouts import Layout

ARRAYS = ("names", "ends", "labels")


class ImageFolder(ImageSource):
    """One split of a folder, with `notes` on what was left out and how it was made."""

    def __init__(self, folder: Path, notes: list[str], *arrays: Any) -> None:
        super().__init__(f"{folder}{os.sep}", *arrays)
        self.notes = notes

    @classmethod
    def splits(cls, root: Path, layout: Layout | None = None) -> dict[str, "ImageFolder"]:
        """Return `train`, `val` and, if there is one, `test` of a folder.

        The index is kept for the next run, in `cache_folder`. It is made again when a name in any
        folder below `root`, or the table of labels, has changed.
        """
        layout = layout or Layout()
        cache = cache_folder() / f"index-{key_of(layouts.base_of(root), layout)}"
        if (index := _load(cache)) is None:
            index = layouts.scan(root, layout)
            _store(cache, index)
        folder, task = Path(root, index["base"]), index["task"]
        names = layouts.class_names(root, index["classes"])
        return {
            split: cls(folder, notes, *(index[f"{split}_{a}"] for a in ARRAYS), names, task)
            for split, notes in index["splits"].items()
        }


# ---- the index on disk: a folder of arrays that are mapped into memory, not read


def _load(cache: Path) -> dict[str, Any] | None:
    """Return the stored index, if the folders it was made from have not changed."""
    try:
        index = json.loads((cache / "index.json").read_text())
        if index["endings"] != sorted(endings()):  # a plug-in of Pillow has come or gone
            return None
        if any(stamp(Path(path)) != old for path, old in index["sources"].items()):
            return None
        for split in index["splits"]:
            for name in ARRAYS:
                index[f"{split}_{name}"] = np.load(cache / f"{split}_{name}.npy", mmap_mode="r")
        return dict(index)
    except Exception:  # damaged in whatever way
        return None


def _store(cache: Path, index: dict[str, Any]) -> None:
    """Store the index as a whole; where nothing can be written, the next run makes it again."""
    about = {k: index[k] for k in ("base", "classes", "sources", "splits", "task")}
    about["endings"] = sorted(endings())
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache.parent, ignore_cleanup_errors=True) as folder:
            for split in index["splits"]:
                for name in ARRAYS:
                    np.save(Path(folder, f"{split}_{name}.npy"), index[f"{split}_{name}"])
            Path(folder, "index.json").write_text(json.dumps(about))
            shutil.rmtree(cache, ignore_errors=True)
            Path(folder).rename(cache)
