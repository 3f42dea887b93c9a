"""Updates what README.md and the pages in docs/ show of the reference runs and the operators, for `make readme`.

    python benchmarks/readme.py [--check]

Between the markers stands what a command prints. A marker names what is listed; or the run, the options of `attnbench
show`, the panel (a part of its title) and the headings to keep; or a whole command, as what it prints in Markdown, or
shown with what it prints on a terminal of 80 columns:
    <!-- list: operators -->
    <!-- show: results/reference/cpu-sequence | --metric wall_time | fwd, | Crossover of wall time; What to use -->
    <!-- markdown: reproduce --brief -->
    <!-- screen: show results/reference/cpu-quick -->
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md", "docs/operators.md", "docs/papers.md")
MARKED = re.compile(r"(<!-- (?P<verb>show|list|markdown|screen): (?P<what>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def sections(markdown: str, level: int) -> dict[str, str]:
    """Heading → text below it, for the headings of one level."""
    parts = re.split(rf"^{'#' * level} (.*)$", markdown, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def printed(*words: str) -> str:
    """What a command prints into a pipe, at 80 columns."""
    command = [sys.executable, "-m", "attnbench", *words]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def listed(what: str) -> str:
    """The table of `attnbench list`, without its notes on this machine."""
    return printed("list", what, "--format", "markdown").split("\n\n")[0]


def tables(marker: str) -> str:
    """Some tables of a run."""
    run, options, panel, headings = (part.strip() for part in marker.split("|"))
    markdown = printed("show", run, "--all", *options.split(), "--format", "markdown")
    (text,) = (text for title, text in sections(markdown, 2).items() if panel in title)
    by_heading = sections(text, 3)
    return "\n\n".join(f"**{name}**\n\n{by_heading[name]}" for name in map(str.strip, headings.split(";")))


def markdown(command: str) -> str:
    """What a command prints as Markdown."""
    return printed(*shlex.split(command), "--format", "markdown").rstrip()


def screen(command: str) -> str:
    """A command and what it prints, as a block."""
    lines = [f"$ attnbench {command}", *printed(*shlex.split(command)).splitlines()]
    return "\n".join(["```", *(line.rstrip() for line in lines), "```"])


MADE_BY = {"show": tables, "list": listed, "markdown": markdown, "screen": screen}


def main() -> None:
    outdated = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = MARKED.sub(lambda m: f"{m[1]}{MADE_BY[m['verb']](m['what'])}\n{m[4]}", old)
        if new != old:
            outdated.append(name)
            if "--check" not in sys.argv[1:]:
                page.write_text(new, encoding="utf-8")
    if outdated and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(outdated)}: not what attnbench prints of results/reference; run `make readme`")


if __name__ == "__main__":
    main()
