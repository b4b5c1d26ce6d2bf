"""Errors that maft raises on purpose.

    MaftError
    ├── UserError        asked wrongly: one clean line, exit code 2
    │   ├── ConfigError      a setting is unknown, of a wrong type or out of range
    │   ├── DataError        a question set, a record file or a model folder cannot be used
    │   │   └── TooLarge         a model does not fit into memory
    │   └── MissingExtra     an optional dependency is not installed
    └── StageFailed      asked rightly, but a stage could not finish: one clean line, exit code 1

Anything else is a bug of ours and keeps its traceback. A message says what was wrong, what was got, what is
allowed and what to do. A failure of one question is not an exception at all: it is a record with an `error` in it.
"""


class MaftError(Exception):
    """Base of all errors that maft raises on purpose."""

    exit_code = 1


class UserError(MaftError, ValueError):
    """The request cannot be carried out as asked; the message says what to change."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, has the wrong type or is out of range."""


class DataError(UserError):
    """A question set, a record file, a model or an adapter cannot be used."""


class TooLarge(DataError):
    """A model does not fit into memory; told before it is loaded."""


class MissingExtra(UserError, ImportError):
    """An optional dependency is not installed.

    >>> print(MissingExtra("the openvino sampler", "openvino"))
    the openvino sampler needs packages that are not installed. Install them with: pip install "maft[openvino]"
    """

    def __init__(self, what: str, extra: str) -> None:
        self._given = (what, extra)
        super().__init__(
            f'{what} needs packages that are not installed. Install them with: pip install "maft[{extra}]"'
        )

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str]]:
        """Travel between processes."""
        return type(self), self._given


class StageFailed(MaftError, RuntimeError):
    """A stage could not finish; what it had finished is kept, and the same command goes on from there."""
