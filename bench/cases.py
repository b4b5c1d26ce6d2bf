r"""Try rows of hard answers and say kind by kind what holds.

    python -m bench.cases DIR

DIR holds `equal.jsonl` (kind, task, a, b, equal: whether two answers are the same to that task) and `extract.jsonl`
(kind, task, text, answer: what is read in a reply; null where nothing is). The last line printed is JSON: the share of
the rows of each file that hold.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maft import answers
from maft.answers import EQUALITIES

Row = dict[str, Any]

READERS: dict[str, Callable[[str], str | None]] = {
    "math": answers.extract_stated,
    "text": answers.extract_stated,
    "sequence": answers.extract_stated,
    "box": answers.extract_answer,
    "number": answers.extract_number,
    "choice": answers.extract_choice,
}


def same(row: Row) -> bool:
    """Whether the two answers of a row are the same, both ways round, by the equality that its task names."""
    equality = EQUALITIES["mathematics" if row["task"] == "math" else row["task"]]()
    return {equality.same(row["a"], row["b"]), equality.same(row["b"], row["a"])} == {row["equal"]}


def read(row: Row) -> bool:
    """Whether a reply is read as the row says; the same mathematics in another spelling will do."""
    answer, right = READERS[row["task"]](row["text"]), row["answer"]
    if answer is None or right is None:
        return answer == right
    return answer == right or (row["task"] != "choice" and answers.equivalent(answer, right))


def tried(path: Path, check: Callable[[Row], bool]) -> float:
    """Try every row of a file, print kind by kind what holds, and return the share that does."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    by_kind: dict[str, list[tuple[Row, bool]]] = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append((row, check(row)))
    print(f"{path.name}")
    for kind, results in by_kind.items():
        print(f"  {sum(held for _, held in results):>3} of {len(results):>3}  {kind}")
        for row, held in results:
            if not held:
                print(
                    f"             not: {json.dumps({k: v for k, v in row.items() if k != 'kind'}, ensure_ascii=False)}"
                )
    return sum(held for results in by_kind.values() for _, held in results) / len(rows) if rows else 1.0


def main() -> None:
    """Try both files of a folder."""
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}")
    folder = Path(sys.argv[1])
    shares = {name: tried(folder / f"{name}.jsonl", check) for name, check in (("equal", same), ("extract", read))}
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
