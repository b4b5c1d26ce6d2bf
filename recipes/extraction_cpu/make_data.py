"""Writes train.jsonl and held_out.jsonl: made-up messages of a shop, with the place and the number that each names.

    python recipes/extraction_cpu/make_data.py

Sentences, places and goods of the held-out messages occur in no training message.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
QUESTION = "Which city and which number are in this text?"
NAMES = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Elena",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "Jonas",
    "Kate",
    "Liam",
    "Maria",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Tina",
    "Victor",
]
TRAIN = {
    "sentences": [
        "{name} from {city} ordered {number} {goods}.",
        "Please send {number} {goods} to {name} in {city}.",
        "{number} {goods} were delivered to {name}, who lives in {city}.",
        "In {city}, {name} bought {number} {goods} last week.",
        "{name} called from {city} and wants {number} {goods}.",
        "We shipped {number} {goods} to {city} for {name}.",
        "The {number} {goods} that {name} paid for are on their way to {city}.",
        "{name} moved to {city} and took {number} {goods} along.",
        "Our shop in {city} has {number} {goods} left, says {name}.",
        "{name} returned {number} {goods} to the shop in {city}.",
    ],
    "cities": [
        "Lisbon",
        "Vienna",
        "Oslo",
        "Madrid",
        "Paris",
        "Berlin",
        "Rome",
        "Dublin",
        "Athens",
        "Prague",
        "Warsaw",
        "Helsinki",
    ],
    "goods": ["lamps", "chairs", "books", "pillows", "mirrors", "cups", "bags", "clocks", "shirts", "candles"],
}
HELD_OUT = {
    "sentences": [
        "A box with {number} {goods} for {name} got lost near {city}.",
        "{name} would like to pick up {number} {goods} in {city} on Friday.",
        "Last year {name} sold {number} {goods} at the market in {city}.",
        "The driver brought {name} {number} {goods} from {city}.",
        "{city} was cold, and {name} asked us for {number} {goods}.",
        "For her flat in {city}, {name} needs {number} {goods}.",
        "{name} wrote that {number} of the {goods} broke on the way to {city}.",
        "There are {number} {goods} waiting for {name} at the station of {city}.",
    ],
    "cities": ["London", "Milan", "Geneva", "Munich", "Lyon", "Porto", "Bergen", "Zurich", "Naples", "Seville"],
    "goods": ["blankets", "bottles", "plates", "towels", "tables", "toys", "boxes", "knives"],
}


def rows(parts: dict[str, list[str]], count: int, rng: random.Random) -> list[dict[str, object]]:
    """Return messages, sentence after sentence in turn, no two the same."""
    made: dict[str, dict[str, object]] = {}
    while len(made) < count:
        city, number = rng.choice(parts["cities"]), rng.randint(2, 40)
        sentence = parts["sentences"][len(made) % len(parts["sentences"])]
        text = sentence.format(name=rng.choice(NAMES), city=city, number=number, goods=rng.choice(parts["goods"]))
        made[text] = {"question": f"{text}\n\n{QUESTION}", "answer": {"city": city, "number": number}}
    return list(made.values())


def main() -> None:
    """Write both files; the same numbers are drawn each time."""
    for name, parts, count in (("train", TRAIN, 100), ("held_out", HELD_OUT, 100)):
        lines = [json.dumps(row) for row in rows(parts, count, random.Random(name))]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
