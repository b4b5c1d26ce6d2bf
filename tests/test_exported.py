"""The public surface: a name joins or leaves it on purpose only."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers import ENVIRONMENT

import maft

PUBLIC = {
    "answers": ["equivalent", "extract_answer"],
    "config": ["RunConfig"],
    "library": ["Answer", "LoadedSociety", "Records", "Run", "open", "run"],
    "method.vote": ["Tally", "tally", "vote"],
    "method.curate": ["critic_examples", "generator_examples"],
    "method": ["Protocol", "play"],
    "errors": ["ConfigError", "DataError", "MaftError", "MissingExtra", "StageFailed", "UserError"],
    "records": [
        *("AgentRef", "Call", "Debate", "Example", "Message", "Problem", "Reply", "Request", "SamplingParams"),
        *("Score", "Society", "Turn", "Vote"),
    ],
    "samplers": ["Sampler", "Scripted"],
    "runs.folder": ["RunFolder"],
    "tasks": ["Split", "Task"],
    "trainers": ["NullTrainer", "TrainJob", "TrainProgress", "Trainer"],
}


def test_the_public_names_are_these():
    assert maft.__all__ == sorted(name for names in PUBLIC.values() for name in names)


@pytest.mark.parametrize(("module", "names"), PUBLIC.items())
def test_a_public_name_is_what_its_module_has(module, names):
    for name in names:
        assert getattr(maft, name) is getattr(import_module(f"maft.{module}"), name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(maft.__file__).read_text())
    seen = [alias.name for node in ast.walk(tree) if _is_ours(node) for alias in node.names]
    assert sorted(seen) == maft.__all__


def _is_ours(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maft.")


@pytest.mark.parametrize("name", maft.__all__)
def test_a_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(maft, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'maft' has no attribute 'debates'"):
        _ = maft.debates
    assert set(maft.__all__) <= set(dir(maft))


def test_public_names_can_be_imported_in_any_order_and_all_at_once():
    script = "from maft import vote; from maft import *; import maft; assert maft.vote is vote; assert Scripted"
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=ENVIRONMENT)


def test_the_two_fakes_are_public():
    assert {"Scripted", "NullTrainer"} <= set(maft.__all__)
