"""Writes train.jsonl and held_out.jsonl: made-up news of three sentences, each with a summary of one sentence.

    python recipes/summaries_cpu/make_data.py

Kinds of news in the held-out file occur in no training news.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
QUESTION = "Say in one short sentence what this text is about."
PLACES = ["Lisbon", "Vienna", "Oslo", "Madrid", "Dublin", "Athens", "Prague", "Warsaw", "Bergen", "Porto"]
MORE = [
    "Many people came to see it.",
    "The mayor was there and gave a short speech.",
    "The weather was better than had been expected.",
    "Some neighbours had asked for it for years.",
    "The local paper had a photo of it on its first page.",
]
TRAIN = [
    (
        "The library of {place} has opened a room for children. It has {number} seats.",
        "{place} has a library for children.",
    ),
    (
        "A new bridge for bicycles was opened in {place}. It is {number} metres long.",
        "{place} has a new bicycle bridge.",
    ),
    (
        "The zoo of {place} has {number} young penguins. They were born last week.",
        "Penguins were born in {place}'s zoo.",
    ),
    (
        "A storm took the roof off a school in {place}. {number} pupils stay at home.",
        "A storm damaged a school in {place}.",
    ),
]
HELD_OUT = [
    (
        "The train to {place} will run every {number} minutes. Tickets stay as they are.",
        "Trains to {place} run more often.",
    ),
    (
        "A baker in {place} made a cake of {number} kilos. It was eaten in an hour.",
        "A baker in {place} made a very large cake.",
    ),
    (
        "The museum of {place} bought {number} old maps. They can be seen from May on.",
        "{place}'s museum bought old maps.",
    ),
]


def rows(kinds: list[tuple[str, str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return news, kind after kind in turn, no two the same."""
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        news, summary = kinds[len(made) % len(kinds)]
        parts = {"place": rng.choice(PLACES), "number": str(rng.randint(5, 90))}
        text = f"{news.format(**parts)} {rng.choice(MORE)}"
        made[text] = {"question": f"{text}\n\n{QUESTION}", "answer": summary.format(**parts)}
    return list(made.values())


def main() -> None:
    """Write both files; the same words are drawn each time."""
    for name, kinds, count in (("train", TRAIN, 40), ("held_out", HELD_OUT, 40)):
        lines = [json.dumps(row) for row in rows(kinds, count, random.Random(name))]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
