"""Adapters in a vLLM server elsewhere: loaded while it runs, and unloaded when they are no longer needed.

vLLM's prefix cache knows an adapter by its name alone, so that other weights under a known name would meet the keys and
values of the old ones: every adapter is loaded under a name that was never used before.
"""

import threading
import time
import uuid
from pathlib import Path
from typing import Any

from maft import files, models
from maft.config import OpenAiConfig
from maft.errors import DataError
from maft.hosted import service as hosted
from maft.models.adapters import fingerprint, has_patterns
from maft.records import AgentRef

TRIES = 3


class Served:
    """The adapters of one run in a server; for any thread."""

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Send nothing yet; the names in use are kept in `folder`, so that a start after a kill unloads them."""
        self.settings = settings
        self._file = folder / "served.json"
        self._names: dict[tuple[object, ...], str] = {}
        self._lock = threading.Lock()

    def name(self, client: Any, agent: AgentRef) -> str:
        """Return the name of an agent's adapter in the server, which loads it if it is new.

        Raises:
            ConfigError: the server does not accept the key.
            DataError: the adapter is incomplete, or the server cannot be reached or does not load it.
        """
        adapter = Path(agent.adapter or "")
        with self._lock:
            key = fingerprint(adapter)
            if key not in self._names:
                if not self._names:
                    self.unload(client)  # adapters of an earlier start that was killed
                models.check_adapter(adapter, agent.model)
                if has_patterns(adapter):
                    raise DataError(f"adapter {adapter} has rank_pattern or alpha_pattern, which vLLM ignores.")
                self._names[key] = self._load(client, str(adapter))
            return self._names[key]

    def unload(self, client: Any) -> None:
        """Unload all; if the server cannot be reached, the next start does it."""
        import openai

        self._names.clear()
        for name in self.kept():
            try:
                client.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)
            except openai.APIStatusError:
                continue  # the server was restarted, or never loaded it
            except openai.APIError:
                return
        self._file.unlink(missing_ok=True)

    def kept(self) -> list[str]:
        """Return the names that the server may have."""
        return list(files.read_json(self._file)["names"]) if self._file.exists() else []

    def _load(self, client: Any, adapter: str) -> str:
        import openai

        for attempt in range(TRIES):
            name = f"maft-{Path(adapter).name}-{uuid.uuid4().hex[:12]}"
            # Written down first: a server may have loaded it although its answer was lost.
            files.write_json(self._file, {"names": [*self.kept(), name]})
            try:
                client.post("/load_lora_adapter", body={"lora_name": name, "lora_path": adapter}, cast_to=str)
                return name
            except openai.APIError as error:
                last = error
            if not hosted.can_pass(last):
                break
            if attempt < TRIES - 1:
                time.sleep(hosted.retry_after(last) or 2.0**attempt)
        known = isinstance(last, openai.AuthenticationError | openai.PermissionDeniedError)
        refused = hosted.refusal(last, self.settings) if known else hosted.no_contact(last, self.settings)
        raise refused or DataError(
            f"{self.settings.base_url} does not load the adapter {adapter}: {hosted.said(last, self.settings)} With "
            "openai.load_adapters it must be a vLLM server, started with --enable-lora, a sufficient --max-lora-rank "
            "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment, and see the adapter at the same path."
        )
