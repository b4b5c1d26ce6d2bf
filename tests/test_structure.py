"""The shape of the package: who may import whom, what is loaded when, and what is never used at all."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT

import maft
from maft import config

SOURCE = Path(maft.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

ENGINES = {
    *("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "safetensors", "gguf"),
    *("openvino", "openvino_genai", "optimum", "vllm", "ray", "openai", "pyarrow", "reasoning_gym"),
    *("together", "fireworks", "tinker"),
}
HEAVY = (
    ENGINES
    | {"numpy", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "trackio", "wandb"}
    | {"huggingface_hub"}
)

LATE = {f"trainers.{name}" for name in ("packed", "stack", "together", "trl_fit")} | {
    f"samplers.{name}" for name in ("fused", "plain_ops", "slots", "triton_ops")
}
"""Files that import engines at once, and are imported inside functions only."""


def module_of(path: Path) -> str:
    """Return the dotted name of a file, such as `tasks.base`; a package is its `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported anywhere in a file, functions included, as dotted names below `maft`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("maft.") for alias in node.names if alias.name.startswith("maft."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "maft":
                yield from (alias.name for alias in node.names if alias.name in MODULES)
            elif (node.module or "").startswith("maft."):
                home = (node.module or "").removeprefix("maft.")
                inner = [f"{home}.{alias.name}" for alias in node.names if f"{home}.{alias.name}" in MODULES]
                yield from inner or [home]


def test_imports_make_no_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in imported(MODULES[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        if module:  # the package itself loads its public names when they are asked for
            visit(module, ())


def test_every_room_has_a_level_of_its_own():
    """`make check` runs import-linter, which holds imports to these levels."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = linter["contracts"]
    assert sorted(contract["layers"]) == sorted({name.split(".")[0] for name in MODULES} - {"", "__main__"})
    assert len(contract["layers"]) <= 27


def imports_of(tree: ast.AST) -> set[str]:
    """Return the top names of the packages that are imported below a node."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def at_module_level(tree: ast.Module) -> set[str]:
    """Return what is imported when the file is: everything outside functions and `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            found |= imports_of(node)
    return found


def own_at_module_level(tree: ast.Module) -> set[str]:
    """Return which of our own modules are imported when the file is."""
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return set(imported(ast.Module(nodes, [])))


@pytest.mark.parametrize("module", MODULES)
def test_engines_are_imported_only_in_the_files_that_are_engines(module):
    if module.split(".")[0] not in (
        "samplers",
        "trainers",
        "cluster",
        "hosted",
        "models",
        "tasks",
        "diversity",
        "library",
        "sharing",
    ):
        assert not imports_of(MODULES[module]) & ENGINES
    assert module in LATE or not at_module_level(MODULES[module]) & HEAVY
    assert module in LATE or not own_at_module_level(MODULES[module]) & LATE


@pytest.mark.parametrize("module", MODULES)
def test_no_global_randomness(module):
    tree = MODULES[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"line {node.lineno}: use maft.seeds.rng in place of random.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            assert [alias.name for alias in node.names] == ["Random"]


@pytest.mark.parametrize("module", MODULES)
def test_text_is_never_evaluated(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            confined = module == "sandbox.program" and called in {"exec", "compile"}
            evaluates = {"eval", "exec", "compile", "__import__", "ast.literal_eval", "literal_eval"}
            assert confined or called not in evaluates
            assert not called.startswith(("pickle.", "marshal.", "shelve.")), called
            assert called not in {"yaml.load", "os.system"}, called
            assert all(k.arg != "shell" or ast.unparse(k.value) == "False" for k in node.keywords)


@pytest.mark.parametrize("module", MODULES)
def test_every_file_says_what_it_is(module):
    assert ast.get_docstring(MODULES[module])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("config*.yaml")), ids=lambda path: path.parent.name)
def test_every_recipe_loads(path):
    assert config.load(path).name == path.parent.name


TIMED = """
import json, sys, time
before = set(sys.modules)
start = time.process_time()  # of this process alone, so that a busy machine is no slower
{code}
print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""
HELP = "from maft.cli.main import maft\ntry:\n    maft.main({arguments})\nexcept SystemExit:\n    pass"


def fresh(code: str) -> tuple[float, set[str]]:
    """Run code in a fresh process, and return the CPU seconds it took and the modules it loaded."""
    script = TIMED.format(code=code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    seconds, loaded = json.loads(done.stderr.splitlines()[-1])
    return seconds, {name.split(".")[0] for name in loaded} | set(loaded)


@pytest.mark.parametrize(
    ("code", "limit", "absent"),
    [
        ("import maft", 0.1, {"pydantic", "click", "yaml", "maft.records"}),
        (HELP.format(arguments=["--help"]), 0.3, {"pydantic", "jinja2", "rich", "tqdm", "maft.config"}),
        (HELP.format(arguments=["run", "--help"]), 0.3, {"pydantic", "jinja2", "rich", "tqdm", "maft.config"}),
    ],
    ids=["import maft", "maft --help", "maft run --help"],
)
def test_it_starts_quickly_and_loads_no_engine(code, limit, absent):
    seconds, loaded = fresh(code)
    assert not loaded & (HEAVY | absent)
    assert seconds < limit or min(fresh(code)[0] for _ in range(4)) < limit


def test_the_rules_need_no_engine_either():
    public = fresh("from maft import *\nfrom maft import pipeline")[1]
    assert not public & HEAVY


def test_programs_of_models_are_executed_only_in_the_process_that_is_confined_first():
    users = {name for name, tree in MODULES.items() if "sandbox.program" in set(imported(tree))}
    assert users == {"sandbox.forker"}
    child = next(
        node
        for node in ast.walk(MODULES["sandbox.forker"])
        if isinstance(node, ast.FunctionDef) and node.name == "_child"
    )
    calls = [ast.unparse(node.func) for node in ast.walk(child) if isinstance(node, ast.Call)]
    assert calls.count("confine.program") == calls.count("program.serve") == 1
