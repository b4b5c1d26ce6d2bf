"""How likely each agent finds a reply, and how far apart the agents' next-token distributions are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.config import EngineConfig
from maft.records import AgentRef, Message, Record
from maft.samplers.chat import Chat
from maft.samplers.transformers import Transformers


class Reading(Record):
    """One reply, read by several agents."""

    num_tokens: int
    """Of the reply, the token that ends it included."""
    nll: tuple[float, ...]
    """Mean negative log-likelihood of a token of the reply under each agent, in nats."""
    kl: tuple[tuple[float, ...], ...]
    """Mean over the tokens of KL(row's agent || column's agent), in nats; 0 on the diagonal."""


class LikelihoodReader:
    """Reads replies with transformers, one base model at a time, every agent by its adapter."""

    def __init__(self, settings: EngineConfig) -> None:
        """Load nothing yet."""
        self._engine = Transformers(settings)
        self._chats: dict[str, Chat] = {}

    def read(
        self,
        agents: Sequence[AgentRef],
        dialogues: Sequence[tuple[Message, ...]],
        on_read: Callable[[], None] = lambda: None,
    ) -> list[Reading]:
        """Read the last message of each dialogue with every agent.

        Args:
            agents: of one base model, whose tokens they share.
            dialogues: each ends with the reply to read.
            on_read: is called after each dialogue.

        Raises:
            DataError: the model or an adapter cannot be loaded.
        """
        (model,) = {agent.model for agent in agents}
        chat = self._ready(model)
        readings = []
        for dialogue in dialogues:
            readings.append(self._read(agents, *_tokens(chat, dialogue)))
            on_read()
        return readings

    def _ready(self, model: str) -> Chat:
        folder = models.resolve(model)
        if folder not in self._chats:
            self._engine.unload()
            self._chats = {
                folder: Chat(folder, trust=self._engine.settings.trust_remote_code, today=self._engine.settings.date)
            }
            self._engine.load(folder, self._chats[folder])
        return self._chats[folder]

    def _read(self, agents: Sequence[AgentRef], prompt: Sequence[int], reply: Sequence[int]) -> Reading:
        import torch

        ids = torch.tensor([[*prompt, *reply]])
        targets = ids[0, len(prompt) :]
        read: list[Any] = []
        with torch.inference_mode():
            for agent in agents:
                model = self._engine.speaking(Path(agent.adapter) if agent.adapter else None)
                # One logit row more than there are reply tokens: the last one predicts what comes after.
                logits = model(input_ids=ids.to(model.device), logits_to_keep=len(reply) + 1).logits
                read.append(logits[0, :-1].float().log_softmax(-1))
            nll = [-float(rows.gather(-1, targets.to(rows.device)[:, None]).mean()) for rows in read]
        return Reading(num_tokens=len(reply), nll=tuple(nll), kl=divergences(read))


def divergences(log_probs: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
    """Return the KL divergence from each agent to each, mean over tokens, of tensors (tokens, vocabulary)."""
    return tuple(tuple(float((p.exp() * (p - q)).sum(-1).mean()) for q in log_probs) for p in log_probs)


def _tokens(chat: Chat, dialogue: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the tokens before the reply and those of the reply, by the model's own template."""
    prompt = chat.template.tokenize(chat.template.prompt(dialogue[:-1]))
    return prompt, [*chat.template.tokenize(dialogue[-1].content), chat.template.stop_id]
