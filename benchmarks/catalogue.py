"""All scenarios, by name and by group, and what is made of their rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks import accept, against_peers, cluster, crowd, hostile, many_channels, persistence, scale
from benchmarks.scenario import kind
from benchmarks.section import Section

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.measure import Row
    from benchmarks.scenario import Scenario

GROUPS_OF = {
    "peers": against_peers.SCENARIOS,
    "many": many_channels.SCENARIOS,
    "scale": scale.SCENARIOS,
    "crowd": crowd.SCENARIOS,
    "hostile": hostile.SCENARIOS,
    "cluster": cluster.SCENARIOS,
    "access": accept.SCENARIOS,
    "store": persistence.SCENARIOS,
}

SCENARIOS = {name: scenario for group in GROUPS_OF.values() for name, scenario in group.items()}

GROUPS = {group: tuple(scenarios) for group, scenarios in GROUPS_OF.items()}
"""Scenarios that can be asked for together."""

SERVERS = sorted({kind(server) for scenario in SCENARIOS.values() for server in scenario.servers})


def section_of(
    name: str, scenario: Scenario, rows: list[Row], known: dict[str, str], profile: list[str], failures: list[str]
) -> Section:
    """Judge what was measured of a scenario."""
    rows.sort(key=lambda row: (scenario.servers.index(row["server"]), row["round"]))
    judged = scenario.judge(rows)
    return Section(
        name,
        scenario.title,
        rows,
        scenario.columns,
        scenario.right,
        judged,
        scenario.notes(rows),
        known,
        profile,
        failures,
    )


def read(files: list[Path]) -> list[Section]:
    """Read reports, and judge them anew; of a scenario that several have, the last counts."""
    sections: dict[str, Section] = {}
    for file in files:
        for found in json.loads(file.read_text())["scenarios"]:
            name = found["name"]
            rest = (found[key] for key in ("known", "profile", "failures"))
            sections[name] = section_of(name, SCENARIOS[name], found["rows"], *rest)
    return [sections[name] for name in SCENARIOS if name in sections]
