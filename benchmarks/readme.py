"""Updates the tables of the reference runs in README.md, between its markers, for `make readme`.

    python benchmarks/readme.py [--check]

A marker names the run, the options of `attnbench show`, the panel (a part of its title) and the headings to keep:
    <!-- show: results/reference/cpu-sequence | --metric wall_time | fwd, | Crossover of wall time; What to use -->
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- show: (?P<what>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def sections(markdown: str, level: int) -> dict[str, str]:
    """Heading → text below it, for the headings of one level."""
    parts = re.split(rf"^{'#' * level} (.*)$", markdown, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def tables(marker: str) -> str:
    run, options, panel, headings = (part.strip() for part in marker.split("|"))
    command = [sys.executable, "-m", "attnbench", "show", run, *options.split(), "--format", "markdown"]
    markdown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (text,) = (text for title, text in sections(markdown, 2).items() if panel in title)
    by_heading = sections(text, 3)
    return "\n\n".join(f"**{name}**\n\n{by_heading[name]}" for name in map(str.strip, headings.split(";")))


def main() -> None:
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = MARKED.sub(lambda m: f"{m[1]}{tables(m['what'])}\n{m[3]}", old)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md: its tables are not those of results/reference; run `make readme`" if new != old else 0)
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
