"""Draw the newest whole run of the history: how far each figure is from what is aimed at, as SVG.

What was measured does not belong here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).parents[2] / "deploy/docs/hot-path.svg"
_ROW, _LEFT, _WIDTH, _MOST = 24, 230, 420, 2.0


def draw(history: Path, picture: Path = PICTURE) -> None:
    """Write the picture, if there was ever a run that was not a quick one."""
    runs = [json.loads(line) for line in history.read_text().splitlines()]
    newest: dict[str, dict[str, Any]] = {}
    for each in runs:
        if not each["quick"]:
            newest[each["figure"]] = each
    if newest:
        picture.write_text(svg(list(newest.values())))


def svg(found: list[dict[str, Any]]) -> str:
    """A bar for each figure, as a share of its reach; the line is the reach itself.

    Of a rate the inverse is drawn, so that shorter is better everywhere.
    """
    rows = []
    for nth, each in enumerate(found):
        rate = "rate" in each["figure"]
        share = each["reach"] / each["ratio"] if rate else each["ratio"] / each["reach"]
        y, colour = 30 + nth * _ROW, "#2f855a" if share <= 1 else "#c05621"
        width = min(share, _MOST) / _MOST * _WIDTH
        sign = "&gt;=" if rate else "&lt;="
        rows.append(
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{each["figure"]}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>'
            f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 13}">{each["ratio"]:g} ({sign} {each["reach"]:g})</text>'
        )
    height, reach = 40 + len(found) * _ROW, _LEFT + _WIDTH / _MOST
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{height}"'
        f' font-family="sans-serif" font-size="12" fill="#1a202c">'
        f'<rect width="800" height="{height}" fill="#ffffff"/>'
        f'<text x="{reach}" y="20" text-anchor="middle">reach</text>'
        + "".join(rows)
        + f'<line x1="{reach}" y1="24" x2="{reach}" y2="{height - 8}" stroke="#1a202c"/></svg>\n'
    )
