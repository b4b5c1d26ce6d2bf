"""The debates of a run as a data set of the Hugging Face hub: Parquet files, a folder for each view, and a card.

debates/      a debate a row: question, label, agreement, cost
turns/        a turn a row: who was asked what, the reply, its answer and whether that is the label
messages/     an agent's dialogue in a debate a row, as chat trainers read it
preferences/  pairs of replies to one prompt, of training questions only: TRL's DPOTrainer
unpaired/     replies with a label true or false, of training questions only: TRL's KTOTrainer
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maft import __version__, files, models
from maft.errors import MissingExtra, UserError
from maft.evaluation import series
from maft.method import protocol_of
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.sharing import traces
from maft.sharing.layout import Repo
from maft.sharing.traces import Row, Side, Trace
from maft.trainers import cards

_CHAT = "list<struct<role: string, content: string>>"
_PLACE = {"society": "int64", "turn": "int64", "problem_id": "string"}
_VERDICT = {"answer": "string", "agrees": "bool", "correct": "bool"}
_TOKENS = {"prompt_tokens": "int64", "completion_tokens": "int64"}
SPLITS: Mapping[Side, str] = {"train": "train", "held_out": "test"}
"""The hub's names of the sides."""


class View(NamedTuple):
    """One of the tables, a configuration of the data set."""

    rows: Callable[[Trace], Iterable[Row]]
    columns: Mapping[str, str]
    sides: tuple[Side, ...] = traces.SIDES


def _debate(trace: Trace) -> Iterator[Row]:
    yield traces.debate_row(trace)


VIEWS: Mapping[str, View] = {
    "debates": View(
        _debate,
        {
            **_PLACE,
            **{"question": "string", "label": "string", "label_correct": "bool"},
            **{"agreement": "double", "margin": "int64", "tied": "bool", "dropped": "string"},
            **{"num_turns": "int64", "num_calls": "int64", **_TOKENS, "error": "string"},
        },
    ),
    "turns": View(
        traces.turn_rows,
        {
            **_PLACE,
            **{"round": "int64", "agent": "string", "prompt": "string", "reply": "string"},
            **{**_VERDICT, "cut": "bool", "shown_to_others": "bool", **_TOKENS},
        },
    ),
    "messages": View(traces.message_rows, {**_PLACE, "agent": "string", "messages": _CHAT, **_VERDICT}),
    "preferences": View(
        traces.preference_rows,
        {**_PLACE, "agent": "string", "prompt": _CHAT, "chosen": _CHAT, "rejected": _CHAT},
        ("train",),
    ),
    "unpaired": View(
        traces.unpaired_rows,
        {**_PLACE, "agent": "string", "prompt": _CHAT, "completion": _CHAT, "label": "bool"},
        ("train",),
    ),
}


def lay_out(run: RunFolder, repo: Repo, root: Path, iteration: int | None = None) -> dict[str, int]:
    """Fill an empty folder with the data set; return the number of rows by file. A view without rows is left out.

    Raises:
        UserError: the run has no debates with votes yet.
        MissingExtra: pyarrow is not installed.
    """
    counts: dict[str, int] = {}
    for side in traces.SIDES:
        tables = {name: _Table(view.columns) for name, view in VIEWS.items() if side in view.sides}
        places = {name: f"{name}/{SPLITS[side]}.parquet" for name in tables}
        try:
            for trace in traces.of_run(run, side, iteration):  # once for all views, since grading may take long
                for name, table in tables.items():
                    table.add(VIEWS[name].rows(trace), root / places[name])
        finally:
            for table in tables.values():
                table.close()
        counts |= {places[name]: table.total for name, table in tables.items() if table.total}
    if not counts:
        raise UserError(f"{run.path} has no debates with votes yet. Run `maft run` first.")
    (root / "README.md").write_text(_card(run, repo, counts, iteration), encoding="utf-8")
    return counts


class _Table:
    """A Parquet file that is written some rows at a time, and made at the first of them."""

    def __init__(self, columns: Mapping[str, str], size: int = 5000) -> None:
        try:
            import pyarrow as pa
        except ImportError:
            raise MissingExtra("maft push --debates", "tasks") from None
        chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        kinds = {_CHAT: chat, "string": pa.string(), "int64": pa.int64(), "bool": pa.bool_(), "double": pa.float64()}
        self.schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
        self.size, self.total = size, 0
        self._rows: list[Row] = []
        self._writer: Any = None

    def add(self, rows: Iterable[Row], path: Path) -> None:
        """Add rows to the file at a path."""
        import pyarrow.parquet as pq

        added = list(rows)
        self._rows += added
        self.total += len(added)
        if self._rows and self._writer is None:
            path.parent.mkdir(exist_ok=True)
            self._writer = pq.ParquetWriter(path, self.schema)
        if len(self._rows) >= self.size:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._flush()
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema))
        self._rows = []


def _card(run: RunFolder, repo: Repo, counts: Mapping[str, int], iteration: int | None) -> str:
    from huggingface_hub import DatasetCardData

    config, name = run.config, repo.id.rpartition("/")[2]
    configs: list[dict[str, Any]] = []
    for view in VIEWS:
        places = [place for place in counts if place.startswith(f"{view}/")]
        splits = [{"split": Path(place).stem, "path": place} for place in places]
        if splits:
            configs.append(
                {"config_name": view, "data_files": splits, **({"default": True} if view == "turns" else {})}
            )
    head = DatasetCardData(
        license=repo.license or "unknown",
        task_categories=["text-generation"],
        tags=["maft", "multiagent-finetuning", "multiagent-debate"],
        size_categories=_size(max(counts.values())),
        pretty_name=name,
        configs=configs,
    )
    numbers = range(1, config.num_iterations + 1) if iteration is None else [iteration]
    labels = [line for number in numbers for line in series.of_labels(run, number)]
    held = [
        line
        for number in (range(config.num_iterations + 1) if iteration is None else [iteration])
        for line in series.of_society(run, number)
        if line["kind"] == "method"
    ]
    card = files.template("sharing", "dataset.md.j2", share=_share).render(
        head=f"---\n{head.to_yaml()}\n---\n",
        name=name,
        version=__version__,
        config=config,
        repo=repo,
        bases=list(societies.speakers(config)),
        rounds=protocol_of(config.debate).rounds(config.debate),
        has_critics="critic" in protocol_of(config.debate).roles(config.debate),
        num_train=files.num_lines(run.problems("train")),
        num_eval=files.num_lines(run.problems("eval")),
        on_hub=config.task.dataset is not None and models.is_hub_name(config.task.dataset),
        counts=counts,
        views=[one["config_name"] for one in configs],
        labels=labels,
        held=[line for line in held if line.get("accuracy") is not None],
        citation=cards.CITATION,
    )
    return str(card)


def _size(rows: int) -> str:
    limits = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((name for limit, name in limits.items() if rows < limit), "1M<n<10M")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
