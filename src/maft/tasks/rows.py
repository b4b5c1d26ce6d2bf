"""Rows of questions: from local JSONL, JSON, CSV and Parquet files, and from data sets of the Hugging Face hub."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maft.errors import DataError, MissingExtra


class Row(NamedTuple):
    """One row, with its place for messages."""

    where: str
    """Such as `train.jsonl, line 3`."""
    fields: dict[str, Any]


def from_file(path: Path) -> list[Row]:
    """Read a file by its suffix (.csv, .tsv, .parquet, .json, else JSONL), or all .json files of a folder.

    Raises:
        DataError: it cannot be read; names the line.
    """
    if path.is_dir():
        return _from_folder(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _from_parquet(path)
    text = _read(path)
    if kind in (".csv", ".tsv"):
        return list(_from_csv(text, path, "\t" if kind == ".tsv" else ","))
    if kind == ".json" and (rows := _from_json(text, path)) is not None:
        return rows
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): JSON leaves U+2028 inside a text as it is
    return [_row(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def from_dataset(name: str, subset: str | None, split: str) -> list[Row]:
    """Read a split of a data set: by hub name, or from a folder of `datasets` or one with JSON files by split.

    Raises:
        DataError: it cannot be found, reached or read.
        MissingExtra: `datasets` is not installed.
    """
    folder = Path(name)
    saved = (folder / "dataset_dict.json").is_file(), (folder / "state.json").is_file()
    if not any(saved) and next((folder / split).rglob("*.json"), None) is not None:
        return _from_folder(folder / split)
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"the data set {name}", "tasks") from None
    try:
        if saved[0]:
            return _numbered(datasets.load_from_disk(name)[split], f"{name}, {split}")
        if saved[1]:
            return _numbered(datasets.load_from_disk(name), name)
        return _numbered(datasets.load_dataset(name, subset, split=split), f"{name}, {split}")
    except Exception as error:  # without a network, the libraries beneath raise whatever they please
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        raise DataError(
            f"the data set {name} (subset {subset or 'default'}, split {split}) cannot be read: {said}. Check "
            "task.dataset, task.subset and the splits, and the network, or read local files with task.train_file."
        ) from None


def _numbered(rows: Any, where: str) -> list[Row]:
    return [Row(f"{where}, row {number}", fields) for number, fields in enumerate(rows, 1)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Check task.train_file and task.eval_file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}. Convert it to UTF-8.") from None


def _from_folder(path: Path) -> list[Row]:
    rows = [row for file in sorted(path.rglob("*.json")) for row in from_file(file)]
    if not rows:
        raise DataError(f"{path} holds no .json files. Give a file, or a folder with a question in each .json file.")
    return rows


def _from_json(text: str, path: Path) -> list[Row] | None:
    """Read one object or a list of them; None where the text is neither, so that its lines may be."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, list):
        return [_row(text, str(path))]
    return [_row(json.dumps(entry), f"{path}, entry {number}") for number, entry in enumerate(tree, 1)]


def _row(text: str, where: str) -> Row:
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair, "\\ud800", is JSON but no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}. Got {text[:80]!r}.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where} must be a JSON object, got {type(fields).__name__}.")
    return Row(where, fields)


def _from_csv(text: str, path: Path, delimiter: str) -> Iterator[Row]:
    """Read lines under a header; an empty cell is None."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or not all(header):
            raise DataError(f"{path} must name each column once in its first line, got {', '.join(header)}.")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{where} has {len(cells)} cells, the header has {len(header)}. Quote cells with commas."
                )
            if cells:
                yield Row(where, dict(zip(header, (cell or None for cell in cells), strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, is not CSV: {error}.") from None


def _from_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("reading Parquet files", "tasks") from None
    try:
        return _numbered(pyarrow.parquet.read_table(path).to_pylist(), str(path))
    except FileNotFoundError as error:
        said = error.strerror or "No such file or directory"
        raise DataError(f"{path}: {said}. Check task.train_file and task.eval_file.") from None
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a Parquet file that can be read: {' '.join(str(error).split())[:200]}."
        ) from None
