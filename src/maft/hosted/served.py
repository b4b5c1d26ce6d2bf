"""Adapters in a vLLM server elsewhere: loaded while it runs, and unloaded when they are not needed any more.

vLLM's prefix cache knows an adapter by its name alone, so that other weights under a known name would meet the keys and
values of the old ones: every loading has a name that was never used before.
"""

import asyncio
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maft import files, models
from maft.config import OpenAiConfig
from maft.errors import DataError, MaftError
from maft.hosted import service as hosted
from maft.models.adapters import fingerprint, has_patterns
from maft.records import AgentRef

TRIES = 3


class Served:
    """The adapters of one run in a server."""

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Send nothing yet; the names in use are kept in `folder`, so that a start after a kill unloads them."""
        self.settings = settings
        self._file = folder / "served.json"
        self._names: dict[tuple[object, ...], str] = {}

    async def load(self, client: Any, agents: Iterable[AgentRef]) -> dict[str, str]:
        """Load the adapters of agents that are not loaded yet, and return the name of each.

        Raises:
            ConfigError: the server does not accept the key.
            DataError: an adapter is not whole, or the server cannot be reached or does not load it.
        """
        bases = {agent.adapter: agent.model for agent in agents if agent.adapter}
        keys = {adapter: fingerprint(Path(adapter)) for adapter in sorted(bases)}
        missing = {adapter: key for adapter, key in keys.items() if key not in self._names}
        if missing and not self._names:
            await self.unload(client)  # what an earlier start has left behind
        for adapter, key in missing.items():
            models.check_adapter(Path(adapter), bases[adapter])
            if has_patterns(Path(adapter)):
                raise DataError(f"adapter {adapter} has rank_pattern or alpha_pattern, which vLLM ignores.")
            self._names[key] = await self._load(client, adapter)
        return {adapter: self._names[key] for adapter, key in keys.items()}

    async def unload(self, client: Any) -> None:
        """Unload all; where the server cannot be reached, the next start does it."""
        import openai

        self._names.clear()
        for name in self.kept():
            try:
                await client.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)
            except openai.APIStatusError:
                continue  # it is not there: the server was started anew, or never loaded it
            except openai.APIError:
                return
        self._file.unlink(missing_ok=True)

    def kept(self) -> list[str]:
        """Return the names that the server may have."""
        return list(files.read_json(self._file)["names"]) if self._file.exists() else []

    async def _load(self, client: Any, adapter: str) -> str:
        import openai

        for attempt in range(TRIES):
            name = f"maft-{Path(adapter).name}-{uuid.uuid4().hex[:12]}"
            # Written down first: a server may have loaded it although its answer was lost.
            files.write_json(self._file, {"names": [*self.kept(), name]})
            try:
                await client.post("/load_lora_adapter", body={"lora_name": name, "lora_path": adapter}, cast_to=str)
                return name
            except openai.APIError as error:
                if not hosted.can_pass(error) or attempt == TRIES - 1:
                    raise self._told(error, adapter) from None
                await asyncio.sleep(hosted.retry_after(error) or 2.0**attempt)
        raise AssertionError("the last try returns or raises")

    def _told(self, error: Exception, adapter: str) -> MaftError:
        import openai

        where, said = self.settings.base_url, hosted.said(error, self.settings)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return hosted.refusal(error, self.settings) or DataError(said)
        return hosted.no_contact(error, self.settings) or DataError(
            f"{where} does not load the adapter {adapter}: {said} With openai.load_adapters it must be a vLLM server, "
            "started with --enable-lora, a sufficient --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its "
            "environment, and find the adapter at the same path."
        )
