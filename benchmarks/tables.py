"""Puts measured numbers into the documents: ``python -m benchmarks.tables results/X.json``.

Rewrites what stands between ``<!-- measured NAME -->`` and ``<!-- end NAME -->`` in docs/performance.md and README.md, and the plots in
docs/performance/. NAME is a scenario, or one of `about`, `targets`, `capacity`, `numbers`. What the report does not have stays as
it is.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.catalogue import SCENARIOS, read
from benchmarks.parts import ROOT
from benchmarks.plots import draw
from benchmarks.report import ratio, table, trusted

if TYPE_CHECKING:
    from benchmarks.report import Target
    from benchmarks.section import Section

DOCUMENTS = (ROOT / "docs" / "performance.md", ROOT / "README.md")
PLOTS = ROOT / "docs" / "performance"

MARK = re.compile(r"(<!-- measured (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

COMPLETE = ": every event once, in order"
"""How such targets end."""

STREAMS = (1_000, 10_000, 50_000, 100_000)
RATES = (0.1, 1.0, 10.0, 100.0)

BASE_MB = 80
"""A worker without streams, as docs/memory.md has it."""


def about(sections: list[Section]) -> str:
    """Say on what, when and how it was measured."""
    facts: dict[str, list[str]] = {}
    for section in sections:
        for key, value in section.known.items():
            if value not in facts.setdefault(key, []):
                facts[key].append(value)
    rounds = max(row["round"] for section in sections for row in section.rows)
    lines = [f"- {key}: {'; '.join(f'`{one}`' if key == 'command' else one for one in facts[key])}" for key in facts]
    lines.append(f"- rounds: up to {rounds}; tables show medians; a server that no target names ran in the first only")
    rows = [row for section in sections for row in section.rows]
    if disturbed := sum(1 for row in rows if row.get("is_disturbed")):
        what = f"- **disturbed by other work on the machine**: {disturbed} of {len(rows)} measurements"
        lines.append(f"{what}. A disturbed one is good for memory and for what arrived, not for times or ratios of CPU")
    return "\n".join(lines)


def targets(sections: list[Section]) -> str:
    """Return every promise and what became of it; completeness of all runs in one line."""
    lines = ["| | scenario | target | measured | |", "|---|---|---|---:|---|"]
    judged = [one for section in sections for one in section.targets if one.text.endswith(COMPLETE)]
    for section in sections:
        short = section.title.partition(":")[0] if section.title[1:3] in {": ", "':"} else ""
        rows = (f"| {short} | `{section.name}` | {one.text} | {_measured(one)} |" for one in section.targets)
        lines.extend(row for row, one in zip(rows, section.targets, strict=True) if one not in judged)
    right = sum(1 for one in judged if one.is_met)
    known = sum(1 for one in judged if one.value is not None)
    verdict = "met" if right == known else "**missed**"
    lines.append(f"| all | | gateway: every event once, in order, in every round | {right} of {known} | {verdict} |")
    return "\n".join(lines)


def _measured(one: Target) -> str:
    if one.value is None:
        return "not measured |"
    digits = 2 if one.value < 100 else 0
    return f"{one.value:,.{digits}f} | {'met' if one.is_met else '**missed**'}"


def told(section: Section) -> str:
    """Return a scenario's table, its verdicts and what explains them."""
    parts = [table(section.rows, section.columns, section.right)]
    parts.append("\n".join(f"- {line}" for line in (*map(str, section.targets), *section.notes)))
    if section.profile:
        parts.append("Where the gateway's time goes, in a round of its own (py-spy), since a target is missed:")
        parts.append("\n".join(f"- {line}" for line in section.profile))
    return "\n\n".join(parts)


def _median(section: Section, server: str, key: str) -> float:
    return float(statistics.median(row[key] for row in trusted(section.rows) if row["server"] == server))


def _check_quiet(*sections: Section) -> None:
    ours = [row for section in sections for row in trusted(section.rows) if row["server"].startswith("gateway")]
    if any(row.get("is_disturbed") for row in ours):
        raise KeyError("undisturbed")


def capacity(by_name: dict[str, Section]) -> str:
    """Return cores and memory for numbers of streams and rates.

    Raises:
        KeyError: A scenario is missing, or was measured on a busy machine only.
    """
    _check_quiet(by_name["cpu"], by_name["memory"])
    cost_s = _median(by_name["cpu"], "gateway", "cpu_us_per_delivery") / 1e6
    server = "gateway (a channel each)"
    resident, kernel = (_median(by_name["memory"], server, f"{key}bytes_per_stream") for key in ("", "kernel_"))
    idle = _median(by_name["memory"], server, "cpu_per_10k") / 10_000
    heads = " | ".join(f"{rate:g} events/s each" for rate in RATES)
    lines = [f"| streams | {heads} | resident | kernel |", "|---:" * (len(RATES) + 3) + "|"]
    for count in STREAMS:
        cores = " | ".join(f"{count * (rate * cost_s + idle):,.2f}" for rate in RATES)
        memory = f"{BASE_MB + count * resident / 1e6:,.0f} MB and the windows | {count * kernel / 2e6:,.0f} MB"
        lines.append(f"| {count:,} | {cores} | {memory} |")
    return "\n".join(lines)


def numbers(by_name: dict[str, Section]) -> str:
    """Return the README's sentence.

    Raises:
        KeyError: A scenario is missing, or was measured on a busy machine only: that is nothing for a README.
    """
    cpu, idle = by_name["cpu"], by_name["memory"]
    _check_quiet(cpu, by_name["fanout"], by_name["rate"])
    over = {
        name: statistics.median(ratio(trusted(cpu.rows), "cpu_us_per_delivery", "gateway", name))
        for name in ("floor-c", "nchan", "aiohttp-sse")
    }
    rate = statistics.median(row["rate"] for row in trusted(by_name["rate"].rows) if row["server"] == "gateway")
    last = _median(by_name["fanout"], "gateway (10,000)", "p99_ms")
    small, large = (_median(idle, name, "bytes_per_stream") / 1e3 for name in ("gateway", "gateway (a channel each)"))
    return (
        f"A delivery costs {over['floor-c']:.2f} times the CPU of a loop in C that does nothing but `send`, "
        f"{over['nchan']:.2f} times nchan's, {over['aiohttp-sse']:.2f} times aiohttp-sse's.\n"
        f"One core carries {rate:,.0f} events/s to 1,000 streams with p99 below 50 ms; one event reaches 99 % of 10,000 "
        f"streams in {last:,.0f} ms;\nan idle stream takes {small:.1f} KB, {large:.1f} KB with a channel of its own."
    )


def texts(sections: list[Section]) -> dict[str, str]:
    """Return what there is to put in, by mark."""
    by_name = {section.name: section for section in sections}
    found = {name: told(section) for name, section in by_name.items()}
    found |= {"about": about(sections), "targets": targets(sections)}
    for name, make in (("capacity", capacity), ("numbers", numbers)):
        with contextlib.suppress(KeyError, statistics.StatisticsError):  # the report lacks a scenario or a server
            found[name] = make(by_name)
    return found


def main(arguments: list[str]) -> int:
    """Rewrite the documents."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 64
    sections = read([Path(name) for name in arguments])
    found = texts(sections)
    for document in DOCUMENTS:
        before = document.read_text()
        after = MARK.sub(lambda mark: f"{mark[1]}{found[mark[2]]}\n{mark[3]}" if mark[2] in found else mark[0], before)
        document.write_text(after)
        print(f"{document.relative_to(ROOT)}: {'rewritten' if after != before else 'as it was'}")
    for name, file in draw(sections, PLOTS).items():
        print(f"{file.relative_to(ROOT)}: {SCENARIOS[name].title}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
