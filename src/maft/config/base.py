"""What all sections of the tree are made of."""

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
Positive = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PerIteration: TypeAlias = T | Annotated[tuple[T, ...], Field(min_length=1)]
"""One value, or a list with an entry for each iteration, the last entry for all further ones."""


class _Free:
    """Marks a setting that is not part of a run's identity: a run continues with another value of it."""


FREE = _Free()


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, each field documented by the string beneath it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def of_iteration(setting: T | tuple[T, ...], iteration: int) -> T:
    """Return the entry of an iteration (from 1), where a setting may be one value or a list; its last entry lasts.

    >>> of_iteration(("first", "last"), 5)
    'last'
    """
    return setting[min(iteration, len(setting)) - 1] if isinstance(setting, tuple) else setting


def identity(section: BaseModel) -> dict[str, Any]:
    """Return the settings of a section that results depend on: all but those marked `FREE`, as plain values."""
    tree = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if FREE in field.metadata:
            del tree[name]
        elif isinstance(value, Section):
            tree[name] = identity(value)
    return tree
