"""Draws what runs of `bench.forgetting` have learned against what they have forgotten.

    python -m bench.tradeoff RESULTS.jsonl --to FILE.svg

RESULTS.jsonl has the lines that `python -m bench.forgetting` has printed. Each line of the cases `unguarded` and `lora`
becomes a point: by how much the held-out loss has fallen, and by how much the loss on general text has risen.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.pages import svg

SERIES: Final = {"unguarded": ("full fine-tuning", "s0"), "lora": ("LoRA of rank 16", "s1")}
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, svg.WIDTH - 20, 40.0, 300.0


def plot(lines: Sequence[dict[str, Any]]) -> str:
    """Draw the points of both methods, each labelled with its learning rate. Points of a method are joined by rate."""
    gains, rises = ([line[name] for line in lines] for name in ("gain", "general_increase"))
    low, high = min(0.0, *rises), svg.up_to_tick(100 * max(rises)) / 100
    first, last = min(gains) - 0.1, max(gains) + 0.1

    def place(line: dict[str, Any]) -> tuple[float, float]:
        x = _LEFT + (line["gain"] - first) / (last - first) * (_RIGHT - _LEFT)
        return x, _BOTTOM - (line["general_increase"] - low) / (high - low) * (_BOTTOM - _TOP)

    parts = []
    for tick in svg.nice_ticks(100 * low, 100 * high, 6):
        y = place({"gain": first, "general_increase": tick / 100})[1]
        parts += [svg.element("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y, y2=y)]
        parts += [svg.plot_text(f"{tick:+g} %" if tick else "0", _LEFT - 6, y + 4, "end")]
    ticks = svg.nice_ticks(first, last, 8)
    to_x = {tick: place({"gain": tick, "general_increase": 0.0})[0] for tick in ticks}
    gained = "held-out loss gained, nats: to the right, more is learned"
    parts += [svg.x_axis(ticks, to_x.__getitem__, _LEFT, _RIGHT, _BOTTOM, gained, "{:g}".format)]
    middle = (_TOP + _BOTTOM) / 2
    forgotten = "loss on general text: up, more is forgotten"
    parts += [svg.plot_text(forgotten, 14, middle, transform=f"rotate(-90 14 {middle:g})")]
    for number, (case, (name, style)) in enumerate(SERIES.items()):
        points = [(line["rate"], *place(line)) for line in sorted(lines, key=lambda line: line["rate"])
                  if line["case"] == case]  # fmt: skip
        path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in points)
        parts += [svg.element("polyline", points=path, fill="none", stroke=f"var(--plot-{number})", opacity=0.5)]
        for rate, x, y in points:
            parts += [svg.element("circle", class_=style, cx=x, cy=y, r=4)]
            parts += [svg.plot_text(f"{rate:g}", x, y - 8)]
        at = _LEFT + 10 + number * 160
        parts += [svg.element("circle", class_=style, cx=at, cy=18, r=4), svg.plot_text(name, at + 9, 22, "start")]
    figure = svg.figure(_BOTTOM + 45, "".join(parts), "Learning against forgetting, by learning rate")
    return figure.replace(">", f">{svg.element('style', svg.STYLE)}", 1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--to", type=pathlib.Path, required=True)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.results.read_text().splitlines()]
    options.to.write_text(plot([line for line in lines if line["case"] in SERIES]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
