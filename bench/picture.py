"""Pictures: bars with their spread, one panel a question, as an SVG file. Pure.

Our own bars are dark, the peers' are light; the thin line through a bar's end goes from the lowest
sample to the highest. Next door `figures` makes the numbers and keeps the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _LABELS, _VALUES = 900, 330, 110
"""Pixels: of the whole, of the names left, of the figures right."""
_ROW, _HEAD, _GAP = 24, 30, 14
_OURS, _PEER, _SPREAD = "#1f4e79", "#a9bfd3", "#333333"
_OPENING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
    ' height="{height}" font-family="sans-serif" font-size="13">'
    '<rect width="100%" height="100%" fill="white"/>'
)


@dataclass(frozen=True)
class Bar:
    """A variant's median with its lowest and highest sample, in the panel's unit."""

    name: str
    value: float
    low: float
    high: float
    ours: bool = False

    @classmethod
    def of(cls, name: str, figures: Mapping[str, float], *, ours: bool = False) -> Bar:
        """Of what `figures.summary` returns."""
        return cls(name, figures["median"], figures["min"], figures["max"], ours)


@dataclass(frozen=True)
class Panel:
    """Bars that share one scale; `title` names the unit too."""

    title: str
    bars: list[Bar]


def draw(title: str, panels: Sequence[Panel]) -> str:
    """The picture, as the text of an SVG file."""
    parts = [_text(_GAP, _HEAD - 10, title, size=16, weight="bold")]
    top = _HEAD
    for panel in panels:
        parts.append(_text(_GAP, top + _HEAD - 10, panel.title, weight="bold"))
        top += _HEAD
        longest = max((bar.high for bar in panel.bars), default=0.0) or 1.0
        for bar in panel.bars:
            parts += _bar(bar, top, (_WIDTH - _LABELS - _VALUES) / longest)
            top += _ROW
        top += _GAP
    return "\n".join([_OPENING.format(width=_WIDTH, height=top), *parts, "</svg>"]) + "\n"


def _bar(bar: Bar, top: int, pixels: float) -> list[str]:
    """One row; `pixels` is the length of a unit."""
    middle = top + _ROW // 2
    low, end, high = (_LABELS + at * pixels for at in (bar.low, bar.value, bar.high))
    fill = _OURS if bar.ours else _PEER
    return [
        _text(_LABELS - 8, middle + 4, bar.name, anchor="end"),
        f'<rect x="{_LABELS}" y="{top + 4}" width="{end - _LABELS:.1f}" height="{_ROW - 8}" fill="{fill}"/>',
        f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="{_SPREAD}"/>',
        _text(_WIDTH - _GAP, middle + 4, f"{bar.value:,.4g}", anchor="end"),
    ]


def _text(x: int, y: int, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    looks = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {looks}>{escape(text)}</text>'
