"""Doctests are looked for in modules that have some; importing all others takes seconds."""

from pathlib import Path


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules of the package without an example."""
    is_module = collection_path.suffix == ".py" and "src" in collection_path.parts
    return True if is_module and ">>>" not in collection_path.read_text() else None
