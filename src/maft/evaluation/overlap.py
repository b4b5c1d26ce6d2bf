"""How much of the known answers is in free text: exact match and token F1 as SQuAD has them, and chrF."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import mean

from maft import files
from maft.answers.tokens import f1, normalised
from maft.evaluation.metrics import MethodResult
from maft.evaluation.votes import problems
from maft.records import Record, Score
from maft.runs.folder import RunFolder

TASKS = ("text",)
"""Tasks whose answers are free text."""


class Overlap(Record):
    """Means over the held-out questions with a known answer; an answer that cannot be read counts 0."""

    iteration: int
    method: str
    n: int
    exact: float
    """Share of answers with the same normalised tokens."""
    f1: float
    """Harmonic mean of precision and recall of the normalised tokens."""
    chrf: float | None
    """Of character 6-grams, as sacrebleu computes it (Popović, 2015), as a share; None where that is not installed."""


def overlaps(folder: RunFolder) -> list[Overlap]:
    """Return an entry for each method of each evaluated iteration; none where answers are no free text."""
    done = [number for number in range(folder.config.num_iterations + 1) if folder.evaluated(number)]
    entries = [
        overlap(folder, files.read_records(path, Score))
        for number in done
        for result in files.read_json(folder.results(number))
        if (path := folder.scores(number, MethodResult.model_validate(result).method)).exists()
    ]
    return [one for one in entries if one is not None]


def overlap(folder: RunFolder, scores: Sequence[Score]) -> Overlap | None:
    """Return the entry of one method; None where answers are no free text, or none is known."""
    if folder.config.task.name not in TASKS:
        return None
    gold = {name: problem.gold for name, problem in problems(folder, "eval").items() if problem.gold is not None}
    known = [score for score in scores if score.problem_id in gold]
    return _overlap(known, gold) if known else None


def over_seeds(entries: Sequence[Overlap | None]) -> Overlap | None:
    """Return the means of a method's entries of all seeds; None where a seed has none."""
    every = [one for one in entries if one is not None]
    if not every or len(every) < len(entries):
        return None
    chrf = [one.chrf for one in every if one.chrf is not None]
    means = {"exact": mean(one.exact for one in every), "f1": mean(one.f1 for one in every)}
    return every[0].model_copy(update=means | {"chrf": mean(chrf) if chrf else None})


def sentence(one: Overlap) -> str:
    """Return an entry as a line of text."""
    chrf = "sacrebleu is not installed" if one.chrf is None else f"chrF {100 * one.chrf:.1f}"
    return (
        f"{one.method}, iteration {one.iteration}: exact match {one.exact:.1%}, token F1 {100 * one.f1:.1f}, {chrf} "
        f"(n = {one.n})."
    )


def _overlap(scores: Sequence[Score], gold: dict[str, str]) -> Overlap:
    chrf = _chrf()

    def over(measure: Callable[[str, str], float]) -> float:
        shares = (mean(measure(a, gold[s.problem_id]) if a is not None else 0.0 for a in s.answers) for s in scores)
        return mean(shares)

    return Overlap(
        iteration=scores[0].iteration,
        method=scores[0].method,
        n=len(scores),
        exact=over(lambda a, b: float(normalised(a) == normalised(b))),
        f1=over(f1),
        chrf=over(chrf) if chrf else None,
    )


def _chrf() -> Callable[[str, str], float] | None:
    if find_spec("sacrebleu") is None:
        return None
    import sacrebleu

    return lambda answer, known: float(sacrebleu.sentence_chrf(answer, [known]).score) / 100
