"""How the time of enrichment grows with the length of a text, up to 1 MB; draws docs/enrichment-growth.svg.

    python -m bench.enrichment_growth [--largest 1048576] [--out docs/enrichment-growth.svg]

The text is made of READMEs of installed packages, one behind the other. Each step's exponent is the slope between the
second smallest and the largest text in logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

from bench.documents import readmes
from bench.enrichment import MODEL, Clock
from builders import note_of
from core.telemetry import quiet_libraries
from models.embedder import Embedder, load_embedder
from models.shared_pass import SharedPass, load_shared_pass
from models.tagger import EMBEDDED
from operators import concepts, embed
from operators.chunk import split

SMALLEST = 1_024
FACTOR = 4
STEPS = ("chunk", "vectors and entities", "phrases")
COLOURS = dict(zip(STEPS, ("#1b6ca8", "#c8553d", "#3a7d44"), strict=True))
MOST_EXPONENT = 1.15


def measure(sizes: list[int], text: str) -> dict[str, list[float]]:
    """Return the seconds of each step for each size."""
    embedder = load_embedder(MODEL, threads=None)
    shared = load_shared_pass(MODEL, EMBEDDED, threads=None)
    found: dict[str, list[float]] = {step: [] for step in STEPS}
    # The first pass of a model is slower.
    enrich(text[:SMALLEST], embedder, shared)
    for size in sizes:
        clock = enrich(text[:size], embedder, shared)
        for step in STEPS:
            found[step].append(clock.seconds[step])
        shown = ", ".join(f"{step} {clock.seconds[step]:8.3f} s" for step in STEPS)
        print(f"{size:9,} characters: {shown}", flush=True)
    return found


def enrich(text: str, embedder: Embedder, shared: SharedPass | None) -> Clock:
    clock = Clock()
    with clock.time("chunk"):
        chunks = split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens)
    with clock.time("vectors and entities"):
        notes = embed.embed([note_of(text, chunks=chunks)], embedder, shared=shared)
    with clock.time("phrases"):
        concepts.describe(notes, embedder)
    return clock


def drawn(sizes: list[int], seconds: dict[str, list[float]]) -> str:
    """Draw time over length, both in logarithms, with a dashed line of slope 1 through the first point of all."""
    width, height, left, right, top, bottom = 760, 440, 64, 150, 30, 50
    values = [value for series in seconds.values() for value in series]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x(size: float) -> float:
        span = math.log(sizes[-1] / sizes[0])
        return left + (width - left - right) * math.log(size / sizes[0]) / span

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (math.log10(value) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">Time of each step over the length of one text</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for size in sizes:
        at, label = x(size), f"{size // 1024} k" if size < 1024**2 else f"{size // 1024**2} M"
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - bottom + 18}" text-anchor="middle">{label}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 10}" text-anchor="middle">characters</text>')
    total = [sum(series[place] for series in seconds.values()) for place in range(len(sizes))]
    begin, end = total[-1] * sizes[0] / sizes[-1], total[-1]
    parts.append(
        f'<line x1="{x(sizes[0]):.1f}" y1="{y(max(begin, 10.0**low)):.1f}" x2="{x(sizes[-1]):.1f}" y2="{y(end):.1f}" '
        'stroke="#888" stroke-dasharray="5 4"/>'
    )
    labels: list[tuple[float, str, str]] = [(y(end), "all, if linear", "#666")]
    for step, series in seconds.items():
        points = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in zip(sizes, series, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[step]}" stroke-width="2"/>')
        labels.append((y(series[-1]), step, COLOURS[step]))
    place = -math.inf
    for wanted, label, colour in sorted(labels):
        place = max(wanted, place + 15)
        parts.append(f'<text x="{width - right + 6}" y="{place + 4:.1f}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Measure, print and draw; returns 1 when a step grows faster than linearly."""
    parser = argparse.ArgumentParser(prog="python -m bench.enrichment_growth", description=__doc__)
    parser.add_argument("--largest", type=int, default=1024 * 1024)
    parser.add_argument("--out", type=Path, default=Path("docs/enrichment-growth.svg"))
    options = parser.parse_args()
    quiet_libraries()
    sizes = [options.largest]
    while sizes[0] // FACTOR >= SMALLEST:
        sizes.insert(0, sizes[0] // FACTOR)
    joined = "\n\n".join(document.text for document in readmes())
    text = joined * (options.largest // len(joined) + 1)
    began = time.perf_counter()
    seconds = measure(sizes, text)
    print(f"measured in {time.perf_counter() - began:.0f} s")
    # What a call costs whatever the text weighs on the smallest.
    first = min(1, len(sizes) - 2)
    exponents = {
        step: math.log(series[-1] / series[first]) / math.log(sizes[-1] / sizes[first])
        for step, series in seconds.items()
    }
    print(", ".join(f"{step} grows by length^{exponent:.2f}" for step, exponent in exponents.items()))
    options.out.write_text(drawn(sizes, seconds))
    return int(any(exponent > MOST_EXPONENT for exponent in exponents.values()))


if __name__ == "__main__":
    sys.exit(main())
