"""Draws a report's numbers as SVG; matplotlib is of the dependency group `benchmarks`."""

from __future__ import annotations

import statistics
import textwrap
from importlib import util
from typing import TYPE_CHECKING, Any

from benchmarks.report import by_server, trusted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.section import Section

OURS, THEIRS = "#1f6f8b", "#b8b8b8"


def can_draw() -> bool:
    """Tell whether matplotlib is here."""
    return util.find_spec("matplotlib") is not None


def draw(sections: list[Section], directory: Path) -> dict[str, Path]:
    """Draw what can be drawn of each section; return the files by its name."""
    if not can_draw():
        return {}
    import matplotlib as mpl  # noqa: PLC0415 - only where it is

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sse-gateway", "font.size": 9, "axes.axisbelow": True})
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for section in sections:
        how = PLOTS.get(section.name)
        if how is not None and section.rows:
            files[section.name] = directory / f"{section.name}.svg"
            _save(section, how, files[section.name])
    return files


def _save(section: Section, how: Callable[[Any, Section], None], file: Path) -> None:
    from matplotlib import pyplot  # noqa: PLC0415 - as above

    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    how(axes, section)
    figure.suptitle(textwrap.fill(section.title, 90), fontsize=9, x=0.01, ha="left")
    axes.grid(axis="both", color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def medians(section: Section, key: str) -> dict[str, float]:
    """Return the median of each server."""
    return {
        name: statistics.median(row[key] for row in rows) for name, rows in by_server(trusted(section.rows)).items()
    }


def _bars(key: str, label: str, *, factor: float = 1, is_log: bool = False) -> Callable[[Any, Section], None]:
    def paint(axes: Any, section: Section) -> None:  # noqa: ANN401 - matplotlib has no types here
        values = {name: value * factor for name, value in medians(section, key).items()}
        names = list(values)[::-1]
        lengths = [values[name] for name in names]
        colors = [OURS if name.startswith("gateway") else THEIRS for name in names]
        if is_log:  # a bar has a length only on an axis that begins at 0
            axes.scatter(lengths, names, color=colors, s=40)
            axes.set_xscale("log")
        else:
            axes.barh(names, lengths, color=colors)
        for name, length in zip(names, lengths, strict=True):
            text = f"{length:,.0f}" if length >= 100 else f"{length:.3g}"
            axes.annotate(text, (length, name), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlabel(label + (" (logarithmic)" if is_log else ""))
        axes.margins(x=0.14)

    return paint


def _sizes(axes: Any, section: Section) -> None:  # noqa: ANN401 - as above
    """Draw times over streams, a line for each server that has several sizes."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, value in medians(section, "p99_ms").items():
        server, _, size = name.partition(" (")
        lines.setdefault(server, []).append((int(size.rstrip(")").replace(",", "")), value))
    for server, points in lines.items():
        points.sort()
        style = {"color": OURS, "linewidth": 2.2} if server == "gateway" else {"linewidth": 1.1}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=server, **style)
    axes.set(xlabel="streams", ylabel="99 % have it after, ms (logarithmic)", yscale="log")
    axes.legend(fontsize=8, frameon=False, ncols=2)


PLOTS: dict[str, Callable[[Any, Section], None]] = {
    "cpu": _bars("cpu_us_per_delivery", "server CPU per delivery, us", is_log=True),
    "fanout": _sizes,
    "rate": _bars("rate", "events/s", is_log=True),
    "memory": _bars("bytes_per_stream", "resident bytes per idle stream"),
    "storm": _bars("last_s", "all current after, s"),
    "slow": _bars("p99_ms", "p99 of the honest clients, ms"),
    "payload": _bars("cpu_us_per_delivery", "server CPU per delivery, us"),
    "growth": _bars("cpu_us_per_delivery", "server CPU per delivery, us"),
}
