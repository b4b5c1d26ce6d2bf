"""Models: from names to folders, the packaged one, adapters, shapes and memory."""

from maft.models.adapters import check_adapter, content_name
from maft.models.names import cached, check, is_hub_name, loading, offline, public_name, resolve, revision, usable_dtype
from maft.models.packaged import PACKAGED, PACKAGED_ON_HUB, cache_dir, load_quietly

__all__ = [
    "PACKAGED",
    "PACKAGED_ON_HUB",
    "cache_dir",
    "cached",
    "check",
    "check_adapter",
    "content_name",
    "is_hub_name",
    "load_quietly",
    "loading",
    "offline",
    "public_name",
    "resolve",
    "revision",
    "usable_dtype",
]
