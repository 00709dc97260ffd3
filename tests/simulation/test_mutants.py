"""Every rule of the common log is needed: without it, the oracle sees a broken promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.simulation.mutants import FAULTY, HARMLESS, MUTANTS
from tests.support.cluster_run import fails
from tests.support.world import BrokenPromiseError

if TYPE_CHECKING:
    from tests.support.cluster_parts import Parts

ENOUGH = 300
"""Schedules in which a mutant is noticed."""


@pytest.mark.parametrize("name", MUTANTS)
def test_oracle_notices_a_rule_switched_off(name: str) -> None:
    """Nodes without one of their rules break the promise within a few schedules (negative test)."""
    parts, profile = MUTANTS[name]

    assert is_noticed(parts, profile)


@pytest.mark.parametrize("name", FAULTY)
def test_oracle_notices_a_net_taken_away(name: str) -> None:
    """Where a link drops a message without a trace, a node without its nets says nothing (negative test)."""
    assert is_noticed(FAULTY[name], "hole")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_costs_an_epoch_at_most(name: str) -> None:
    """Without this rule the nodes agree later, and the promise holds all the same."""
    parts, profile = HARMLESS[name]

    assert [seed for seed in range(60) if fails(seed, parts, profile)] == []


def is_noticed(parts: Parts, profile: str) -> bool:
    """Whether the oracle sees some nodes break the promise."""
    return any(isinstance(fails(seed, parts, profile), BrokenPromiseError) for seed in range(ENOUGH))
