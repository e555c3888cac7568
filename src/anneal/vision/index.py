"""A folder of pictures as an index in arrays, which is made once and kept on disk."""

import json
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anneal.system import cache_folder, key_of
from anneal.vision import layouts
from anneal.vision.files import read_file

ARRAYS = ("names", "ends", "labels")


class ImageFolder:
    """One split. Its index is three arrays, so that any number of processes share it.

    Args:
        folder: Folder of the split.
        class_names: One for each label.
        names: Paths in the folder, UTF-8, one after the other.
        ends: (N,) int64, where each path ends in `names`.
        labels: (N,) int64.
    """

    def __init__(
        self,
        folder: Path,
        class_names: list[str],
        names: np.ndarray,
        ends: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        self.folder = folder
        self.class_names = class_names
        self.names = names
        self.ends = ends
        self.labels = labels

    @classmethod
    def splits(cls, root: Path, cache_dir: Path | None = None) -> dict[str, "ImageFolder"]:
        """`train`, `val` and, if there is one, `test` of a folder.

        Args:
            root: In one of the layouts of `anneal.vision.layouts`.
            cache_dir: Where the index is kept for the next time; None: ~/.cache/anneal. It is made
                anew when any folder below `root` has changed.

        Raises:
            UserError: The folder is in no such layout, or its parts disagree.
        """
        base = layouts.base_of(root)
        cache = _cache_of(base, cache_dir)
        if (index := _load(cache)) is None:
            index = layouts.scan(root)
            _store(cache, index)
        names = layouts.class_names(root, index["classes"])
        return {
            split: cls(base / split, names, *(index[f"{split}_{a}"] for a in ARRAYS))
            for split in index["splits"]
        }

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return read_file(self.path(index))

    def path(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.path.join(
            self.folder, os.fsdecode(self.names[start : self.ends[index]].tobytes())
        )

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self), generator=generator)


# ---- the index on disk: a folder of arrays that are mapped into memory, not read


def _cache_of(base: Path, cache_dir: Path | None) -> Path:
    return (cache_dir or cache_folder()) / f"index-{key_of(base)}"


def _load(cache: Path) -> dict[str, Any] | None:
    """The stored index, if the folders it was made from have not changed."""
    try:
        index = json.loads((cache / "index.json").read_text())
        if any(layouts.stamp(Path(p)) != stamp for p, stamp in index["sources"].items()):
            return None
        for split in index["splits"]:
            for name in ARRAYS:
                index[f"{split}_{name}"] = np.load(cache / f"{split}_{name}.npy", mmap_mode="r")
        # A new test folder changes none of the others.
        test = (Path(index["base"]) / "test").is_dir()
        return index if test == index["has_test"] else None
    except Exception:  # damaged in whatever way
        return None


def _store(cache: Path, index: dict[str, Any]) -> None:
    """Whole or not at all; where nothing can be written, the next run makes it again."""
    about = {k: index[k] for k in ("classes", "sources", "splits")}
    base = Path(next(iter(index["sources"]))).parent
    about |= {"base": str(base), "has_test": (base / "test").is_dir()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=cache.parent))
        for split in index["splits"]:
            for name in ARRAYS:
                np.save(folder / f"{split}_{name}.npy", index[f"{split}_{name}"])
        (folder / "index.json").write_text(json.dumps(about))
        shutil.rmtree(cache, ignore_errors=True)
        folder.rename(cache)
    except OSError:
        pass
