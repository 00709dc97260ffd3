"""A scenario's part of the report, and the report: Markdown, JSON, plots."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.plots import draw
from benchmarks.report import table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.measure import Row
    from benchmarks.report import Column, Target
    from benchmarks.run import Found


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario's part of the report.

    Attributes:
        name: Of the scenario.
        title: What was measured.
        rows: The measurements.
        columns: Of the table.
        right: Heading of its last column.
        targets: The verdicts.
        notes: What explains the numbers.
        known: Machine, versions, date, command of these measurements.
        profile: Where a target is missed: the functions in which most of the server's time goes.
        failures: What could not be measured.
    """

    name: str
    title: str
    rows: list[Row]
    columns: tuple[Column, ...]
    right: str
    targets: list[Target]
    notes: list[str]
    known: dict[str, str]
    profile: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def markdown(self, picture: str | None, head: dict[str, str]) -> str:
        """Return the section as Markdown; of what is known of it, what the report's head does not say."""
        parts = [f"## {self.name}: {self.title}"]
        if others := {key: value for key, value in self.known.items() if head.get(key) != value}:
            parts.append("Measured with: " + "; ".join(f"{key} {value}" for key, value in others.items()) + ".")
        parts.append(table(self.rows, self.columns, self.right))
        told = (*map(str, self.targets), *self.notes, *(f"COULD NOT BE MEASURED: {text}" for text in self.failures))
        parts.append("\n".join(f"- {line}" for line in told))
        if self.profile:
            where = "\n".join(f"- {line}" for line in self.profile)
            parts.append(f"Where the gateway's time goes, in a round of its own (py-spy):\n\n{where}")
        if picture:
            parts.append(f"![{self.title}]({picture})")
        return "\n\n".join(parts)


def save(found: Mapping[str, Found], known: dict[str, str], stem: Path) -> None:
    """Write what has been measured so far, unjudged, as JSON that `benchmarks.merge` reads."""
    _write_json([asdict(one) | {"name": name, "known": known} for name, one in found.items() if one.rows], known, stem)


def _write_json(scenarios: list[dict[str, Any]], known: dict[str, str], stem: Path) -> None:
    """Replace the file as a whole: whoever is killed meanwhile leaves the one before."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    new = stem.with_suffix(".new")
    new.write_text(json.dumps(known | {"argv": sys.argv, "scenarios": scenarios}, indent=1))
    new.replace(stem.with_suffix(".json"))


def write(sections: list[Section], known: dict[str, str], stem: Path) -> Path:
    """Write the report as Markdown, JSON and plots; return the Markdown file."""
    _write_json([asdict(section) for section in sections], known, stem)
    pictures = draw(sections, stem)
    head = "\n".join(f"- {key}: {f'`{value}`' if key == 'command' else value}" for key, value in known.items())
    missed = [f"- {section.name}: {one}" for section in sections for one in section.targets if one.is_met is False]
    verdict = "\n".join(["Targets missed:", "", *missed]) if missed else "Every target that was measured is met."
    told = [
        section.markdown(f"{stem.name}/{section.name}.svg" if section.name in pictures else None, known)
        for section in sections
    ]
    text = "\n\n".join(["# Benchmarks", head, verdict, *told]) + "\n"
    report = stem.with_suffix(".md")
    report.write_text(text)
    return report
