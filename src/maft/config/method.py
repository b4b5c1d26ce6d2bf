"""Settings of the method: questions, debates, who takes part, votes, examples."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError

from maft.config.base import FREE, NEWER, PLACE, PerIteration, Positive, Section, Share, of_iteration
from maft.extensions import Part
from maft.records import SamplingParams

_FILES = ("train_file", "eval_file", "dataset", "subset", "train_split", "eval_split")
TASK_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("operators", "low", "high", "negative", "shape", "size", "train_sets"),
    "gsm8k": _FILES,
    "math": (*_FILES, "levels", "types"),
    "mmlu": (*_FILES, "types"),
    "dataset": (*_FILES, "question_field", "gold_field"),
    "jsonl": (*_FILES, "question_field", "gold_field"),
    "code": (*_FILES, "question_field", "columns", "num_inputs", "filter_by_tests"),
    "classification": (*_FILES, "question_field", "gold_field", "labels"),
    "text": (*_FILES, "question_field", "gold_field"),
    "extraction": (*_FILES, "question_field", "gold_field", "fields"),
    "reasoning_gym": ("size", "train_sets", "threshold", "options"),
}
"""The settings of each task besides those that all tasks have."""
OUTSIDE = ("size", "train_file", "eval_file", "options")
"""The settings of a task from outside; what else it needs is in `options`."""


class SandboxConfig(Section):
    """How programs of models are run, see docs/howto/code.md."""

    allow_weak: Annotated[bool, FREE] = False
    """Run programs even where files and network cannot be blocked, only time, memory and number of processes."""
    call_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Maximum CPU seconds of one call; a program has four times as much for all its inputs."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Maximum memory of a program, in MB."""


class _TaskName(Part):
    """As `Part`, with the names of reasoning-gym's data sets behind a colon."""

    def __call__(self, name: str) -> str:
        kind, _, inner = name.partition(":")
        return name if kind == "reasoning_gym" and inner else super().__call__(name)


_TASK_NAMES = [name if name != "reasoning_gym" else "reasoning_gym:<name>" for name in TASK_SETTINGS]

EQUALITY_NAMES = (
    *("mathematics", "text", "exact", "sequence", "folded_sequence", "json", "exact_json", "tokens", "embedding"),
    "judge",
)
FieldType = Literal["text", "number", "boolean", "list", "any"]


class TaskConfig(Section):
    """Which questions, and how they are split."""

    name: Annotated[str, AfterValidator(_TaskName("task", _TASK_NAMES))]
    """`arithmetic`, `gsm8k`, `math`, `mmlu`, `dataset` (any columns of a file or data set; `jsonl` is the same),
    `code`, `classification` (labels of a fixed set), `extraction` (JSON with fields), `text` (free text),
    `reasoning_gym:<name>`, or a class of your own, such as `my_file.py:MyTask` or `package.module:MyTask`."""
    num_train: Positive | None = None
    """Number of training questions; null: all."""
    num_eval: Positive | None = None
    """Number of held-out questions; null: all."""
    equality: Annotated[str, AfterValidator(Part("equality", EQUALITY_NAMES))] | None = None
    """Which answers are the same: `mathematics` (values and expressions), `text` (words, without regard to case),
    `exact` (characters), `sequence` (tokens in order, line by line), `folded_sequence` (case folded), `json` (by
    structure; texts without regard to case), `exact_json` (texts by their characters), `tokens` (short answers and
    lists), `embedding` (as near as `similarity`) or `judge` (as a model says); null: the task's own, which is text for
    mmlu and classification, json for extraction, tokens for text, the scorer for reasoning_gym, behaviour for code,
    mathematics for all others."""
    encoder: Annotated[str, PLACE, NEWER] = "all-MiniLM-L6-v2"
    """With `equality: embedding`, the sentence encoder: all-MiniLM-L6-v2, a folder or a hub name."""
    similarity: Annotated[Share, NEWER] = 0.8
    """With `equality: embedding`, the minimum cosine of answers that are the same; `maft calibrate` sets it."""
    judge: Annotated[str, PLACE, NEWER] = "base"
    """Who compares answers, with `equality: judge`, and says which are better, with `maft judge`: `base` (the untrained
    model), the name or folder of another model, or `openai:<name>`, a hosted one."""
    split_seed: int = 0
    """Seed of the split into training and held-out questions, and of questions that are generated."""
    operators: str = "+-*"
    """arithmetic: operators between two numbers."""
    low: int = 0
    """arithmetic: smallest number."""
    high: int = 9
    """arithmetic: largest number."""
    negative: bool = True
    """arithmetic: also ask questions with negative results."""
    shape: str | None = None
    """arithmetic: the form of the expressions, with a letter for each random number, such as `a+b*c+d-e*f`; null: all
    expressions of two numbers."""
    size: Positive | None = None
    """arithmetic with a shape, reasoning_gym: number of questions to generate; null: num_train + num_eval, or 1000."""
    train_sets: Annotated[Positive, NEWER] = 1
    """arithmetic with a shape, reasoning_gym: sets of `num_train` training questions, so that each iteration learns
    from others: iteration 1 from the first set, and after the last set from the first again. Held-out questions stay.
    """
    train_file: Annotated[Path | None, PLACE] = None
    """gsm8k, math, mmlu, dataset: a .jsonl, .json, .csv, .tsv or .parquet file (.gz allowed), or a folder of .json
    files."""
    eval_file: Annotated[Path | None, PLACE] = None
    """The file of the held-out questions; null: they are taken from `train_file`."""
    dataset: Annotated[str | None, PLACE] = None
    """gsm8k, math, mmlu, dataset: a hub name or a local folder, instead of files; null: the task's own, if any."""
    subset: str | None = None
    """Configuration of the data set, if it has several."""
    train_split: str | None = None
    """Split with the training questions; null: the task's own, or `train`."""
    eval_split: str | None = None
    """Split with the held-out questions; null: the task's own, or a part of `train_split` (also if both are equal)."""
    question_field: str = "question"
    """dataset: the column with the question, or a field within one, such as `prompt.0.content`."""
    gold_field: str | None = "answer"
    """dataset: the column with the known answer, used for reporting only; answers may be missing. Null: no answers."""
    columns: dict[str, str] = {}  # noqa: RUF012  # pydantic copies it
    """code: the column of each thing that a row has (`question`, `signature`, `name`, `inputs`, `public_tests`,
    `tests`, `setup`, `solution`), where it has not the name that HumanEval, MBPP or docs/howto/code.md give it."""
    num_inputs: Positive = 20
    """code: number of inputs on which programs are compared: those given, then others drawn from the types."""
    filter_by_tests: bool = True
    """code: programs that fail a public test of their question do not vote."""
    levels: tuple[int | str, ...] = ()
    """math: only these levels, such as 3 or `Level 3`."""
    types: tuple[str, ...] = ()
    """math: only these types, such as `Algebra`; mmlu: only these subjects."""
    labels: Annotated[tuple[str, ...], NEWER] = ()
    """classification: the labels, two or more; case and spacing do not count."""
    fields: Annotated[dict[str, FieldType], NEWER] = {}  # noqa: RUF012  # pydantic copies it
    """extraction: the fields of the JSON object and their types, such as `{city: text, number: number}`; a field may be
    null. Empty: any JSON."""
    threshold: Share = 1.0
    """reasoning_gym: minimum score of a right answer."""
    options: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
    """reasoning_gym: settings of the data set, by its own names; your own task: its settings."""

    _sandbox: SandboxConfig = PrivateAttr(SandboxConfig())

    @property
    def sandbox(self) -> SandboxConfig:
        """The section `sandbox` of the run, for tasks whose answers are programs."""
        return self._sandbox

    def faults(self) -> Iterator[str]:
        """See `Section`."""
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        for name in ("encoder", "similarity"):
            if name in changed and self.equality != "embedding":
                yield f"task.{name} is for task.equality = embedding, which is {self.equality}."
        if self.train_sets > 1 and (self.num_train is None or (self.name == "arithmetic" and self.shape is None)):
            yield (
                "task.train_sets generates further sets of task.num_train questions, for arithmetic only with a "
                "task.shape, which gives enough questions. Set both, or leave out task.train_sets."
            )
        own = TASK_SETTINGS.get(self.name.partition(":")[0], OUTSIDE)
        for other in dict.fromkeys(name for names in TASK_SETTINGS.values() for name in names):
            if other in changed and other not in own:
                yield (
                    f"task.{other} is not a setting of task {self.name}, which has: "
                    f"num_train, num_eval, split_seed, equality, {', '.join(own)}."
                )


PROTOCOLS = ("debate", "vote", "contested", "dissenters", "conformist", "sparse", "aggregator", "judge")
"""Names of the protocols that ship."""
COMPARING = ("contested", "dissenters", "conformist", "aggregator", "judge")
"""Protocols that compare answers while a debate goes on."""
Quote = Literal["full", "answers", "summary"]


class DebateConfig(Section):
    """Settings of the debates: agents, rounds, and what is shown to whom."""

    protocol: Annotated[str, AfterValidator(Part("protocol", PROTOCOLS))] = "debate"
    """`debate`: M rounds, as in the paper. `vote`: first answers only (settings of later rounds have no effect).
    `contested`, `dissenters`, `conformist`, `sparse`, `aggregator`, `judge`: see docs/protocols.md. Or your own class,
    such as `my_file.py:MyProtocol`."""
    num_agents: Positive = 3
    """N: number of generators, and also of critics."""
    num_rounds: Positive = 2
    """M: number of rounds, one of generators and M - 1 of critics."""
    summarizer: Annotated[str, PLACE] = "base"
    """Who summarises the other agents' answers: `base` (the untrained model), `self` (the critic), `none` (nobody), or
    the name or folder of another model."""
    quote: Annotated[Quote | None, NEWER] = None
    """What critics are shown of other agents: `full` replies, only the `answers` with counts, or a `summary`; null:
    a summary, or full replies where `summarizer` is `none`."""
    max_others: Positive = 5
    """Maximum number of other agents' replies that are shown or summarised."""
    num_samples: Positive = 1
    """Number of first answers of each generator. The first one is debated; the others only vote, where
    `vote.label_from` or `vote.over` counts them."""
    num_eval_samples: Positive | None = None
    """Number of first answers of each generator on held-out questions, for a vote with as many tokens as a debate
    (`majority@budget`); null: `num_samples`."""
    wrong_majorities: Annotated[Share | None, NEWER] = None
    """Share of the training debates that start from a wrong majority, judged by the vote over all first answers; the
    others start from a right one. Answers are chosen among each generator's first answers, so it needs `num_samples`
    above 1. Null: each generator's first answer is debated."""
    show_thinking: bool = False
    """Show other agents and the summariser the thinking before an answer, too; it is always kept in the record.

    """
    keep_tokens: bool = False
    """Keep each reply's sampled token ids and their log-probabilities in the files, where the engine returns them.
    Finetuning then learns these tokens instead of tokenising the text again."""

    @property
    def quoted(self) -> Quote:
        """What critics are shown of other agents."""
        return self.quote or ("full" if self.summarizer == "none" else "summary")

    def faults(self) -> Iterator[str]:
        """See `Section`."""
        if self.quote == "summary" and self.summarizer == "none":
            yield (
                "debate.quote = summary needs a summariser, but debate.summarizer is none. Set that to base, "
                "self or a model; or debate.quote to full or answers."
            )
        if self.wrong_majorities is not None and self.num_samples == 1:
            yield (
                "debate.wrong_majorities chooses among several first answers of each generator. Set debate.num_samples "
                "to 2 or more."
            )
        if self.protocol == "sparse" and self.num_agents < 4:
            yield (
                f"debate.protocol = sparse shows each critic its two neighbours, which needs at least 4 agents, got "
                f"{self.num_agents}. Set debate.num_agents to 4 or more, or debate.protocol to debate."
            )


class RoleSampling(Section):
    """Sampling parameters of each role."""

    generator: SamplingParams = SamplingParams()
    critic: SamplingParams = SamplingParams()
    summarizer: SamplingParams = SamplingParams()


Temperature = Annotated[float, Field(ge=0)]


class SamplingConfig(Section):
    """Sampling parameters for each stage and role."""

    train_temperature: Annotated[PerIteration[Temperature] | None, NEWER] = None
    """Temperature of generators and critics in training debates, instead of that in `train`. May be a list with one
    entry per iteration; the last entry holds for all later ones."""

    train: RoleSampling = RoleSampling()
    """Debates on the training questions."""
    eval: RoleSampling | None = None
    """Debates on held-out questions; null: as `train`."""

    def of(self, stage: str, iteration: int) -> RoleSampling:
        """Return what holds for the debates of a stage, `train` or `eval`."""
        if stage == "eval":
            return self.eval or self.train
        if self.train_temperature is None:
            return self.train
        change = {"temperature": of_iteration(self.train_temperature, iteration)}
        drawn = {role: getattr(self.train, role).model_copy(update=change) for role in ("generator", "critic")}
        return self.train.model_copy(update=drawn)


Ballots = Literal["last", "first", "all"]


class VoteConfig(Section):
    """How votes are counted: for pseudo-labels, and for the answers of debates."""

    label_from: PerIteration[Ballots] = "last"
    """Which answers vote for the label: of the `last` round (the paper), the `first` (with all samples), or `all`. May
    be a list with one entry per iteration; the last entry holds for all later ones."""
    label: Annotated[Literal["majority", "random", "least_frequent"], NEWER] = "majority"
    """Which answer is the label: that of the `majority`; or, as controls, a `random` one of the distinct answers given,
    or the `least_frequent` one. Questions are dropped as with `majority`."""
    over: Ballots = "last"
    """Which answers vote for the final answer on a held-out question."""
    min_agreement: Literal["majority", "plurality"] | Share = "majority"
    """Minimum share of votes of the label, otherwise the question is not trained on: `majority` (more than half),
    `plurality` (any share, as in the paper), or a number."""
    ties: Literal["random", "abstain"] = "random"
    """If several answers have the most votes: `random` draws one (the paper), `abstain` gives no label."""
    weight: Annotated[Literal["none", "likelihood"], NEWER] = "none"
    """Weight of a ballot: `none`, all equal; `likelihood`, the likelihood of the reply under its own model (geometric
    mean of its tokens' probabilities), which needs `debate.keep_tokens`."""
    count_cut: bool = True
    """Whether a reply that was cut at the token limit votes, if an answer can be read."""


class GuardConfig(Section):
    """When a run stops because finetuning ruined an agent, by its held-out replies before and after an iteration.

    A rise stops a run if it is larger than its limit here and than chance, which takes about ten questions or more.
    """

    enabled: bool = True
    """Whether a run stops after an iteration that ruined agents; `maft run --keep-going` continues once."""
    unparsed: Share = 0.3
    """Maximum rise of the share of an agent's replies without a readable answer."""
    cut: Share = 0.5
    """Maximum rise of the share of its replies that are cut at the token limit."""
    same_answer: Share = 0.5
    """Maximum rise of the share of questions to which it gives its most frequent answer."""
    disagreement: Share = 0.2
    """Maximum rise of the share of other agents' first answers that differ from its own."""


def _read_task(entry: object) -> object:
    """Take a section for a task, and say in one line what is wrong with it."""
    if isinstance(entry, TaskConfig):
        return entry
    if not isinstance(entry, dict):
        raise ValueError(f"each entry is a section of settings as under task, such as {{name: gsm8k}}, got {entry!r}.")
    try:
        return TaskConfig.model_validate(entry)
    except ValidationError as errors:
        first = errors.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}") from None


class EvalConfig(Section):
    """What is evaluated besides debates on the held-out questions of the task."""

    also: Annotated[tuple[Annotated[TaskConfig, BeforeValidator(_read_task)], ...], PLACE] = ()
    """Other tasks, to see what finetuning on this one costs elsewhere. Each entry has settings as `task` has;
    generators answer its held-out questions once each, before the first iteration and after the last, with the prompts
    of that task. See docs/report.md."""


class CurateConfig(Section):
    """Which responses an agent learns from."""

    keep: Annotated[Literal["agreeing", "readable", "all"], NEWER] = "agreeing"
    """Which of its own responses an agent learns from: those `agreeing` with the label; or, as controls without labels,
    those with a `readable` answer, or `all`. Replies cut at the token limit are never learned."""
    critic_mix: Share = 0.5
    """w: share of a critic's examples that correct a wrong first answer (D-); the rest keep a right one (D+)."""
    short_side: Literal["cut", "repeat", "use_all"] = "cut"
    """When there are too few D- or D+ for w: `cut` the other side, `repeat` examples of the short one, or `use_all`
    examples and ignore w. If one side is empty, all of the other is used."""
    examples_per_question: Positive = 1
    """Maximum number of first answers to one question that a generator learns from; more than one needs
    `debate.num_samples`."""
    choose: Annotated[Literal["first", "distinct"], NEWER] = "first"
    """Which of several agreeing first answers to a question a generator learns from: those drawn `first`, or those most
    `distinct` from what the other agents answered, by the words and pairs of words that they share."""
    weight_by: Literal["none", "margin", "gain"] = "none"
    """`margin` resamples the examples (same number) in proportion to the margin of the vote: the votes of the label
    minus those of the runner-up. `gain` does so for generators, by how many other agents moved to the label after
    reading the first answer; critics' examples keep equal weights."""
    questions: Annotated[Literal["all", "bootstrap", "shards"], NEWER] = "all"
    """Which questions an agent learns from: `all`; `bootstrap`, as many as there are, drawn with replacement for each
    agent and iteration; `shards`, its own part of about 1/N, the same in every iteration."""
    max_examples: PerIteration[Positive] | None = None
    """Maximum number of examples of one agent in an iteration (or turn, see `train.online_questions`), drawn at random;
    null: no limit. May be a list with one entry per iteration; the last entry holds for all later ones."""
