"""What a long run has measured is not lost, whatever ends it; and who judges it leaves out what was disturbed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.catalogue import SCENARIOS, read, section_of
from benchmarks.errors import BenchmarkError
from benchmarks.parts import Part
from benchmarks.run import Found
from benchmarks.section import save
from tests.support.gateway_process import poll

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = {"date": "today", "command": "python -m benchmarks.run workers"}


def row(server: str, number: int, cost_us: float, *, is_disturbed: bool = False) -> dict[str, Any]:
    """Return what a round of `workers` gives, as far as it is judged."""
    seen = {"is_right": True, "is_disturbed": is_disturbed, "load_core_busy": 0.1}
    return seen | {"server": server, "round": number, "cpu_us_per_delivery": cost_us}


def rounds() -> list[dict[str, Any]]:
    """Return three rounds: the second was disturbed."""
    one, two = SCENARIOS["workers"].servers
    costs = ((1, 4.0, 4.2, False), (2, 4.0, 9.0, True), (3, 4.0, 4.0, False))
    return [
        row(name, number, cost, is_disturbed=is_disturbed)
        for number, first, second, is_disturbed in costs
        for name, cost in ((one, first), (two, second))
    ]


def test_what_was_measured_before_a_run_was_killed_is_read_as_a_report(tmp_path: Path) -> None:
    """The file that is written after each round has all that a verdict needs, and is replaced as a whole."""
    stem = tmp_path / "results" / "now"
    save({"workers": Found(rounds()[:2]), "cpu": Found()}, KNOWN, stem)
    save({"workers": Found(rounds(), ["one, round 4: ended"]), "cpu": Found()}, KNOWN, stem)
    assert [path.name for path in stem.parent.iterdir()] == ["now.json"]
    (section,) = read([stem.with_suffix(".json")])
    assert section == section_of("workers", SCENARIOS["workers"], rounds(), KNOWN, [], ["one, round 4: ended"])


def test_a_disturbed_round_is_not_judged() -> None:
    """The ratio is the median of the rounds that nothing disturbed; with the other it would be missed."""
    section = section_of("workers", SCENARIOS["workers"], rounds(), KNOWN, [], [])
    cost = section.targets[0]
    assert cost.is_met
    assert cost.detail == "1.05, 1.00"
    worse = [one | {"is_disturbed": False} if one["round"] == 2 else one for one in rounds() if one["round"] != 1]
    assert section_of("workers", SCENARIOS["workers"], worse, KNOWN, [], []).targets[0].is_met is False


def test_a_part_that_has_ended_fails_its_measurement_alone(tmp_path: Path) -> None:
    """What is told to it is an error that names it, and it can be stopped all the same."""
    part = Part(
        "brief", [sys.executable, "-c", "raise SystemExit(3)"], core=min(os.sched_getaffinity(0)), directory=tmp_path
    )
    with pytest.raises(BenchmarkError, match="brief ended"):
        part.hear(10)
    poll(part.ended, timeout_s=5, what="the end")
    with pytest.raises(BenchmarkError, match="brief ended"):
        part.tell("mark")
    part.stop()
    part.stop()
