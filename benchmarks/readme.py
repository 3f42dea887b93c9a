"""Updates the tables of operators and of the reference runs in README.md, between its markers, for `make readme`.

    python benchmarks/readme.py [--check]

A marker names what is listed, or the run, the options of `attnbench show`, the panel (a part of its title) and the
headings to keep:
    <!-- list: operators -->
    <!-- show: results/reference/cpu-sequence | --metric wall_time | fwd, | Crossover of wall time; What to use -->
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- (?P<verb>show|list): (?P<what>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def sections(markdown: str, level: int) -> dict[str, str]:
    """Heading → text below it, for the headings of one level."""
    parts = re.split(rf"^{'#' * level} (.*)$", markdown, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def printed(*words: str) -> str:
    """What a command prints as Markdown."""
    command = [sys.executable, "-m", "attnbench", *words, "--format", "markdown"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def listed(what: str) -> str:
    """The table of `attnbench list`, without its notes on this machine."""
    return printed("list", what).split("\n\n")[0]


def tables(marker: str) -> str:
    """Some tables of a run."""
    run, options, panel, headings = (part.strip() for part in marker.split("|"))
    (text,) = (text for title, text in sections(printed("show", run, *options.split()), 2).items() if panel in title)
    by_heading = sections(text, 3)
    return "\n\n".join(f"**{name}**\n\n{by_heading[name]}" for name in map(str.strip, headings.split(";")))


MADE_BY = {"show": tables, "list": listed}


def main() -> None:
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = MARKED.sub(lambda m: f"{m[1]}{MADE_BY[m['verb']](m['what'])}\n{m[4]}", old)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md: its tables are not those of results/reference; run `make readme`" if new != old else 0)
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
