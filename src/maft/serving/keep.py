"""Debates of a server, kept as an ordinary run folder, which `maft show` and `maft report` read."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maft import files
from maft.errors import ConfigError
from maft.records import Debate, Problem, Vote
from maft.runs.folder import RunFolder


class Keeper:
    """Appends each debate with its question and its vote, as the next iteration's on training questions."""

    def __init__(self, folder: RunFolder, iteration: int) -> None:
        """Use `keeping` instead."""
        self._folder, self._iteration = folder, iteration
        self._lock = threading.Lock()

    def keep(self, name: str, debate: Debate, vote: Vote) -> None:
        """Keep a debate under a name of its own."""
        known = {"iteration": self._iteration, "problem_id": name}
        with self._lock:
            for path, record in (  # the debate last: readers begin with it, and a kill may come in between
                (self._folder.problems("train"), Problem(id=name, question=debate.question, code=debate.code)),
                (self._folder.votes(self._iteration), vote.model_copy(update=known)),
                (self._folder.debates(self._iteration), debate.model_copy(update=known)),
            ):
                files.append_records(path, [record], durable=False)


@contextmanager
def keeping(path: Path, served: RunFolder, iteration: int) -> Iterator[Keeper]:
    """Open the folder for the debates of a run's agents; earlier ones of the same run stay in it.

    Raises:
        ConfigError: the folder holds debates of another run, or is a run itself.
        DataError: the folder is in use, or is something else than a run.
    """
    if path.resolve() == served.path.resolve() or (path / served.checksums.name).exists():
        raise ConfigError(f"--keep {path} is a finished run, whose files stay as they are. Name a folder of its own.")
    number = iteration + 1
    more = {"runs_dir": path.absolute().parent, "name": path.absolute().name}
    config = served.config.model_copy(update=more | {"num_iterations": max(number, served.config.num_iterations)})
    with RunFolder.open(config) as folder:
        for file in (folder.problems("train"), folder.debates(number), folder.votes(number)):
            files.drop_torn_line(file)
        if not folder.problems("eval").exists():
            files.write_records(folder.problems("train"), [])
            files.write_records(folder.problems("eval"), [])
        yield Keeper(folder, number)
