"""Rows of questions: from local JSONL, JSON, CSV and Parquet files, and from data sets of the Hugging Face hub."""

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maft.errors import DataError, MissingExtra
from maft.models.names import offline

log = logging.getLogger("maft")


class Row(NamedTuple):
    """One row, with its place for messages."""

    where: str
    """Such as `train.jsonl, line 3`."""
    fields: dict[str, Any]


def from_file(path: Path) -> list[Row]:
    """Read a file by its suffix (.csv, .tsv, .parquet, .json, else JSONL; each may be .gz), or all .json of a folder.

    Raises:
        DataError: it cannot be read; names the line.
    """
    if path.is_dir():
        return _from_folder(path)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind == ".parquet":
        return _from_parquet(path)
    text = _read(path)
    if kind in (".csv", ".tsv"):
        return list(_from_csv(text, path, "\t" if kind == ".tsv" else ","))
    return _from_json(text, path)


def from_dataset(name: str, subset: str | None, split: str) -> list[Row]:
    """Read a split of a data set: by hub name, or from a folder of `datasets` or one with JSON files by split.

    Args:
        name: of the data set, or a folder.
        subset: its configuration.
        split: a name, or a part as `datasets` writes it, such as `train[:50%]`.

    Raises:
        DataError: it cannot be found, reached or read.
        MissingExtra: `datasets` is not installed.
    """
    folder = Path(name)
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if not saved and next((folder / split).rglob("*.json"), None) is not None:
        return _from_folder(folder / split)
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"the data set {name}", "tasks") from None
    try:
        if saved:
            return _numbered(_part(datasets.load_from_disk(name), split), f"{name}, {split}")
        return _numbered(datasets.load_dataset(name, subset, split=split), f"{name}, {split}")
    except Exception as error:  # without a network, the libraries beneath raise whatever they please
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        reason = f"the hub cannot be reached ({reason})" if offline(error) else reason
        raise DataError(
            f"the data set {name} (subset {subset or 'default'}, split {split}) cannot be read: {reason}. "
            "Check task.dataset, task.subset and the splits, and the network, or read local files with task.train_file."
        ) from None


def _part(saved: Any, split: str) -> Any:
    """Return the rows of a split, or of a part of one, of a data set that was saved to disk."""
    import datasets

    splits = saved if isinstance(saved, datasets.DatasetDict) else {re.split(r"[\[+]", split)[0]: saved}
    if unknown := [name for name in re.findall(r"(?:^|\+)\s*(\w+)", split) if name not in splits]:
        raise ValueError(f"there is no split {unknown[0]}; the splits are: {', '.join(splits)}")
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    chosen = [splits[part.splitname].select(range(part.from_ or 0, part.to)) for part in parts]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _numbered(rows: Any, where: str) -> list[Row]:
    """Number the rows of a data set; numbers of 32 bits become the shortest that they stand for, 5.1 for 5.0999999."""
    features = getattr(rows, "features", None) or {}
    short = [name for name, feature in features.items() if getattr(feature, "dtype", None) in ("float16", "float32")]
    return [Row(f"{where}, row {number}", _shortened(fields, short)) for number, fields in enumerate(rows, 1)]


def _shortened(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {**fields, **{name: float(f"{fields[name]:.7g}") for name in names if isinstance(fields[name], float)}}


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        if data[:2] == b"PK":
            raise DataError(f"{path} is a spreadsheet or an archive. Save its table as CSV.")
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a gzip file that can be read: {error}.") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Check task.train_file and task.eval_file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {error.encoding.upper()} at byte {error.start}. Convert it to UTF-8.") from None


def _from_folder(path: Path) -> list[Row]:
    rows = [row for file in sorted(path.rglob("*.json")) for row in from_file(file)]
    if not rows:
        raise DataError(f"{path} holds no .json files. Give a file, or a folder with a question in each .json file.")
    return rows


# JSON


def _from_json(text: str, path: Path) -> list[Row]:
    """Read an object a line; or else objects one after the other, a list of them, or a section that holds them."""
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): JSON leaves U+2028 inside a text as it is
    values: list[tuple[str, Any]] = []
    try:
        numbered = ((f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip())
        values = [(where, _json(line, where)) for where, line in numbered]
    except DataError as line_error:
        try:
            values = [(f"{path}, entry {n}", value) for n, value in enumerate(_one_after_the_other(text), 1)]
        except (ValueError, RecursionError):
            raise line_error from None
        for where, value in values:
            _json(json.dumps(value), where)
    if len(values) == 1 and (inner := _unwrapped(values[0][1], path)) is not None:
        values = [(f"{path}, entry {n}", value) for n, value in enumerate(inner, 1)]
    for where, fields in values:
        if not isinstance(fields, dict):
            raise DataError(f"{where} must be a JSON object, got {type(fields).__name__}.")
    return [Row(where, fields) for where, fields in values]


def _json(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair, "\\ud800", is JSON but no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}. Got {text[:80]!r}.") from None
    return value


def _one_after_the_other(text: str) -> Iterator[Any]:
    decoder, place = json.JSONDecoder(), 0
    while (place := _SPACE.match(text, place).end()) < len(text):  # type: ignore[union-attr]  # matches everywhere
        value, place = decoder.raw_decode(text, place)
        yield value


_SPACE = re.compile(r"[\s,]*")
_WRAPPERS = ("data", "examples", "rows", "questions", "problems", "items", "instances", "samples", "records")


def _unwrapped(value: Any, path: Path) -> list[Any] | None:
    """Return the rows in the one value of a file: a list, a section with one, columns, or rows by id; None for a row.

    Raises:
        DataError: there are several lists of rows.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    named = [key for key in lists if key.lower() in _WRAPPERS]
    if len(named or lists) == 1 and (named or len(value) == 1):
        return list(value[(named or lists)[0]])
    if len(lists) == len(value) or len(named) > 1:
        raise DataError(f"{path} holds several lists: {', '.join(lists)}. Write each into a file of its own.")
    columns = list(value.values())
    if all(isinstance(column, list) for column in columns) and len({len(column) for column in columns}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns) and len(columns) > 1:
        if all(key.isdecimal() for key in columns[0]):  # as pandas writes a table
            return [{name: column[key] for name, column in value.items()} for key in columns[0]]
        return [{"id": key, **fields} for key, fields in value.items()]
    return None


# CSV

SEPARATORS = ",;\t|"
LONGEST_CELL = 2**30


def _from_csv(text: str, path: Path, usual: str) -> Iterator[Row]:
    """Read lines under a header; an empty cell is None, empty rows and columns without a name are left out."""
    first, _, rest = text.partition("\n")
    if declared := re.fullmatch(r'"?sep=(.)"?\r?', first):  # as Excel writes it
        text, separator = rest, declared[1]
    else:
        separator = _separator(text, usual)
    if separator != usual:
        log.info("%s: the column separator is %r.", path, separator)
    padded = f"{separator} " in text.partition("\n")[0] and separator != "\t"
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=padded)
    empty = 0
    try:
        header = [name.strip() for name in next(reader, [])]
        names = [name for name in header if name]
        if len(set(names)) < len(names):
            raise DataError(f"{path} must name each column once in its first line, got {', '.join(header)}.")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(map(str.strip, cells)):
                empty += bool(cells)
                continue
            if len(cells) < len(header) or any(cells[len(header) :]):
                raise DataError(
                    f"{where} has {len(cells)} cells, the header has {len(header)}. Quote cells with commas."
                )
            named = zip(header, cells, strict=False)
            yield Row(where, {name: (cell.strip() if padded else cell) or None for name, cell in named if name})
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, is not CSV: {error}.") from None
    if empty:
        log.info("%s: %d empty rows are skipped.", path, empty)


def _separator(text: str, usual: str) -> str:
    """Return the sign between columns: the usual one, unless another divides a header that is one column by it."""
    header = text.partition("\n")[0]
    counts = {sign: sum(1 for name in next(csv.reader([header], delimiter=sign), []) if name) for sign in SEPARATORS}
    return usual if counts[usual] > 1 else max((usual, *SEPARATORS), key=lambda sign: counts[sign])


def _from_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("reading Parquet files", "tasks") from None
    try:
        table = pyarrow.parquet.read_table(path)
        short = [field.name for field in table.schema if str(field.type) in ("float", "halffloat")]
        return [Row(f"{path}, row {n}", _shortened(fields, short)) for n, fields in enumerate(table.to_pylist(), 1)]
    except FileNotFoundError as error:
        said = error.strerror or "No such file or directory"
        raise DataError(f"{path}: {said}. Check task.train_file and task.eval_file.") from None
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a Parquet file that can be read: {' '.join(str(error).split())[:200]}."
        ) from None
