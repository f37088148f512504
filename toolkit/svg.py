"""SVG figures with the same bytes for the same data."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.files import atomic

# on matplotlib's defaults, not the user's; the salt takes the place of random names in the SVG
STYLE = {
    "svg.hashsalt": "better-synth",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def content(figure: Figure) -> bytes:
    """An SVG without date and version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write an SVG without date and version, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content(figure))
