"""Debates of the paper's released code, as the beginning of a run."""

from pathlib import Path

from maft import files, tasks
from maft.errors import DataError
from maft.method import formats, protocol_of
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.tasks import check_disjoint, prepare


def adopt(folder: RunFolder, released: Path) -> None:
    """Begin a run with the questions and debates of a JSON file of the released code; held-out ones are the task's.

    Raises:
        DataError: the run has questions already, or the file is not what it should be.
    """
    if folder.problems("eval").exists():
        raise DataError(
            f"{folder.path} already has questions. Choose another name=... for a run that starts from {released}."
        )
    config, task = folder.config, tasks.make(folder.config.task)
    text = files.read_text(released)
    society = societies.untrained(config)
    try:
        found = formats.read_released(text, society, protocol_of(config.debate).rounds(config.debate), task.extract)
    except DataError as error:
        raise DataError(f"{released}: {error}") from None
    held_out = prepare(task).eval
    check_disjoint(found.problems, held_out)
    files.write_records(folder.debates(1), found.debates)
    files.write_records(folder.problems("train"), found.problems)
    files.write_records(folder.problems("eval"), held_out)
