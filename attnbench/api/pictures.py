"""Pictures as matplotlib figures, which a notebook shows one below the other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Pictures(Mapping[str, "Figure"]):
    """Matplotlib figures by name: `pictures["seq_len-wall_time-overview"].savefig("overview.pdf")`.

    Args:
        figures: by name.
    """

    figures: Mapping[str, Figure]

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def __repr__(self) -> str:
        return f"<{len(self)} matplotlib figures: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        """Every figure as a PNG inside the page."""
        from base64 import b64encode
        from html import escape

        def drawn(figure: Figure) -> str:
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=110)
            return b64encode(file.getvalue()).decode()

        return "".join(
            f'<img alt="{escape(name)}" src="data:image/png;base64,{drawn(figure)}">' for name, figure in self.items()
        )
