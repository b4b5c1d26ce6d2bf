"""The rows of a comparison: every method after every iteration, with its difference to maft on the same questions.

All rows are scored anew from the debates on the held-out questions, so that every method has its vote at the same
budget: the tokens of the reference's debate for the same seed and iteration or, where it never debates, of all its
first answers.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

from maft import files, tasks
from maft.comparison import preregister
from maft.comparison.arms import ARMS, Arm
from maft.comparison.compare import Comparison
from maft.comparison.preregister import Outcome, Registered
from maft.errors import ConfigError
from maft.evaluation.flow import RoundFlow, by_round
from maft.evaluation.lenient import lenient
from maft.evaluation.methods import HeldOut, Scoring, agreeing_most, score_all, score_member, tokens
from maft.evaluation.metrics import summarize
from maft.evaluation.overlap import Overlap, over_seeds, overlap
from maft.evaluation.paired import Accuracies, Difference, accuracies, accuracy_over, difference, holm
from maft.evaluation.replay import Ceiling, curve
from maft.evaluation.retention import Retention, retention
from maft.evaluation.votes import held_out, problems
from maft.method import learners, protocol_of
from maft.pipeline.run import num_examples
from maft.records import Debate, Record, Score
from maft.runs import status
from maft.runs.folder import RunFolder

log = logging.getLogger("maft")


class Result(Record):
    """One row: a method after an iteration, over all seeds."""

    iteration: int
    method: str
    accuracy: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    """Questions."""
    num_seeds: int
    unparsed: float
    calls: float
    prompt_tokens: float
    completion_tokens: float
    tokens: float
    training_examples: float
    """In this iteration, of all agents together."""
    training_tokens: float
    """Up to this iteration, of all agents together, every epoch counted."""
    seconds: float
    """Sampling and finetuning of the arm up to this iteration, lookups left out."""
    against: str
    """The row that this one is compared with."""
    difference: Difference | None
    """This method minus that one, untrained or after the same iteration, on the same questions; None for that one."""
    holm: float | None = None
    """After the last iteration, the p-value of the difference corrected for the number of methods that were asked for,
    or of predictions that were registered; None for all other rows."""
    exploratory: bool = False
    """Whether the difference is outside that family."""
    accuracy_read: float | None = None
    """Share of right answers among those that could be read."""
    overlap: Overlap | None = None
    """Exact match, token F1 and chrF with the known answers, as means over seeds; of free text only."""
    accuracy_lenient: float | None = None
    """Of single answers, untrained and after the last iteration: where a reply could not be read, its last number or
    line counts."""
    equal_training: Difference | None = None
    """After the last iteration, the difference at equal training tokens: both rows where the one with fewer of them
    ended, between two iterations in proportion."""
    flows: tuple[RoundFlow, ...] = ()
    """Of debates, untrained and after the last iteration: what each round of critics changed."""
    curve: tuple[Ceiling, ...] = ()
    """Of single answers, untrained and after the last iteration: pass@k and the vote of any k."""
    retention: tuple[Retention, ...] = ()
    """Of the methods after the last iteration: their generators on the tasks of `eval.also`, before and after."""
    predictions: tuple[Outcome, ...] = ()
    """What was registered of this row, and what came out."""


class _Cell(NamedTuple):
    """One row of one seed."""

    row: str
    """`single`, `majority@3`, `majority@budget` or `debate`."""
    scores: Sequence[Score]
    held: HeldOut
    folder: RunFolder


_Cells = dict[tuple[int, str], _Cell]
"""The cells of one seed, by iteration and row."""
_Rows = dict[tuple[int, str], list[_Cell]]
"""The cells of each seed, by iteration and row."""


def results(comparison: Comparison, against: str | None = None) -> list[Result]:
    """Return all rows that every seed has evaluated, each with its difference to the row `against` of its iteration.

    By default, that row is the reference's, at the tokens that it sets. A row of the untrained model, such as
    `majority@budget`, is compared with those of every iteration.

    Raises:
        ConfigError: `against` is no row of the table.
    """
    by_seed = [_cells(comparison, seed, range(comparison.config.num_iterations + 1)) for seed in comparison.seeds]
    rows = _shared(by_seed)
    _warn_of_missing(comparison, by_seed, rows)
    _warn_of_failures(rows)
    keys = sorted(rows, key=_place)
    names = dict.fromkeys(method for _, method in keys)
    if against is not None and against not in names:
        raise ConfigError(f"{against} is not a row of this comparison. The rows are: {', '.join(names)}.")
    against = against or comparison.against
    untrained = all(iteration == 0 for iteration, method in keys if method == against)
    made = [_result(key, rows[key], against, rows.get((0 if untrained else key[0], against))) for key in keys]
    last = comparison.config.num_iterations
    plan = preregister.registered(comparison)
    outcomes = _outcomes(comparison, plan, rows) if plan else []
    if plan:
        tests = [one for one in outcomes if one.against == against and one.prediction.direction != "same"]
        corrected = {one.prediction.row: one.holm for one in tests}
    else:
        family = {
            row.method: row.difference.p_value
            for row in made
            if row.iteration == last and row.method in comparison.methods and row.difference is not None
        }
        asked = [name for name in (*comparison.methods, *comparison.others) if name != against]
        corrected = dict(holm(family, max(len(family), len(asked))))
    trained = any(row.training_tokens for row in made)
    before = _untrained(comparison) if trained else {}
    return [_with_evidence(comparison, row, rows, before, corrected, outcomes) for row in made]


def _with_evidence(
    comparison: Comparison,
    row: Result,
    rows: _Rows,
    before: _Rows,
    corrected: Mapping[str, float | None],
    outcomes: Sequence[Outcome],
) -> Result:
    """Return a row with what else is measured: of the untrained model and after the last iteration only."""
    last, cells = comparison.config.num_iterations, rows[row.iteration, row.method]
    if row.iteration not in (0, last):
        return row.model_copy(update={"exploratory": row.difference is not None})
    config, kind = comparison.config, cells[0].row
    helds = [cell.held for cell in cells]
    changes: dict[str, Any] = {}
    if kind == "single":
        task = tasks.make(config.task)
        again = [lenient(held, problems(cell.folder, "eval"), task) for held, cell in zip(helds, cells, strict=True)]
        changes["accuracy_lenient"] = mean.mean if all(again) and (mean := accuracy_over(again)) else None
        changes["curve"] = tuple(curve([held.pairs() for held in helds], config))
    if kind == "debate":
        changes["flows"] = tuple(by_round(helds))
    if row.iteration == last:
        p_value = corrected.get(row.method)
        changes |= {"holm": p_value, "exploratory": row.difference is not None and p_value is None}
        changes["predictions"] = tuple(one for one in outcomes if one.prediction.row == row.method)
        if row.difference is not None:
            changes["equal_training"] = _at_equal_training(row, rows | before, last)
        if row.method in comparison.methods:
            changes["retention"] = tuple(retention([cell.folder for cell in cells]))
    return row.model_copy(update=changes)


def _outcomes(comparison: Comparison, plan: Registered, rows: _Rows) -> list[Outcome]:
    """Return every prediction with the difference that came out after the last iteration."""
    last = comparison.config.num_iterations

    def cells(name: str) -> list[_Cell] | None:
        return rows.get((last, name)) or rows.get((0, name))

    gaps: list[Difference | None] = []
    against = [one.against or comparison.against for one in plan.predictions]
    for one, other in zip(plan.predictions, against, strict=True):
        pair = [cells(name) for name in (one.row, other)]
        known = [[accuracies(cell.scores) for cell in of] for of in pair if of]
        gaps.append(difference(*known) if len(known) == 2 and all(all(of) for of in known) else None)
    tests = {
        str(place): gap.p_value
        for place, (one, gap) in enumerate(zip(plan.predictions, gaps, strict=True))
        if gap is not None and one.direction != "same"
    }
    corrected = holm(tests, preregister.tested(plan.predictions))
    primary = plan.primary or plan.predictions[0].row
    return [
        Outcome(
            prediction=one,
            against=against[place],
            primary=one.row == primary,
            difference=gaps[place],
            holm=corrected.get(str(place)),
        )
        for place, one in enumerate(plan.predictions)
    ]


def _at_equal_training(row: Result, rows: _Rows, last: int) -> Difference | None:
    """Return a row minus the one that it is compared with, both after as many training tokens as the one with fewer.

    Between two iterations, accuracy and tokens are taken to grow in proportion. None where nothing was trained.
    """
    mine, other = ([rows.get((n, name)) for n in range(last + 1)] for name in (row.method, row.against))
    if not all((*mine, *other)):
        return None
    sides: tuple[list[Accuracies], list[Accuracies]] = ([], [])
    for seed in range(row.num_seeds):
        curves = [
            [(_training_tokens(of[seed], n), of[seed]) for n, of in enumerate(side) if of] for side in (mine, other)
        ]
        tokens = min(points[-1][0] for points in curves)
        if not tokens:
            return None
        for side, points in zip(sides, curves, strict=True):
            side.append(_accuracies_at(tokens, [(spent, accuracies(cell.scores)) for spent, cell in points]))
    return difference(*sides)


def _training_tokens(cell: _Cell, iteration: int) -> float:
    return _costs(cell.folder, iteration)["training_tokens"] if iteration else 0.0


def _accuracies_at(tokens: float, points: Sequence[tuple[float, Accuracies]]) -> Accuracies:
    """Return the accuracy on each question after so many tokens, on straight lines between points that rise in tokens.

    >>> _accuracies_at(15.0, [(0.0, {"a": 0.0}), (10.0, {"a": 1.0}), (20.0, {"a": 0.5})])
    {'a': 0.75}
    """
    place = next(n for n in range(1, len(points)) if points[n][0] >= tokens)
    (low, before), (high, after) = points[place - 1], points[place]
    share = (tokens - low) / (high - low) if high > low else 1.0
    return {id: (1 - share) * before[id] + share * after[id] for id in after if id in before}


def over_iterations(comparison: Comparison, compared: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the rows of each method over iterations, beginning with its untrained agents.

    Methods with other prompts or rounds, such as without summaries, differ in iteration 0, too.
    """
    untrained = _untrained(comparison)
    curves = {key[1]: [_result(key, cells, comparison.against, None)] for key, cells in untrained.items()}
    for row in compared:
        if row.iteration > 0:
            curves.setdefault(row.method, []).append(row)
    return {name: rows for name, rows in curves.items() if rows[-1].iteration > 0}


def weak_rivals(comparison: Comparison) -> list[str]:
    """Say in a line which methods have the examples of a mean agent, and these are few since critics have few."""
    reference, rivals = ARMS[comparison.reference], [ARMS[n] for n in comparison.methods if ARMS[n].budget == "one"]
    generators = _examples(comparison, reference, "generator")
    weak = {arm.name: mean for arm in rivals if (mean := _examples(comparison, arm, "generator")) < generators / 2}
    if not weak:
        return []
    return [
        f"{', '.join(f'{name} ({mean:.0f})' for name, mean in weak.items())} had fewer than half of the examples of a "
        f"mean generator of {reference.name} ({generators:.0f} in all iterations), whose critics had few. "
        "majority_ft_all and single_agent_ft_all have as many as all agents."
    ]


def _examples(comparison: Comparison, arm: Arm, role: str) -> float:
    """Return the examples of a mean agent of a role in all iterations, as a mean over finished seeds; nan: none is."""
    totals = []
    for folder in (comparison.folder(arm, seed) for seed in comparison.seeds if comparison.begun(arm, seed)):
        if not status.complete(folder):
            continue
        counts = [num_examples(folder, n) for n in range(1, comparison.config.num_iterations + 1)]
        of_role = [[count for name, count in of.items() if name.startswith(role)] for of in counts]
        totals.append(sum(sum(of) / len(of) for of in of_role if of))
    return sum(totals) / len(totals) if totals else nan


def as_json(compared: Sequence[Result]) -> str:
    """Return the rows as a JSON list."""
    return json.dumps([row.model_dump() for row in compared], indent=2)


def _place(key: tuple[int, str]) -> tuple[int, int]:
    iteration, method = key
    names = ["base", "majority", "debate", *ARMS]
    known = [n for n, name in enumerate(names) if method == name or method.startswith((f"{name}_", f"{name}@"))]
    return iteration, known[-1] if known else len(names)


def _shared(by_seed: Sequence[_Cells]) -> _Rows:
    """Return, by iteration and row, the scores of each seed, of rows that every seed has."""
    return {key: [of[key] for of in by_seed] for key in by_seed[0] if all(key in of for of in by_seed)}


def _warn_of_missing(comparison: Comparison, by_seed: Sequence[_Cells], rows: _Rows) -> None:
    """Say what some seeds have and others lack, so that it is not among the rows."""
    lacking = [
        f"{name}, iteration {number} (seed {', '.join(map(str, without))})"
        for number, name in sorted({key for of in by_seed for key in of} - rows.keys(), key=_place)
        if (without := [s for s, of in zip(comparison.seeds, by_seed, strict=True) if (number, name) not in of])
    ]
    if lacking:
        more = f"; and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        log.warning("Rows left out, since not every seed has them: %s%s.", "; ".join(lacking[:5]), more)


def _warn_of_failures(rows: _Rows) -> None:
    """Say how many debates on held-out questions failed."""
    failed: Counter[str] = Counter()
    for (number, _), cells in rows.items():
        place = f"{cells[0].folder.path.name}, iteration {number}"
        failed[place] = max(failed[place], sum(s.no_answer == "failed" for cell in cells for s in cell.scores))
    if some := [f"{place} ({count})" for place, count in failed.items() if count]:
        log.warning("Debates on held-out questions that failed count as wrong: %s.", "; ".join(some))


def _untrained(comparison: Comparison) -> _Rows:
    """Return the rows of each arm's untrained society."""
    return _shared([_cells(comparison, seed, [0], every_arm=True) for seed in comparison.seeds])


def _cells(comparison: Comparison, seed: int, numbers: Sequence[int], *, every_arm: bool = False) -> _Cells:
    """Return the scores of every row of one seed.

    The untrained society is that of the reference, or of `every_arm`, by the names that its rows have once finetuned.
    """
    cells: _Cells = {}
    budgets: dict[int, int] = {}
    for arm in (ARMS[name] for name in comparison.methods if comparison.begun(ARMS[name], seed)):
        folder = comparison.folder(arm, seed)
        for n in numbers:
            if folder.evaluated(n) and (n > 0 or every_arm or arm.name == comparison.reference):
                if n not in budgets:
                    budgets[n] = _budget(comparison, seed, n)
                held = held_out(folder, n)
                member = comparison.teaches and arm.name == comparison.reference and n > 0
                for row, scores in _scores(held, folder, n, budgets[n], member=member).items():
                    cells[n, _row_name(arm, n or int(every_arm), row)] = _Cell(row, scores, held, folder)
    return cells


def _budget(comparison: Comparison, seed: int, iteration: int) -> int:
    """Return the tokens of the reference's debates on the held-out questions, or of its answers where it has none."""
    folder = comparison.folder(ARMS[comparison.reference], seed)
    alone = _rounds(folder) == 1
    debates = files.read_records(folder.held_out_debates(iteration), Debate)
    return tokens(call for debate in debates for call in debate.calls(samples=alone))


def _rounds(folder: RunFolder) -> int:
    return protocol_of(folder.config.debate).rounds(folder.config.debate)


def _scores(
    held: HeldOut, folder: RunFolder, iteration: int, budget: int, *, member: bool = False
) -> dict[str, list[Score]]:
    how = Scoring(held, iteration, folder.config)
    scored = score_all(how, budget)
    single, majority, *rest = scored
    rows = {"single": scored[single], f"majority@{folder.config.debate.num_agents}": scored[majority]}
    if len(rest) > 1:
        rows["majority@budget"] = scored[rest[0]]
    if member:
        rows["best_member"] = score_member(how, agreeing_most(how.held, folder.config.debate.num_agents))
    if _rounds(folder) > 1:
        rows["debate"] = scored[rest[-1]]
    return rows


def _row_name(arm: Arm, iteration: int, row: str) -> str:
    """Return the name of a row: base, majority@3, majority@budget, debate; star, star_majority@budget ...

    >>> _row_name(ARMS["single_agent_ft"], 1, "debate"), _row_name(ARMS["maft"], 1, "single")
    ('single_agent_ft_debate', 'maft_single')
    """
    if iteration == 0:
        return {"single": "base"}.get(row, row)
    return arm.name if row == arm.row else f"{arm.name}_{row}"


def _result(key: tuple[int, str], cells: Sequence[_Cell], against: str, other: Sequence[_Cell] | None) -> Result:
    iteration, method = key
    sums = [summarize(cell.scores) for cell in cells]
    mine = [accuracies(cell.scores) for cell in cells]
    accuracy = accuracy_over(mine) if all(mine) else None
    compared = accuracy is not None and other is not None and method != against
    costs = [_costs(cell.folder, iteration) for cell in cells]
    means = {
        name: sum(getattr(one, name) for one in sums) / len(cells)
        for name in ("unparsed", "calls", "prompt_tokens", "completion_tokens", "tokens")
    }
    means |= {name: sum(cost[name] for cost in costs) / len(cells) for name in costs[0]}
    return Result(
        iteration=iteration,
        method=method,
        accuracy=accuracy.mean if accuracy else None,
        ci_low=accuracy.low if accuracy else None,
        ci_high=accuracy.high if accuracy else None,
        n=sums[0].n,
        num_seeds=len(cells),
        against=against,
        accuracy_read=_accuracy_read([score for cell in cells for score in cell.scores]),
        overlap=over_seeds([overlap(cell.folder, cell.scores) for cell in cells]),
        difference=difference(mine, [accuracies(cell.scores) for cell in other or ()]) if compared else None,
        **means,
    )


def _accuracy_read(scores: Sequence[Score]) -> float | None:
    """Return the share of right answers among those that could be read; None where there are none, or nobody knows."""
    pairs = [
        (answer, right)
        for one in scores
        if one.correct
        for answer, right in zip(one.answers, one.correct, strict=False)
    ]
    read = [right for answer, right in pairs if answer is not None]
    return sum(read) / len(read) if read else None


def _costs(folder: RunFolder, iteration: int) -> dict[str, float]:
    """Return the examples of this iteration, and tokens and seconds up to it."""
    summary = folder.examples_summary(iteration)
    examples = sum(count["examples"] for count in files.read_json(summary).values()) if summary.exists() else 0
    agents = (folder.agent(n, learner) for n in range(1, iteration + 1) for learner in learners(folder.config))
    trained = [files.read_json(file) for agent in agents if (file := agent / "training.json").exists()]
    spent = [
        event["seconds"]
        for event in folder.events()
        if event.get("iteration", iteration + 1) <= iteration and "seconds" in event
    ]
    return {
        "training_examples": examples,
        "training_tokens": sum(one["tokens"] for one in trained),
        "seconds": sum(spent),
    }
