"""The diversity of every society of a run, from its debates on the held-out questions."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from maft import files
from maft.diversity.likelihood import Dialogue, LikelihoodReader, Reading
from maft.diversity.measures import Diversity, disagreement, dissimilarity, mean_kl, others_nll
from maft.errors import DataError
from maft.evaluation.votes import held_out
from maft.models.embedding import embedder
from maft.records import AgentRef, Debate
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.runs.progress import Bar, Progress


def measure(folder: RunFolder, num_read: int, progress: Progress) -> list[Diversity]:
    """Measure every evaluated society that was not measured before, and return all measurements.

    Every agent reads the replies to `num_read` questions, for likelihood and KL; 0 leaves these out.
    """
    name, embed = embedder()
    reader = LikelihoodReader(folder.config.engine)
    for iteration in range(folder.config.num_iterations + 1):
        known = _measured(folder, iteration)
        n = folder.config.debate.num_agents
        done = known is not None and (n == 1 or known.num_read >= min(num_read, known.num_questions))
        if folder.evaluated(iteration) and not done:
            held = held_out(folder, iteration)
            debates = [debate for debate in held.debates if debate.error is None]
            texts = [turn.call.reply.text for debate in debates for turn in debate.latest]
            vectors = embed(texts)
            result = Diversity(
                iteration=iteration,
                num_questions=len(debates),
                disagreement=disagreement(debates, held.votes),
                dissimilarity=dissimilarity([vectors[k : k + n] for k in range(0, len(vectors), n)]),
                embedder=name,
            )
            if num_read and n > 1:
                result = _read(folder, result, debates[:num_read], reader, progress)
            files.write_json(folder.diversity(iteration), result.model_dump())
    return measured(folder)


def check_weights(folder: RunFolder) -> None:
    """Make sure, before a model is loaded, that finetuned agents have adapters; the null trainer writes none.

    Raises:
        DataError: one has none.
    """
    for iteration in filter(folder.evaluated, range(1, folder.config.num_iterations + 1)):
        for agent in societies.after(folder, iteration).agents:
            if agent.adapter and not (Path(agent.adapter) / "adapter_config.json").exists():
                raise DataError(
                    f"{agent.adapter} holds no weights (engine.trainer = {folder.config.engine.trainer}), and "
                    "likelihood and KL need them. Give --questions 0 for the other measures."
                )


def measured(folder: RunFolder) -> list[Diversity]:
    """Return the measurements so far."""
    by_iteration = (_measured(folder, number) for number in range(folder.config.num_iterations + 1))
    return [one for one in by_iteration if one is not None]


def _measured(folder: RunFolder, iteration: int) -> Diversity | None:
    file = folder.diversity(iteration)
    return Diversity.model_validate(files.read_json(file)) if file.exists() else None


class Kept(Reading):
    """A reading in the run folder: none is made twice."""

    model: str
    problem_id: str
    agent: str
    cut: bool = False
    """Whether the reply was read without an end token, as one that was cut."""

    @property
    def key(self) -> tuple[str, str, bool]:
        """What was read, and how."""
        return self.problem_id, self.agent, self.cut


class _Read(NamedTuple):
    """The last replies of the agents of one model, read by each of them and by the model itself, which comes last."""

    size: int
    """Number of agents; their replies take turns."""
    has_base: bool
    """Whether the model is the agents' untrained base, and not the result of full finetuning."""
    readings: Sequence[Reading]

    @property
    def to_base(self) -> list[float]:
        """Return the mean KL divergence from each agent to the model."""
        count = len(self.readings) if self.has_base else 0
        return [sum(one.kl[agent][-1] for one in self.readings) / count for agent in range(self.size) if count]


def _read(
    folder: RunFolder, result: Diversity, debates: Sequence[Debate], reader: LikelihoodReader, progress: Progress
) -> Diversity:
    """Add the measures that need the models: the agents who spoke last, and the untrained model.

    Likelihoods of tokens can be compared within one model only, so agents are read by others of their model.
    """
    society = societies.after(folder, result.iteration)
    by_model: dict[str, list[AgentRef]] = {}
    for speaker in society.critics or society.generators:
        by_model.setdefault(speaker.model, []).append(speaker)
    untrained = {agent.name: agent.model for agent in societies.untrained(folder.config).agents}
    num_replies = len(debates) * sum(map(len, by_model.values()))
    read: list[_Read] = []
    with progress.stage(f"iteration {result.iteration}: diversity", num_replies, "reply") as bar:
        for model, agents in by_model.items():
            has_base = all(untrained[agent.name] == model for agent in agents)
            if len(agents) > 1 or has_base:
                readings = _readings(folder, result.iteration, model, agents, debates, reader, bar)
                read.append(_Read(len(agents), has_base, readings))
    return result.model_copy(
        update=_measures(read) | {"num_models": len(by_model), "num_read": len(debates) * bool(read)}
    )


def _readings(
    folder: RunFolder,
    iteration: int,
    model: str,
    agents: Sequence[AgentRef],
    debates: Sequence[Debate],
    reader: LikelihoodReader,
    bar: Bar,
) -> list[Kept]:
    """Return readings of the last replies of a model's agents, by each agent and by the model itself; keep new ones."""
    path = folder.readings(iteration)
    files.drop_torn_line(path)
    earlier = files.read_records(path, Kept) if path.exists() else []
    kept = {one.key: one for one in earlier if one.model == model}
    last = [(debate, agent, debate.latest[agent.index].cut) for debate in debates for agent in agents]
    dialogues = {(d.problem_id, agent.name, cut): Dialogue(d.dialogue(agent.index), cut) for d, agent, cut in last}
    missing = [key for key in dialogues if key not in kept]
    bar.skip(len(dialogues) - len(missing))
    places = iter(missing)

    def keep(readings: Sequence[Reading]) -> None:
        named = zip(islice(places, len(readings)), readings, strict=True)
        new = [
            Kept(model=model, problem_id=problem_id, agent=agent, cut=cut, **reading.model_dump())
            for (problem_id, agent, cut), reading in named
        ]
        files.append_records(path, new)
        kept.update({one.key: one for one in new})
        bar.advance(len(new))

    base = AgentRef(role="generator", index=0, model=model)
    reader.read((*agents, base), [dialogues[key] for key in missing], keep)
    return [kept[key] for key in dialogues]


def _measures(read: Sequence[_Read]) -> dict[str, float | None]:
    """Return the means over pairs of agents of one model, and over agents; None where there are none."""
    paired = [(one.size, place, reading) for one in read if one.size > 1 for place, reading in enumerate(one.readings)]
    to_base = [value for one in read for value in one.to_base]
    return {
        "likelihood": others_nll([r.nll[:n] for n, _, r in paired], [k % n for n, k, _ in paired]) if paired else None,
        "kl": mean_kl([[row[:n] for row in r.kl[:n]] for n, _, r in paired]) if paired else None,
        "kl_to_base": sum(to_base) / len(to_base) if to_base else None,
    }
