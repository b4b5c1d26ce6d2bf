"""Checks a built docs site: every link leads to a page and a heading that exist, and nothing is loaded from outside.

python docs/check_site.py site
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if "src" in values or (tag == "link" and values.get("rel") not in ("canonical", "next", "prev")):
            self.loads.append(values.get("src") or values.get("href", ""))


def problems(site: Path) -> list[str]:
    """Return a line for each link that leads nowhere and each file that is loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    lines = []
    for path, page in pages.items():
        if path.name == "404.html":  # served at any address, so its links are absolute
            continue
        name = path.relative_to(site)
        for address in page.loads:
            if urlsplit(address).netloc:
                lines.append(f"{name} loads {address}")
            elif urlsplit(address).path and not (path.parent / unquote(urlsplit(address).path)).exists():
                lines.append(f"{name} loads {address}, which does not exist")
        for address in page.links:
            link = urlsplit(address)
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else None
            if not target.exists():
                lines.append(f"{name} links to {address}, which does not exist")
            elif link.fragment and anchors is not None and unquote(link.fragment) not in anchors:
                lines.append(f"{name} links to {address}: no such heading")
    return lines


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "Every link leads somewhere, and nothing is loaded from outside.")
    sys.exit(bool(found))
