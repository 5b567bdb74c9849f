"""The samples of a benchmark as tables, and as a picture for light and dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from plan import (
    AGAIN,
    ARMS,
    DBOS,
    DBOS_WAL,
    LIMIT,
    NAMES,
    ON_TARGETS,
    OURS,
    PROCRASTINATE,
    ROWS,
    Row,
    Samples,
    better_peer,
    ratios,
    values,
)


def span(found: Sequence[float], digits: int) -> str:
    """Median and, of several, (min-max)."""
    if not found:
        return "–"
    middle = f"{statistics.median(found):,.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):,.{digits}f}-{max(found):,.{digits}f})"


def _factor(found: Sequence[float]) -> str:
    return span(found, 1 if found and statistics.median(found) >= 10 else 2)


def table(samples: Samples, on: str = "sqlite") -> str:
    """What was measured: medians (min-max). The ratios are of pairs of a round; more than 1 is better for Holdfast."""
    columns = [who for who in ARMS[on] if who != AGAIN]
    others = [who for who in (PROCRASTINATE, LIMIT, AGAIN) if who in ARMS[on]]
    titles = {PROCRASTINATE: "× Procrastinate", LIMIT: "× bare loop", AGAIN: "same code"}
    dbos = {"sqlite": ["× better DBOS"], "postgres": ["× DBOS"]}.get(on, [])
    lines = [["", *[NAMES[who] for who in columns], *dbos, *[titles[who] for who in others]]]
    for row in ROWS:
        cells = [row.title]
        cells += [span([*values(samples, who, row.work, row.figure).values()], row.digits) for who in columns]
        against = [*([better_peer(samples, row)] if dbos else []), *others]
        cells += [_factor(ratios(samples, row, OURS, other)) if other else "–" for other in against]
        if any(cell != "–" for cell in cells[1:]):
            lines.append(cells)
    return _aligned(lines)


def targets(samples: Samples, on: str = "sqlite") -> str:
    """What we want to reach, beside what was reached."""
    lines = [["to reach on two cores", "wanted", "measured", "reached"]]
    for target in ON_TARGETS[on]:
        found = target.found(samples)
        wanted = f"{'≤' if target.at_most else '≥'} {target.wanted:,g}"
        verdict = "not measured" if not found else "yes" if target.reached(found) else "NO"
        lines.append([target.title, wanted, span(found, target.digits), verdict])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip


_PANELS = [
    ("Runs drained per second", Row("", "drain"), 0),
    ("Steps saved per second", Row("", "checkpoints"), 0),
    ("Triggers per second, 100 callers", Row("", "triggers_together"), 0),
    ("Trigger to result, ms (less is better)", Row("", "latency", "p50", less=True), 1),
]
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a } .title { font-weight: 600; fill: #24292f }
.ours { fill: #0969da } .peer { fill: #8c959f } .limit { fill: none; stroke: #8c959f; stroke-dasharray: 3 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title { fill: #f0f6fc } .ours { fill: #4493f8 } .peer { fill: #656c76 }
  .limit { stroke: #656c76 }
}"""


def chart(samples: Samples, caption: str) -> str:
    """An SVG of four panels of bars. The longest of a panel is the largest figure; the dashed one is the bare loop."""
    width, bar, left, right = 760, 18, 150, 110
    parts: list[str] = []
    y = 8
    for title, row, digits in _PANELS:
        found = {who: statistics.median(those) for who in (OURS, DBOS_WAL, DBOS, PROCRASTINATE, LIMIT)
                 if (those := [*values(samples, who, row.work, row.figure).values()])}  # fmt: skip
        if not found:
            continue
        parts.append(f'<text class="title" x="8" y="{y + 14}">{escape(title)}</text>')
        y += 24
        for who, value in found.items():
            length = max(1.0, (width - left - right) * value / max(found.values()))
            kind = {OURS: "ours", LIMIT: "limit"}.get(who, "peer")
            parts += [
                f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(NAMES[who])}</text>',
                f'<rect class="{kind}" x="{left}" y="{y + 1}" width="{length:.1f}" height="{bar - 3}" rx="2"/>',
                f'<text x="{left + length + 6:.1f}" y="{y + 13}">{value:,.{digits}f}</text>',
            ]
            y += bar
        y += 12
    parts.append(f'<text x="8" y="{y + 10}">{escape(caption)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 20}" width="{width}" role="img" '
        f'aria-label="Holdfast beside DBOS and a bare loop">\n<style>{_STYLE}\n</style>\n{body}\n</svg>\n'
    )
