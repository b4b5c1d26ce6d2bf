"""Likelihood of a reply under each agent, and divergence of the agents' next-token distributions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maft import models
from maft.config import EngineConfig
from maft.records import AgentRef, Message, Record
from maft.samplers.chat import Chat
from maft.samplers.transformers import Transformers

BATCH_BYTES = 2**29
"""Memory for the next-token distributions of all agents over one batch of replies."""


class Reading(Record):
    """One reply, read by several agents."""

    nll: tuple[float, ...]
    """Mean negative log-likelihood of a token of the reply under each agent, in nats."""
    kl: tuple[tuple[float, ...], ...]
    """Mean over the tokens of KL(row's agent || column's agent), in nats; 0 on the diagonal."""


class Dialogue(NamedTuple):
    """Prompts and replies of an agent in turn; the last reply is read."""

    messages: tuple[Message, ...]
    cut: bool = False
    """Whether the last reply was cut at the limit of tokens, and so does not end with the end token."""


class LikelihoodReader:
    """Reads replies with transformers, one base model at a time, every agent by its adapter."""

    def __init__(self, settings: EngineConfig) -> None:
        self._engine = Transformers(settings)
        self._engine.devices = ()  # it reads, and needs no slots
        self._chats: dict[str, Chat] = {}

    def read(
        self,
        agents: Sequence[AgentRef],
        dialogues: Sequence[Dialogue],
        on_read: Callable[[Sequence[Reading]], None] = lambda _: None,
    ) -> list[Reading]:
        """Read the last message of each dialogue with every agent; all are of one base model, whose tokens they share.

        `on_read` is called with the readings of each batch.

        Raises:
            DataError: the model or an adapter cannot be loaded.
        """
        (model,) = {agent.model for agent in agents}
        chat = self._ready(model)
        texts = [_tokens(chat, dialogue) for dialogue in dialogues]
        longest = max((len(reply) for _, reply in texts), default=0)
        size = max(1, BATCH_BYTES // (4 * (longest + 1) * len(chat.tokenizer) * len(agents)))
        readings: list[Reading] = []
        for start in range(0, len(texts), size):
            batch = self._read(agents, texts[start : start + size])
            on_read(batch)
            readings += batch
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

    def _read(self, agents: Sequence[AgentRef], texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Reading]:
        """Read several replies, padded on the left, so that all of them end at the same place."""
        import torch

        width, longest = max(len(p) + len(r) for p, r in texts), max(len(reply) for _, reply in texts)
        ids = torch.tensor([[0] * (width - len(p) - len(r)) + [*p, *r] for p, r in texts])
        mask = torch.tensor([[0] * (width - len(p) - len(r)) + [1] * (len(p) + len(r)) for p, r in texts])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        read: list[list[Any]] = [[] for _ in texts]
        with torch.inference_mode():
            for agent in agents:
                model = self._engine.speaking(Path(agent.adapter) if agent.adapter else None)
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
                # One logit row more than there are reply tokens: the last one predicts what comes after.
                logits = model(
                    **{name: tensor.to(model.device) for name, tensor in inputs.items()}, logits_to_keep=longest + 1
                ).logits
                for row, (_, reply), of_reply in zip(logits, texts, read, strict=True):
                    of_reply.append(row[-len(reply) - 1 : -1].float().log_softmax(-1))
            readings = []
            for rows, (_, reply) in zip(read, texts, strict=True):
                targets = torch.tensor(reply, device=rows[0].device)[:, None]
                nll = tuple(-float(row.gather(-1, targets).mean()) for row in rows)
                readings.append(Reading(nll=nll, kl=divergences(rows)))
            return readings


def divergences(log_probs: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
    """Return the KL divergence from each agent to each, mean over tokens, of tensors (tokens, vocabulary)."""
    return tuple(tuple(float((p.exp() * (p - q)).sum(-1).mean()) for q in log_probs) for p in log_probs)


def _tokens(chat: Chat, dialogue: Dialogue) -> tuple[list[int], list[int]]:
    """Return the tokens before the reply and those of the reply, by the model's own template."""
    *before, reply = dialogue.messages
    prompt, tokens = chat.template.tokenize(chat.template.prompt(before)), chat.template.tokenize(reply.content)
    return prompt, tokens if dialogue.cut and tokens else [*tokens, chat.template.stop_id]
