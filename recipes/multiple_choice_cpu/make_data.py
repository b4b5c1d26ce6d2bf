"""Writes train.jsonl and held_out.jsonl: questions such as "Which of these is an animal?" with four options.

    python recipes/multiple_choice_cpu/make_data.py

What the held-out questions ask for is asked for in no training question.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
TRAIN = {
    "an animal": ["horse", "goat", "rabbit", "whale", "owl", "frog"],
    "a fruit": ["plum", "pear", "banana", "cherry", "lemon", "fig"],
    "a tool": ["hammer", "saw", "drill", "shovel", "axe", "wrench"],
    "a colour": ["red", "blue", "green", "purple", "yellow", "grey"],
}
HELD_OUT = {
    "a musical instrument": ["violin", "flute", "drum", "trumpet", "harp", "piano"],
    "something to drink": ["milk", "tea", "juice", "coffee", "water", "lemonade"],
    "a part of the body": ["knee", "elbow", "nose", "ankle", "shoulder", "thumb"],
    "a piece of clothing": ["shirt", "sock", "coat", "skirt", "scarf", "glove"],
}


def rows(kinds: dict[str, list[str]], count: int, rng: random.Random) -> list[dict[str, object]]:
    """Return questions, kind after kind in turn, no two the same."""
    made: dict[str, dict[str, object]] = {}
    while len(made) < count:
        kind = list(kinds)[len(made) % len(kinds)]
        right = rng.choice(kinds[kind])
        choices = rng.sample([right, *(rng.choice(kinds[other]) for other in kinds if other != kind)], len(kinds))
        row = {"question": f"Which of these is {kind}?", "choices": choices, "answer": choices.index(right)}
        made[json.dumps(row)] = row
    return list(made.values())


def main() -> None:
    """Write both files; the same words are drawn each time."""
    for name, kinds, count in (("train", TRAIN, 100), ("held_out", HELD_OUT, 100)):
        lines = [json.dumps(row) for row in rows(kinds, count, random.Random(name))]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
