"""Base class and types of all sections of the tree."""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Annotated, Any, Self, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

T = TypeVar("T")
Positive = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PerIteration: TypeAlias = T | Annotated[tuple[T, ...], Field(min_length=1)]
"""One value, or a list with an entry for each iteration, the last entry for all further ones."""


class _Free:
    """Marks a setting that is not part of a run's identity: a run continues with another value of it."""


FREE = _Free()


class _Newer:
    """Marks a setting that earlier runs did not have: with its default value it is not part of a run's identity."""


NEWER = _Newer()


class _Place:
    """Marks a setting that may name a file or folder: one beside the config file goes before the current folder's."""


PLACE = _Place()


def _kinds(annotation: Any) -> list[Any]:
    """Return a type and the types within it."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))]


def no_truth_value(value: object) -> object:
    """Refuse true and false where a number belongs, which Python would take for 1 and 0."""
    if isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(each, bool) for each in value)):
        raise PydanticCustomError("no_truth_value", "a number is needed")
    return value


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, each field documented by the string beneath it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: object, info: ValidationInfo) -> object:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        return no_truth_value(value) if bool not in kinds and (int in kinds or float in kinds) else value

    @model_validator(mode="after")
    def _has_no_fault(self) -> Self:
        for fault in self.faults():
            raise ValueError(fault)
        return self

    def faults(self) -> Iterator[str]:
        """Yield why settings do not go together; the first is reported."""
        yield from ()

    def without_effect(self) -> Sequence[str]:
        """Return the dotted names of settings that do nothing beside the others; they are no part of the identity."""
        return ()


def of_iteration(setting: T | tuple[T, ...], iteration: int) -> T:
    """Return the entry of an iteration (from 1), where a setting may be one value or a list; its last entry lasts.

    The first entry holds before the first iteration, too.

    >>> of_iteration(("first", "last"), 5), of_iteration(("first", "last"), 0)
    ('last', 'first')
    """
    return setting[max(0, min(iteration, len(setting)) - 1)] if isinstance(setting, tuple) else setting


def identity(section: BaseModel, *, defaults: bool = True) -> dict[str, Any]:
    """Return the settings of a section that results depend on, as plain values.

    All but those marked `FREE` and those without effect.

    Without `defaults`, settings marked `NEWER` are left out where they have their default.
    """
    tree = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if FREE in field.metadata or (NEWER in field.metadata and not defaults and value == field.get_default()):
            del tree[name]
        elif isinstance(value, Section):
            tree[name] = identity(value, defaults=defaults)
    for name in section.without_effect() if isinstance(section, Section) else ():
        *outer, last = name.split(".")
        reduce(dict.__getitem__, outer, tree).pop(last, None)
    return tree
