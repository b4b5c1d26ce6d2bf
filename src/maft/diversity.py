"""The diversity of every society of a run, read off its debates on the held-out questions."""

import logging
from collections.abc import Sequence
from pathlib import Path

from maft import finetune, store
from maft.evaluation.diversity import Diversity, disagreement, dissimilarity, last_dialogues, mean_kl, others_nll
from maft.progress import Progress
from maft.records import AgentRef, Debate
from maft.samplers.embedding import embedder
from maft.samplers.likelihood import LikelihoodReader
from maft.store import RunFolder

log = logging.getLogger(__name__)


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
    """Add what needs the agents themselves: those who spoke last, and the untrained model."""
    society = finetune.after(folder, found.iteration)
    speakers = society.critics or society.generators
    if len({speaker.model for speaker in speakers}) > 1:
        log.warning(
            "Likelihood and KL are left out in iteration %d: they compare agents token by token, and these agents are "
            "models of their own.",
            found.iteration,
        )
        return found
    base = AgentRef(role="generator", index=0, model=speakers[0].model)
    dialogues = [dialogue for debate in debates for dialogue in last_dialogues(debate)]
    with progress.stage(f"iteration {found.iteration}: diversity", len(dialogues), "reply") as bar:
        readings = reader.read((*speakers, base), dialogues, lambda: bar.advance())
    n = len(speakers)
    to_base = [reading.kl[agent][n] for reading in readings for agent in range(n)]
    return found.model_copy(
        update={
            "num_read": len(debates),
            "likelihood": others_nll([r.nll[:n] for r in readings], [k % n for k in range(len(readings))]),
            "kl": mean_kl([reading.kl for reading in readings], n),
            "kl_to_base": sum(to_base) / len(to_base) if to_base else None,
        }
    )
