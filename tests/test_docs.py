"""Docs and recipes say what is so."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ENVIRONMENT

import maft
from maft import __version__, config
from maft.cli.main import VERBS

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]


def test_the_generated_pages_are_current():
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_in_the_layout_names_every_module():
    tree = (
        (ROOT / "docs/design/layout.md")
        .read_text()
        .partition("## The tree")[2]
        .partition("```text")[2]
        .partition("```")[0]
    )
    top = {p.name for p in (ROOT / "src/maft").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    missing = [
        n for n in sorted(top) if not n.startswith("__") and not re.search(rf"^\s+{re.escape(n)}/?\s", tree, re.M)
    ]
    assert not missing


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield the code blocks of a language, each with its page."""
    for page in PAGES:
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M):
            yield str(page.relative_to(ROOT)), block


def test_yaml_that_names_a_task_is_a_valid_config():
    configs = [(page, tree) for page, block in blocks("yaml") if "task" in (tree := yaml.safe_load(block))]
    assert {"README.md", "docs/howto/reproduce.md"} <= {page for page, _ in configs}
    for _, tree in configs:
        config.parse(tree)


def test_python_that_needs_no_model_runs(tmp_path):
    program = "\n".join(block for page, block in blocks("python") if page in ("docs/library.md", "docs/api.md"))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "runs/program/report.html" in done.stdout and (tmp_path / "runs/program/report.html").exists()


def test_commands_in_the_pages_are_verbs_and_targets():
    makefile = (ROOT / "Makefile").read_text()
    for page, block in blocks("sh"):
        for verb in re.findall(r"^(?:\.venv/bin/)?maft ([a-z]+)", block, re.M):
            assert verb in VERBS, f"{page}: maft {verb}"
        for target in re.findall(r"^make ([a-z-]+)", block, re.M):
            assert f"\n{target}:" in makefile, f"{page}: make {target}"


MKDOCS = ROOT / ".venv-docs/bin/mkdocs"


@pytest.mark.skipif(not MKDOCS.exists(), reason="make docs has not been run")
def test_the_site_has_no_dead_link_and_loads_nothing_from_outside(tmp_path):
    subprocess.run(
        [MKDOCS, "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    done = subprocess.run(
        [sys.executable, ROOT / "docs/check_site.py", tmp_path / "site"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    reference = (tmp_path / "site/api.html").read_text()
    assert [name for name in maft.__all__ if f'.{name}"' not in reference] == []


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("recipes/**/config*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_recipe_loads(path):
    assert config.load(path).num_iterations >= 1


def test_the_minimal_loop_runs_over_the_public_pieces():
    done = subprocess.run(
        [sys.executable, ROOT / "recipes/minimal_loop.py", "--fake"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("debate after iteration") == 2


def test_the_version_is_the_same_everywhere():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_in_a_page_is_left_to_be_filled_in():
    for page in PAGES:
        assert not re.search(r"TODO|FIXME|[A-Z]+_BLOCK|[A-Z]+_TABLE", page.read_text()), page
