"""Docs and recipes say what is so."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from maft import __version__, config

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]


def test_the_generated_pages_are_current():
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_in_the_readme_names_every_module():
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("```text")[2].partition("```")[0]
    top = {p.name for p in (ROOT / "src/maft").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    missing = [
        n for n in sorted(top) if not n.startswith("__") and not re.search(rf"^\s+{re.escape(n)}/?\s", tree, re.M)
    ]
    assert not missing


def test_yaml_in_the_readme_is_a_valid_config():
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        config.parse(yaml.safe_load(block))


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
