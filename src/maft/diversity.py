"""The diversity of every society of a run, read off its debates on the held-out questions."""

from collections.abc import Sequence
from pathlib import Path

from maft import finetune, store
from maft.evaluation.diversity import Diversity, disagreement, dissimilarity, last_dialogues, mean_kl, others_nll
from maft.progress import Progress
from maft.records import AgentRef, Debate
from maft.samplers.embedding import embedder
from maft.samplers.likelihood import LikelihoodReader
from maft.store import RunFolder


def measure(folder: RunFolder, num_read: int, progress: Progress) -> list[Diversity]:
    """Measure every evaluated society that is not measured yet, and return all.

    Args:
        folder: of the run, finished or not.
        num_read: questions whose replies are read by every agent for likelihood and KL; 0 leaves these out.
        progress: shows the readings.
    """
    name, embed = embedder()
    reader = LikelihoodReader(folder.config.engine)
    for iteration in range(folder.config.num_iterations + 1):
        if (folder.evaluation(iteration) / "summary.json").exists() and not _file(folder, iteration).exists():
            debates = [d for d in _debates(folder, iteration) if d.error is None]
            texts = [turn.call.reply.text for debate in debates for turn in debate.round(-1)]
            vectors, n = embed(texts), folder.config.debate.num_agents
            found = Diversity(
                iteration=iteration,
                num_questions=len(debates),
                disagreement=disagreement(debates),
                dissimilarity=dissimilarity([vectors[k : k + n] for k in range(0, len(vectors), n)]),
                embedder=name,
            )
            if num_read and n > 1:
                found = _read(folder, found, debates[:num_read], reader, progress)
            store.write_json(_file(folder, iteration), found.model_dump())
    return measured(folder)


def measured(folder: RunFolder) -> list[Diversity]:
    """Return what has been measured."""
    files = (_file(folder, number) for number in range(folder.config.num_iterations + 1))
    return [Diversity.model_validate(store.read_json(file)) for file in files if file.exists()]


def _file(folder: RunFolder, iteration: int) -> Path:
    return folder.evaluation(iteration) / "diversity.json"


def _debates(folder: RunFolder, iteration: int) -> list[Debate]:
    return store.read_records(folder.evaluation(iteration) / "debates.jsonl", Debate)


def _read(
    folder: RunFolder, found: Diversity, debates: Sequence[Debate], reader: LikelihoodReader, progress: Progress
) -> Diversity:
    """Add what needs the agents themselves: those who spoke last, and the untrained model.

    Tokens and their likelihoods can be compared within one model only, so agents are read by others of their model.
    """
    society = finetune.after(folder, found.iteration)
    speakers = society.critics or society.generators
    untrained = {agent.name: agent.model for agent in finetune.untrained(folder.config).agents}
    by_model: dict[str, list[AgentRef]] = {}
    for speaker in speakers:
        by_model.setdefault(speaker.model, []).append(speaker)
    nll: list[Sequence[float]] = []
    who: list[int] = []
    kl: list[list[Sequence[float]]] = []
    to_base: list[float] = []
    with progress.stage(f"iteration {found.iteration}: diversity", len(debates) * len(speakers), "reply") as bar:
        for model, agents in by_model.items():
            n, base = len(agents), AgentRef(role="generator", index=0, model=model)
            has_base = all(untrained[agent.name] == model for agent in agents)  # not after full finetuning
            if n == 1 and not has_base:
                continue
            said = [last_dialogues(debate)[agent.index] for debate in debates for agent in agents]
            readings = reader.read((*agents, base), said, lambda: bar.advance())
            if has_base and readings:  # every agent counts the same, however many have its model
                to_base += [sum(reading.kl[agent][n] for reading in readings) / len(readings) for agent in range(n)]
            if n > 1:
                nll += [reading.nll[:n] for reading in readings]
                who += [place % n for place in range(len(readings))]
                kl += [[row[:n] for row in reading.kl[:n]] for reading in readings]
    return found.model_copy(
        update={
            "num_read": len(debates) if nll or to_base else 0,
            "num_models": len(by_model),
            "likelihood": others_nll(nll, who) if nll else None,
            "kl": mean_kl(kl) if kl else None,
            "kl_to_base": sum(to_base) / len(to_base) if to_base else None,
        }
    )
