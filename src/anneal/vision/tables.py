"""Images with labels in a table, CSV or Parquet, or in the names of files."""

import csv
import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anneal.errors import UserError, did_you_mean, read_text, reading
from anneal.vision.files import sort_out, stamp, walk
from anneal.vision.splits import Listing, split_of

USUAL = {  # names of columns, the likeliest first
    "path": "path filepath file_path image_path filename file_name file image_id image id",
    "label": "label labels class class_name target category",
    "split": "split",
    "group": "group",
}
VALID = {"True": "val", "False": "train"}  # as in a column is_valid of fastai's
INTEGER = r"[+-]?\d+"


def listed(root: Path, layout: Any, sources: dict[str, str]) -> Listing:
    """Return what a table or the names of files say; raise UserError if that makes no sense."""
    name, base, table = (_read if layout.labels else _names)(root, layout, sources)
    path, labels, split, group = (_column(table, name, kind, layout) for kind in USUAL)
    others = [column for column in table.columns if column not in (path, split, group)]
    if not labels and (len(others) == 1 or _numbers(table[others]).isin([0, 1]).all(axis=None)):
        labels = others
    if not labels:
        raise UserError(f"{name}: set data.label_column to some of {', '.join(others)}")
    labels = labels if isinstance(labels, list) else [labels]
    used = [column for column in (path, *labels, split, group) if column]
    if twice := [column for column in dict.fromkeys(used) if used.count(column) > 1]:
        raise UserError(f"{name}: {twice[0]} can't stand for two of path, label, split and group")
    table = table[used].drop_duplicates()
    table = table.sort_values(path, ignore_index=True)
    if (more := table[path].duplicated()).any():
        first = table[path][more].iloc[0]
        raise UserError(f"{name}: images with several lines that differ: {more.sum()}, at {first}")
    try:
        task, names, targets = _targets(table[labels], layout.task, layout.label_separator)
        named = table[split].replace(VALID) if split else ["train"] * len(table)
        splits = [str(split_of(name)) for name in named]
        if "None" in splits:
            row = splits.index("None")
            raise ValueError(row, f"{split} is {table[split][row]!r}: neither train, val nor test")
    except ValueError as e:
        row, reason = e.args
        raise UserError(f"{name}: {reason}, at {table[path][row]}") from None
    groups = table[group].to_numpy(str) if group else None
    return Listing(base, table[path].tolist(), targets, np.array(splits), names, task, groups)


def _read(root: Path, layout: Any, sources: dict[str, str]) -> tuple[str, Path, pd.DataFrame]:
    """Return a table's name, the folder that its paths lie below, and its cells, as text."""
    file = next((p for p in (Path(layout.labels), root / layout.labels) if p.is_file()), None)
    if file is None:
        raise UserError(f"data.labels={layout.labels}: no such file, nor in {root}")
    sources[str(file)] = stamp(file)
    with reading(file):
        if file.suffix.lower() in (".parquet", ".pq"):
            try:
                join = layout.label_separator.join
                cells = pd.read_parquet(file).astype(object)
                cells = cells.map(lambda c: join(map(str, c)) if isinstance(c, np.ndarray) else c)
                table = cells.where(cells.notna(), "").map(str)
            except ImportError as e:
                raise UserError(f"{file}: pyarrow reads Parquet: pip install pyarrow") from e
        else:
            text = read_text(file)
            mark = max(",;\t", key=text.partition("\n")[0].count)
            found = csv.reader(StringIO(text), delimiter=mark, skipinitialspace=True)
            head, *rows = [row for row in found if any(row)] or [[]]
            for row in rows:
                if len(row) != len(head):
                    line = mark.join(row)
                    raise ValueError(f"{len(row)} cells, not {len(head)}, in the line {line}")
            table = pd.DataFrame(rows, columns=head, dtype=object)
            table = table.loc[:, ~table.columns.duplicated()]
            if mark == ";":  # then numbers have a decimal comma
                table = table.replace(rf"^({INTEGER}),(\d+)$", r"\1.\2", regex=True)
    # As objects: with pyarrow, some of pandas's functions of text differ.
    table = table.rename(columns=str.strip).map(str.strip).astype(object)
    path = _column(table, str(file), "path", layout)
    if not len(table):
        raise UserError(f"{file} has no lines below its names of columns")
    if not path:
        raise UserError(f"{file}: set data.path_column to one of {', '.join(table.columns)}")
    base, table[path] = _find(table[path].tolist(), root, file, sources)
    return str(file), base, table


def _names(root: Path, layout: Any, sources: dict[str, str]) -> tuple[str, Path, pd.DataFrame]:
    """Return what a pattern finds in the names of files, a column for each of its groups."""
    name = f"data.label_pattern={layout.label_pattern}"
    paths, _ = sort_out(root, walk(root, sources))
    try:
        stems = pd.Series([Path(path).stem for path in paths], dtype=object)
        table = stems.str.extract(f"^(?:{layout.label_pattern})$").fillna("").rename(columns=str)
    except (re.error, ValueError) as e:
        raise UserError(f"{name}: {e}; such as (?P<label>[a-z]+)_.*") from e
    odd = [path for path, empty in zip(paths, (table == "").all(axis=1), strict=True) if empty]
    if odd or not paths:
        fits = f"{len(paths) - len(odd):,} of {len(paths):,} names of images in {root}"
        raise UserError(f"{name} fits {fits}{', not ' + odd[0] if odd else ''}")
    tops = [path.partition("/")[0] for path in paths]
    if all(map(split_of, tops)):
        table["split"] = tops
    return name, root, table.assign(path=paths)


def _column(table: pd.DataFrame, name: str, kind: str, layout: Any) -> Any:
    """Return the columns of a kind that are asked for, or one of a usual name, or None."""
    asked = getattr(layout, f"{kind}_column")
    if asked is None:
        lower = {column.lower(): column for column in table.columns}
        return next((lower[usual] for usual in USUAL[kind].split() if usual in lower), None)
    for column in asked if isinstance(asked, list) else [asked]:
        if column not in table.columns:
            near, has = did_you_mean(column, table.columns), ", ".join(table.columns)
            raise UserError(f"data.{kind}_column={column}: {name} has only {has}{near}")
    return asked


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    return table.replace({"True": "1", "False": "0"}).apply(pd.to_numeric, errors="coerce")


def _targets(table: pd.DataFrame, task: Any, separator: str) -> tuple[str, list[str], np.ndarray]:
    """Return the task, the names of its outputs, and the targets.

    Raises:
        ValueError: With the row of a label that makes no sense, and the reason.
    """
    numbers, columns, first = _numbers(table), list(table.columns), table.iloc[:, 0]
    binary, is_list = numbers.isin([0, 1]), first.str.contains(separator, regex=False).any()
    if task is None and len(columns) > 1:
        task = "multilabel" if binary.all(axis=None) else "regression"
    elif task is None:
        text = first[~first.str.lower().isin(["", "nan", "na", "null", "none"])]
        real = pd.to_numeric(text, errors="coerce").notna().all()
        real &= not text.str.fullmatch(INTEGER).all()
        task = "multilabel" if is_list else "regression" if real else "classification"
    if task == "multilabel" and len(columns) == 1:
        if binary.all(axis=None):
            raise ValueError(0, f"{columns[0]} is 0 or 1, two classes: data.task=classification")
        between = rf"\s*{re.escape(separator)}\s*"
        table = first.str.replace(between, separator, regex=True).str.get_dummies(separator)
        return task, list(table.columns), table.to_numpy(np.float32)
    if task != "classification":
        right = numbers.abs() <= np.finfo(np.float32).max if task == "regression" else binary
        for row, column in np.argwhere(~right.to_numpy())[:1]:
            kind = "no finite number" if task == "regression" else "neither 0 nor 1"
            n, odd = (~right).to_numpy().sum(), table.iloc[row, column]
            raise ValueError(row, f"labels that are {kind}: {n}, {columns[column]} is {odd!r}")
        return task, columns, numbers.to_numpy(np.float32)
    if len(columns) > 1:
        raise ValueError(0, f"classes stand in one column, and these are {len(columns)}")
    if (empty := first == "").any():
        raise ValueError(empty.idxmax(), f"empty labels: {empty.sum()}")
    classes = sorted(first.unique(), key=int if first.str.fullmatch(INTEGER).all() else str)
    return task, classes, pd.Categorical(first, classes).codes.astype(np.int64)


def _find(paths: list[str], root: Path, file: Path, sources: dict[str, str]) -> Any:
    """Return the folder that images lie below, and their paths there, with their endings."""
    if absolute := all(map(os.path.isabs, paths)):
        root = Path(os.path.commonpath(map(os.path.dirname, paths)))
    wanted = [os.path.relpath(path, root) if absolute else os.path.normpath(path) for path in paths]
    tried = []
    for base in filter(Path.is_dir, dict.fromkeys((root, file.parent))):
        stamps: dict[str, str] = {}
        images, _ = sort_out(base, walk(base, stamps))
        known: dict[str, list[str]] = {}  # by less than the path
        for image in images:
            stem = os.path.splitext(image)[0]
            for key in {stem, *map(os.path.basename, (image, stem))}:
                known.setdefault(key, []).append(image)
        known |= {image: [image] for image in images}
        found = [known.get(path, []) for path in wanted]
        lost = [path for path, of in zip(wanted, found, strict=True) if len(of) != 1]
        tried.append((len(lost), base, lost))
        if not lost:
            sources |= stamps
            return base, [of[0] for of in found]
    n, base, lost = min(tried, key=lambda found: found[0])
    of = f"{n:,} of {len(paths):,} images are not in {base}, or several times"
    raise UserError(f"{file}: {of}, such as {lost[0]}")
