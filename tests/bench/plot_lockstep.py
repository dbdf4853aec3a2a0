#!/usr/bin/python3
"""Draws build/bench/lockstep.json: a panel for each workload, time in lockstep / time unprotected over the epoch length;
points are medians, bars ranges.

usage: plot_lockstep.py lockstep.json lockstep.svg"""
import json
import math
import sys
from html import escape

PANEL_WIDTH, PANEL_HEIGHT, MARGIN, GAP = 250, 260, 56, 34
RULES = {"on-output": ("#1f5fa8", ""), "every-epoch": ("#c05a00", "6 4")}
TOP = 70
LEAST_SHOWN = 0.9
LEGEND_WIDTH = 960


class Axis:
    """Logarithmic, from the lowest value to the highest, onto a range of pixels."""

    def __init__(self, values, start: float, end: float):
        self.low, self.high = math.log(min(values)), math.log(max(values))
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        share = (math.log(value) - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.end - self.start)


def text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "middle", weight: str = "normal", color: str = "#333") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{color}">{escape(words)}</text>')


def line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def short(number: int) -> str:
    return f"{number // 1_000_000}M" if number >= 1_000_000 else f"{number // 1000}k" if number >= 1000 else str(number)


def ticks(highest: float) -> list[float]:
    return [value for value in (1, 1.25, 2, 5, 10, 20, 50, 100, 200, 500) if value <= highest * 1.05]


def panel(name: str, rows: list[dict], left: float, highest: float) -> list[str]:
    lengths = sorted({row["epoch_length"] for row in rows})
    x = Axis(lengths, left, left + PANEL_WIDTH)
    y = Axis([LEAST_SHOWN, highest], TOP + PANEL_HEIGHT, TOP)
    out = [text(left + PANEL_WIDTH / 2, TOP - 14, name, size=14, weight="bold")]
    for value in ticks(highest):
        out.append(line(left, y.at(value), left + PANEL_WIDTH, y.at(value), "#888" if value == 1 else "#e4e4e4"))
        out.append(text(left - 6, y.at(value) + 4, f"{value:g}", anchor="end"))
    for length in lengths:
        out.append(text(x.at(length), TOP + PANEL_HEIGHT + 18, short(length)))
    for rule, (color, dashes) in RULES.items():
        of_rule = [row for row in sorted(rows, key=lambda row: row["epoch_length"]) if row["commit"] == rule]
        place = {kind: [(x.at(row["epoch_length"]), y.at(min(max(row[kind], LEAST_SHOWN), highest))) for row in of_rule]
                 for kind in ("normalized", "normalized_least", "normalized_most")}
        points = place["normalized"]
        out += [line(px, low, px, high, color) for (px, low), (_, high) in zip(place["normalized_least"], place["normalized_most"])]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in points]
    return out


def legend(left: float) -> list[str]:
    out = []
    for rule, (color, dashes) in RULES.items():
        out.append(f'<line x1="{left}" y1="22" x2="{left + 34}" y2="22" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>')
        out.append(text(left + 40, 26, f"--commit {rule}", size=12, anchor="start"))
        left += 190
    out.append(text(left, 26, "time in lockstep / time unprotected (median and range), over the epoch length (counted sites)", size=12, anchor="start"))
    return out


def draw(rows: list[dict]) -> str:
    names = list(dict.fromkeys(row["workload"] for row in rows))
    highest = max(max(row["normalized_most"] for row in rows), 2)
    width = max(MARGIN + len(names) * (PANEL_WIDTH + GAP + MARGIN), LEGEND_WIDTH)
    height = TOP + PANEL_HEIGHT + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif">', f'<rect width="{width}" height="{height}" fill="white"/>', *legend(MARGIN)]
    for number, name in enumerate(names):
        out += panel(name, [row for row in rows if row["workload"] == name], MARGIN + number * (PANEL_WIDTH + GAP + MARGIN), highest)
    return "\n".join([*out, "</svg>\n"])


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = json.load(file)["rows"]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(draw(rows))
    print(f"plot: {sys.argv[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
