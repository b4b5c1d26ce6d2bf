"""Writes train.jsonl and held_out.jsonl: questions on made-up sentences, each answered by a few words of its sentence.

    python recipes/questions_cpu/make_data.py

Kinds of sentences in the held-out questions occur in no training question.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ["Anna", "Ben", "Carla", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "Jonas"]
PLACES = ["Lisbon", "Vienna", "Oslo", "Madrid", "Dublin", "Athens", "Prague", "Warsaw"]
THINGS = ["a red lamp", "an old clock", "a blue chair", "a small mirror", "a green bag", "a wooden box"]
TRAIN = [
    ("{name} bought {thing} in {place}.", {"Who bought {thing}?": "{name}", "What did {name} buy?": "{thing}"}),
    ("{name} lives in {place} and collects stamps.", {"Where does {name} live?": "{place}"}),
    ("In {place}, {name} lost {thing}.", {"What did {name} lose?": "{thing}", "Who lost {thing}?": "{name}"}),
    ("{name} sent {thing} to {other}.", {"Who got {thing}?": "{other}", "Who sent {thing}?": "{name}"}),
]
HELD_OUT = [
    ("{name} gave {thing} to {other} in {place}.", {"What did {other} get?": "{thing}", "Who gave {thing}?": "{name}"}),
    ("{other} met {name} in {place}.", {"Where did {other} meet {name}?": "{place}", "Who met {name}?": "{other}"}),
    ("For her birthday, {name} got {thing} from {other}.", {"What did {name} get?": "{thing}"}),
]


def rows(kinds: list[tuple[str, dict[str, str]]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return questions, kind after kind in turn, no two the same."""
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        sentence, questions = kinds[len(made) % len(kinds)]
        question = rng.choice(list(questions))
        name, other = rng.sample(NAMES, 2)
        parts = {"name": name, "other": other, "place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        text = f"Fill in the blank. {sentence} {question} The answer is ___.".format(**parts)
        made[text] = {"question": text, "answer": questions[question].format(**parts)}
    return list(made.values())


def main() -> None:
    """Write both files; the same words are drawn each time."""
    for name, kinds, count in (("train", TRAIN, 60), ("held_out", HELD_OUT, 60)):
        lines = [json.dumps(row) for row in rows(kinds, count, random.Random(name))]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
