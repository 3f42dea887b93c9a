"""Pictures as matplotlib figures, which a notebook shows one below the other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
"""Of a picture in a notebook."""


@dataclass(frozen=True, repr=False)
class Pictures(Mapping[str, "Figure"]):
    """Matplotlib figures by name: `pictures["seq_len-wall_time-overview"].savefig("overview.pdf")`.

    Args:
        figures: by name.
    """

    figures: Mapping[str, Figure]

    def matching(self, pattern: str) -> Pictures:
        """Those whose names match a pattern with * and ?, such as "*-overview"."""
        return Pictures({name: figure for name, figure in self.items() if fnmatchcase(name, pattern)})

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def __repr__(self) -> str:
        return f"<matplotlib figures: {', '.join(self) or 'none'}>"

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        for figure in self.values():
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=DPI)
            display(Image(data=file.getvalue(), format="png"))
