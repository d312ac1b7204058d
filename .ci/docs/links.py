"""Whether each link, picture and anchor of a site that was built leads somewhere in it.

    python .ci/docs/links.py site

Zensical checks what Markdown says; this checks what came of it, the reference's own links too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Targets of a page's links, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def broken(site: Path) -> Iterator[str]:
    """ "page: target" of each that leads nowhere; of what is on the network nothing is known."""
    pages = {
        file.resolve(): Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")
    }
    for file, page in pages.items():
        if file.name == "404.html":  # its links are those of a server's root
            continue
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if other.is_dir():
                other /= "index.html"
            there = other.exists()
            if there and parts.fragment and other in pages:
                there = unquote(parts.fragment) in pages[other].places
            if not there:
                yield f"{file.relative_to(site.resolve())}: {target}"


if __name__ == "__main__":
    found = sorted(set(broken(Path(sys.argv[1]))))
    print("\n".join(found) or "all links lead somewhere")
    sys.exit(bool(found))
