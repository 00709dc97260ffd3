"""The memory that workers share: seen by all, cleared section by section, gone when nobody has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sse_gateway.census_memory import CensusMemory, join
from sse_gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.census import Register


@pytest.fixture
def memory() -> Iterator[CensusMemory]:
    """The memory of three workers."""
    made = CensusMemory.create(3, 100)
    yield made
    made.close()


def registers(memory: CensusMemory, beside: CensusMemory | None = None) -> list[Register]:
    """The workers' registers, each with a mapping of its own, as in processes of their own."""
    other = None if beside is None else beside.descriptor
    return [
        join(slot, os.dup(memory.descriptor), None if other is None else os.dup(other))
        for slot in range(memory.census.shape.sections)
    ]


def test_what_one_writes_all_see(memory: CensusMemory) -> None:
    """Through whichever mapping."""
    first, second, third = registers(memory)
    key = first.key("203.0.113.7")
    assert [each.take(0, key, 2) for each in (first, second, third)] == [True, True, False]
    assert third.key("203.0.113.7") == key
    assert first.take_stream(9)
    assert third.streams == 1


def test_a_section_is_cleared_alone(memory: CensusMemory) -> None:
    """What the others have written stays; the pages go back to the kernel."""
    first, second, third = registers(memory)
    key = first.key("203.0.113.7")
    for each in (first, first, second):
        assert each.take(0, key, 9)
        assert each.take_stream(9)
    first.spend(2, key, 1000.0, 5.0)
    before = os.fstat(memory.descriptor).st_blocks
    memory.clear(0)

    assert os.fstat(memory.descriptor).st_blocks < before
    assert third.streams == 1
    assert third.spent(2, key, 5.0) == 0
    assert third.take(0, key, 2)
    assert not third.take(0, key, 2)


def test_the_generation_before_counts_too(memory: CensusMemory) -> None:
    """By the same keys; what the new one writes, the old one does not see."""
    (old, *_) = registers(memory)
    assert old.take(0, old.key("alice"), 9)
    new_memory = CensusMemory.create(2, 100, memory.census.secret)
    new, _ = registers(new_memory, memory)
    assert old.take_stream(9)
    assert (new.streams, new.streams_of_generation) == (1, 0)
    assert not new.take_stream(1)
    assert not new.take(0, new.key("alice"), 1)
    assert new.take(0, new.key("alice"), 2)
    assert old.take(0, old.key("alice"), 2)
    new_memory.close()


def test_what_nobody_wrote_takes_no_memory() -> None:
    """A census of a million streams is a page or two."""
    large = CensusMemory.create(4, 250_000)
    stat = os.fstat(large.descriptor)
    assert stat.st_size > 100 << 20
    assert stat.st_blocks * 512 <= 128 << 10
    large.close()
    large.close()
    assert large.descriptor == -1


def test_secrets_differ() -> None:
    """Unless one is given on."""
    one, other = CensusMemory.create(1, 1), CensusMemory.create(1, 1)
    assert one.census.secret != other.census.secret
    one.close()
    other.close()


def test_without_memory_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the operator, who may have forbidden it."""

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(ConfigError, match="count in: Operation not permitted"):
        CensusMemory.create(1, 1)
