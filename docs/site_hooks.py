"""What mkdocs does not do by itself: pages that live outside docs/, their links, and the list of public names."""

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "recipes").rglob("*.*"))]
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#:\s]+)(#[^)]*)?\)")
NAMES = "<!-- every public name -->"


def on_files(files: Files, config: Any) -> Files:
    """Add the recipes and the pages at the top of the repository."""
    for path in OUTSIDE:
        if "__pycache__" not in path.parts:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links between docs/ and the rest of the repository links of the site; leave a link to code as its text."""
    here = Path(page.file.abs_src_path).parent
    site = Path(page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        text, target, anchor = link[1], Path(os.path.normpath(here / link[2])), link[3] or ""
        if target.is_relative_to(ROOT / "docs"):
            place = target.relative_to(ROOT / "docs")
        elif target in OUTSIDE:
            place = target.relative_to(ROOT)
        else:
            return text
        return f"[{text}]({os.path.relpath(place, site)}{anchor})"

    return LINK.sub(rewritten, markdown).replace(NAMES, _names())


def _names() -> str:
    """Return an entry for each public name of maft, by the module that has it."""
    tree = ast.parse((ROOT / "src/maft/__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    lines = []
    for node in imports:
        if node.module and node.module.startswith("maft."):
            lines += ["", f"## {node.module}", "", *(f"::: {_home(node.module, alias.name)}" for alias in node.names)]
    return "\n\n".join(lines)


def _home(module: str, name: str) -> str:
    """Return the dotted path of a name where it is defined, not where a package imports it from."""
    package = ROOT / "src" / module.replace(".", "/") / "__init__.py"
    if package.exists():
        for node in ast.walk(ast.parse(package.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
                return _home(node.module, name)
    return f"{module}.{name}"
