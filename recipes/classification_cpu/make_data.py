"""Writes train.jsonl and held_out.jsonl: made-up reviews, positive or negative.

    python recipes/classification_cpu/make_data.py

Things and opinions of the held-out reviews occur in no training review.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
QUESTION = "Is this review positive or negative?"
CONTEXT = [
    "We came on a Tuesday.",
    "It was a present from my sister.",
    "I had read about it in the paper.",
    "It was raining all day.",
    "My son was with me.",
    "I paid by card.",
]
TRAIN = {
    "things": ["food", "hotel", "phone", "film", "concert", "book", "coffee", "guide", "sofa", "train"],
    "positive": ["wonderful", "excellent", "a real pleasure", "better than I had hoped", "worth every cent"],
    "negative": ["terrible", "a waste of money", "a great disappointment", "worse than I had feared", "broken"],
}
HELD_OUT = {
    "things": ["soup", "museum", "camera", "play", "camping site", "bread", "waiter", "chair", "bicycle", "tour"],
    "positive": ["fantastic", "lovely", "perfect", "a joy from start to end", "exactly what I needed"],
    "negative": ["awful", "horrible", "far too expensive", "a nightmare from start to end", "useless"],
}


def rows(parts: dict[str, list[str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return reviews, positive and negative in turn, no two the same."""
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        label = ("positive", "negative")[len(made) % 2]
        opinion = f"The {rng.choice(parts['things'])} was {rng.choice(parts[label])}."
        text = " ".join(rng.sample([opinion, rng.choice(CONTEXT)], 2))
        made[text] = {"question": f"{text}\n\n{QUESTION}", "answer": label}
    return list(made.values())


def main() -> None:
    """Write both files; the same numbers are drawn each time."""
    for name, parts, count in (("train", TRAIN, 100), ("held_out", HELD_OUT, 100)):
        lines = [json.dumps(row) for row in rows(parts, count, random.Random(name))]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
