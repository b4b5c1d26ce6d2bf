"""Votes and the debates that they belong to: decided once, kept in the run folder, read by reports and counts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from maft import files, tasks
from maft.answers.meaning import Judged
from maft.config import RunConfig
from maft.errors import DataError
from maft.evaluation.methods import HeldOut, names
from maft.files import Records
from maft.method import protocol_of
from maft.method import vote as voting
from maft.records import Debate, GradedVote, Problem, Score, Vote
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade


def problems(folder: RunFolder, side: str) -> dict[str, Problem]:
    """Read the `train` or `eval` questions by id.

    Raises:
        DataError: the file is missing.
    """
    path = folder.problems(side)
    if not path.exists():
        raise DataError(f"{path} is missing, which has the questions of this run. Restore it from a copy.")
    return {problem.id: problem for problem in files.read_records(path, Problem)}


def votes_of(folder: RunFolder, number: int, debates: Iterable[Debate]) -> dict[str, Vote]:
    """Read the votes of an iteration by problem id; those of schema 1 are grouped again."""
    votes = {vote.problem_id: vote for vote in files.read_records(folder.votes(number), Vote)}
    equality = tasks.make(folder.config.task).equality
    for debate in debates if any(vote.partition is None for vote in votes.values()) else ():
        if debate.problem_id in votes:
            votes[debate.problem_id] = voting.with_partition(votes[debate.problem_id], debate, equality)
    return votes


def held_out(folder: RunFolder, number: int) -> HeldOut:
    """Read the held-out debates and votes of a finished evaluation."""
    debates, path = Records(folder.held_out_debates(number), Debate), folder.held_out_votes(number)
    if path.exists():
        return HeldOut(debates, files.read_records(path, GradedVote))
    # An older maft kept no votes. Where answers tied, the label is the answer that was scored.
    scores = files.read_records(folder.scores(number, names(number, folder.config.debate.num_agents)[2]), Score)
    labels = {score.problem_id: score.answers[0] for score in scores}
    votes = []
    for debate, vote in zip(debates, decide(debates, problems(folder, "eval").values(), folder.config), strict=True):
        label = labels.get(debate.problem_id, vote.label)
        votes.append(vote.model_copy(update={"label": label, "winner": vote.classes(debate).get(label)}))
    return HeldOut(debates, votes)


def decide(debates: Iterable[Debate], asked: Iterable[Problem], config: RunConfig) -> list[GradedVote]:
    """Vote on held-out debates by `vote.over`, and grade every class of equal answers once. Nothing is dropped."""
    by_id, task, choose = {p.id: p for p in asked}, tasks.make(config.task), protocol_of(config.debate).ballots
    votes = (
        voting.vote(debate, config.vote, config.seed, task.equality, config.vote.over, choose) for debate in debates
    )
    return [
        graded(
            vote.model_copy(update={"dropped": None}),
            debate,
            by_id[debate.problem_id],
            task.grade,
            task.equality.medoid,
        )
        for vote, debate in zip(votes, debates, strict=True)
    ]


def train_grade(config: RunConfig) -> Grade:
    """Return how answers to training questions are graded: as nobody knows where a judge would have to be asked."""
    task = tasks.make(config.task)
    return (lambda problem, answer: None) if isinstance(task.equality, Judged) else cache(task.grade)


def graded(
    vote: Vote, debate: Debate, problem: Problem, grade: Grade, medoid: Callable[[list[str]], str]
) -> GradedVote:
    """Grade each class of a vote by its representative."""
    members: Mapping[int, list[str]] = defaultdict(list)
    for answer, number in vote.classes(debate).items():
        if answer is not None and number is not None:
            members[number].append(answer)
    known = grade(problem, None) is not None
    right = tuple(grade(problem, medoid(members[number])) is True for number in range(len(members)))
    return GradedVote(**dict(vote), grades=right if known else None)
