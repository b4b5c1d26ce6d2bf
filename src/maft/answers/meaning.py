"""Texts that mean the same: by the angle between sentence embeddings, or as a judge model says.

Both know pairs only, and classes are made by complete linkage: no two answers of a class differ. The answer that stands
for a class is its medoid, the one nearest to all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from maft import files
from maft.answers.equality import Classes, Equality, folded, numbered, representative
from maft.answers.tokens import f1
from maft.errors import DataError
from maft.records import Problem, Record

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]


def complete_linkage(distances: Sequence[Sequence[float]], limit: float) -> list[int]:
    """Merge the two nearest clusters until any two would have members further apart than `limit`.

    >>> complete_linkage([[0, 1, 3], [1, 0, 2], [3, 2, 0]], 2.5)
    [0, 0, 1]
    """
    import numpy as np

    places = list(range(len(distances)))
    if len(places) < 2:
        return places
    apart = np.array(distances, dtype=float)
    np.fill_diagonal(apart, np.inf)
    while (nearest := apart.min()) <= limit and nearest < np.inf:
        first, second = (int(place) for place in np.unravel_index(apart.argmin(), apart.shape))
        apart[first] = apart[:, first] = np.maximum(apart[first], apart[second])
        apart[second] = apart[:, second] = np.inf
        places = [first if place == second else place for place in places]
    return [place or 0 for place in numbered(places)]


def medoid(answers: Iterable[str], distance: Callable[[str, str], float]) -> str:
    """Return the answer whose distances to all others sum to the least; among equals the shortest, then the first."""
    texts = list(answers)
    sums = {text: round(sum(distance(text, other) for other in texts), 9) for text in texts}
    return representative(text for text in texts if sums[text] == min(sums.values()))


class Embedded(Equality):
    """Texts whose embeddings have a cosine of `similarity` or more are the same."""

    name = "embedding"

    def __init__(self, embed: Embed, similarity: float) -> None:
        self._embed, self.similarity = embed, similarity
        self._known: dict[str, Any] = {}

    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Cluster the different texts by complete linkage."""
        keys = [None if answer is None else folded(answer) for answer in answers]
        distinct = sorted({key for key in keys if key is not None})
        cosines = self.cosines(distinct)
        places = complete_linkage([[1 - cosine for cosine in row] for row in cosines], 1 - self.similarity + 1e-9)
        place = dict(zip(distinct, places, strict=True))
        return numbered(None if key is None else place[key] for key in keys)

    def medoid(self, answers: Iterable[str]) -> str:
        """Return the text nearest to all others."""
        texts = list(answers)
        keys = sorted(set(map(folded, texts)))
        cosine = {
            (a, b): value
            for a, row in zip(keys, self.cosines(keys), strict=True)
            for b, value in zip(keys, row, strict=True)
        }
        return medoid(texts, lambda a, b: 1 - cosine[folded(a), folded(b)])

    def cosines(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the cosine of the angle between each two texts; a text without a direction is like itself alone."""
        import numpy as np

        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = np.array(self._embed(new), dtype=float)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._known.update(zip(new, vectors / np.where(lengths == 0, 1, lengths), strict=True))
        if not texts:
            return []
        matrix = np.array([self._known[text] for text in texts])
        cosines = matrix @ matrix.T
        np.fill_diagonal(cosines, 1.0)
        result: list[list[float]] = cosines.clip(-1, 1).tolist()
        return result


def fitting_similarity(embedded: Embedded, questions: Iterable[Iterable[str]]) -> float | None:
    """Return the similarity that best parts answers to the same question; None for want of pairs.

    The cosines of all pairs of different answers to a question are divided into a low and a high group by Otsu's
    threshold, whose groups differ most. Where all answers mean the same, it parts them nevertheless.
    """
    import numpy as np

    matrices = [embedded.cosines(sorted(set(map(folded, answers)))) for answers in questions]
    pairs = [matrix[i][j] for matrix in matrices for i, j in combinations(range(len(matrix)), 2)]
    if len(pairs) < 2:
        return None
    ordered = np.sort(np.array(pairs))
    counts, sums = np.arange(1, len(ordered)), np.cumsum(ordered)
    low, high = sums[:-1] / counts, (sums[-1] - sums[:-1]) / (len(ordered) - counts)
    cut = int(np.argmax(counts * (len(ordered) - counts) * (high - low) ** 2))
    return round(max(0.0, float(ordered[cut] + ordered[cut + 1]) / 2), 3)


class Judgement(Record):
    """What a judge said of two answers to a question, asked in both orders."""

    judge: str
    question: str
    """Digest of its text."""
    a: str
    b: str
    """The answers without regard to case and spacing, in code-point order."""
    same: bool | None
    """None: the two orders have different verdicts, or one reply has none."""
    unread: int = 0
    """Replies that said neither yes nor no, of two."""
    cut: int = 0
    """Those of them that ended at the limit of tokens."""


class Judgements:
    """Judgements by judge, question and pair; kept in a file of the run folder."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Judgement] = {}
        self._file: Path | None = None

    @contextmanager
    def keeping(self, path: Path) -> Iterator[None]:
        """Keep new judgements in a file, and know those in it alone, while the block runs."""
        files.drop_torn_line(path)
        before = self._file, self._known
        self._file, self._known = path, {}
        self.learn(path)
        try:
            yield
        finally:
            self._file, self._known = before
            self.learn(path)

    def learn(self, path: Path) -> None:
        """Read the judgements in a file, if it exists."""
        if path.exists():
            self._remember(files.read_records(path, Judgement))

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Remember judgements, and keep them."""
        self._remember(judgements)
        if self._file is not None and judgements:
            files.append_records(self._file, judgements)

    def find(self, judge: str, question: str, a: str, b: str) -> Judgement | None:
        """Return what a judge said of a pair, in either order; None if it was not asked."""
        return self._known.get((judge, question, *sorted((folded(a), folded(b)))))

    def _remember(self, judgements: Iterable[Judgement]) -> None:
        self._known.update({(one.judge, one.question, one.a, one.b): one for one in judgements})


judgements = Judgements()
"""All judgements of this process, as `verify.verifier` has those of algebra."""


class Judged(Equality):
    """Texts of which a judge says, in both orders, that they are the same.

    Nobody is asked here: `pipeline.judging` asks about the pairs of many questions at a time, before votes are counted.
    """

    name = "judge"

    def __init__(self, judge: str) -> None:
        self.judge = judge

    @staticmethod
    def digest(question: str) -> str:
        """Return what stands for a question in the file of judgements."""
        return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()

    def find(self, question: str, a: str, b: str) -> Judgement | None:
        """Return what the judge said of two answers to a question; None if it was not asked."""
        return judgements.find(self.judge, self.digest(question), a, b)

    def knows(self, a: str, b: str, problem: Problem) -> bool:
        """Say whether the judge has been asked about two answers."""
        return not self.unknown(problem.question, [a, b])

    def pairs(self, answers: Iterable[str | None]) -> list[tuple[str, str]]:
        """Return the pairs of different answers that the judge has to compare, each in code-point order."""
        first = {folded(answer): answer for answer in sorted((a for a in answers if a is not None), reverse=True)}
        return list(combinations(sorted(first.values()), 2))

    def unknown(self, question: str, answers: Iterable[str | None]) -> list[tuple[str, str]]:
        """Return the pairs about which the judge has not been asked."""
        return [pair for pair in self.pairs(answers) if self.find(question, *pair) is None]

    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Look the judgements up; a pair without a verdict is not the same.

        Raises:
            DataError: the judge has not been asked.
        """
        question = problem.question if problem else ""
        if unknown := self.unknown(question, answers):
            raise DataError(
                f"{len(unknown)} pairs of answers to {question[:60]!r} have not been judged, and task.equality = judge "
                "needs a verdict on each. Only `maft run` and its stages ask the judge."
            )
        pairs = self.pairs(answers)
        names = sorted({name for pair in pairs for name in pair})
        place = {name: n for n, name in enumerate(names)}
        distances = [[1.0] * len(names) for _ in names]
        for a, b in pairs:
            judgement = self.find(question, a, b)
            distances[place[a]][place[b]] = distances[place[b]][place[a]] = float(not (judgement and judgement.same))
        merged: Mapping[Hashable, int] = {
            folded(name): number for name, number in zip(names, complete_linkage(distances, 0.5), strict=True)
        }
        return numbered(None if a is None else merged.get(folded(a), 0) for a in answers)

    def medoid(self, answers: Iterable[str]) -> str:
        """Return the text that shares the most tokens with all others."""
        return medoid(answers, lambda a, b: 1 - f1(a, b))
