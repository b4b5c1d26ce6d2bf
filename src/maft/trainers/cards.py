"""Model cards: the README.md of a finetuned agent, in its run folder, merged, or on the hub.

A trainer knows the base, the data and the settings of one finetuning; `maft.sharing` adds what only the run knows: the
numbers, and how to load the agent from where it lies.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maft.config import Training
from maft.config.training import EXAMPLES

TAGS = ("maft", "multiagent-finetuning")

CITATION = """\
## Citation

The method is by Subramaniam et al.; `maft` is an independent implementation.

```bibtex
@inproceedings{subramaniam2025multiagent,
  title     = {Multiagent Finetuning: Self Improvement with Diverse Reasoning Chains},
  author    = {Subramaniam, Vighnesh and Du, Yilun and Tenenbaum, Joshua B. and Torralba, Antonio and Li, Shuang and
               Mordatch, Igor},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2501.05707}
}
```
"""

_WHAT = {
    "lora": "A LoRA adapter of",
    "qlora": "A LoRA adapter, trained on a base in 4 bits (NF4), of",
    "full": "All weights, finetuned, of",
}
_MERGED = _WHAT | {
    "lora": "A LoRA adapter merged into",
    "qlora": "A LoRA adapter, trained on a base in 4 bits (NF4), merged into the unquantised",
}

_ABOUT = """\
# {agent}, iteration {iteration}

{what} `{base}`, made with `maft` by multiagent finetuning
([arXiv 2501.05707](https://arxiv.org/abs/2501.05707)): this {role} learnt from {lessons}.

| | |
|---|---|
| Role | {role}: {duty} |
| Iteration | {iteration} |
| Started from | {start} |
| Data | {data} |
| Result | {result} |
| Hyperparameters | {hyperparameters} |
| Versions | {versions} |
"""

_LESSONS = {
    "agreeing": "those of its own responses that\nagree with their label",
    "judged": "its own responses:\nthose that agree with their label were made likelier, dissenting ones less likely",
    "pairs": "pairs of its own responses:\none that agrees with the label was made likelier than one that dissents",
    "advantages": "several answers of its\nown to each question: those that agree with the label were made likelier",
}

_DUTIES = {"generator": "gives first answers", "critic": "answers again after it was shown what others answered"}


class Finetuned(NamedTuple):
    """One finetuned agent, as its trainer knows it."""

    agent: str
    """Such as `critic_2`."""
    role: str
    iteration: int
    base: str
    """A name of the base model that means something elsewhere, see `public_name`."""
    training: Training
    """The settings that held for this agent."""
    summary: Mapping[str, Any]
    """What its training.json says."""
    merged: bool = False
    """Whether the adapter is merged into the base."""

    @property
    def library(self) -> str:
        """The library that loads it, by the hub's name."""
        return "transformers" if self.merged or self.training.method == "full" else "peft"


def card(one: Finetuned, sections: Sequence[str] = (), **metadata: Any) -> str:
    """Return the README.md of an agent.

    Args:
        one: the agent.
        sections: Markdown between what the trainer knows and the citation.
        metadata: more fields of `huggingface_hub.ModelCardData`, such as `license`.
    """
    tags = [one.training.method, *(["merged"] if one.merged else [])]
    head = front_matter(base_model=one.base, library_name=one.library, tags=tags, **metadata)
    return "\n".join([head, about(one), *sections, CITATION])


def front_matter(*, tags: Sequence[str] = (), **fields: Any) -> str:
    """Return the metadata that the hub reads, as it stands at the top of a card."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(pipeline_tag="text-generation", tags=[*TAGS, *tags], **fields)
    return f"---\n{data.to_yaml()}\n---\n"


def about(one: Finetuned) -> str:
    """Return what an agent is and how it was made."""
    summary, losses = one.summary, one.summary["losses"]
    chosen = one.training.model_dump(mode="json", exclude=set(one.training.without_effect()))
    method, lora = chosen.pop("method"), chosen.pop("lora")
    shape = {} if method == "full" else {f"lora.{key}": value for key, value in lora.items()}
    start = summary["init_adapter"]
    return _ABOUT.format(
        what=_MERGED[method] if one.merged else _WHAT[method],
        base=one.base,
        agent=one.agent,
        role=one.role,
        duty=_DUTIES[one.role],
        lessons=_LESSONS[EXAMPLES.get(one.training.objective, "agreeing")],
        iteration=one.iteration,
        start="the base model" if start is None else f"the adapter `{start}`",
        data=f"{summary['num_examples']} examples, {summary['num_dropped_too_long']} dropped as longer than "
        f"{one.training.max_length} tokens; {summary['tokens']} tokens over all epochs, "
        f"{summary['completion_tokens']} of them with loss",
        result=f"loss {losses[0]:.4f} at the first of {len(losses)} steps, {losses[-1]:.4f} at the last"
        if losses
        else "not trained, for there was no example: the weights are those that it started from",
        hyperparameters=", ".join(f"{key} {value}" for key, value in (shape | chosen).items()),
        versions=", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    )
