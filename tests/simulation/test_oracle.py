"""The oracle itself: what people really got passes; the same with one thing changed does not."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import pytest

from sse_gateway.reasons import Policy
from tests.support.cluster_run import Run
from tests.support.cluster_witness import Stream, Witness
from tests.support.world import BrokenPromiseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cluster_client import Person
    from tests.support.unframer import Block

Tape: TypeAlias = "list[Stream | tuple[Block, float]]"


def played(seed: int, profile: str) -> Run:
    """One schedule, with everything that people got on tape."""
    run = Run(seed, profile=profile, taping=True)
    run.play()
    return run


def judge(run: Run, person: Person, tape: Tape) -> None:
    """Judge a tape as the oracle did when it was made.

    Raises:
        BrokenPromiseError: Something is wrong with it.
    """
    witness = Witness(run.ledger, person.witness.names, calm=False)
    for item in tape:
        if isinstance(item, Stream):
            witness.begin(item)
        else:
            witness.take(*item)
    witness.now = run.now
    witness.judge_current(run.ledger.head)


def tapes(run: Run) -> list[tuple[Person, Tape]]:
    """The tapes of all who are owed every event."""
    found = []
    for person in run.people:
        tape = person.witness.tape or []
        if all(item.policy is not Policy.LATEST for item in tape if isinstance(item, Stream)):
            found.append((person, tape))
    return found


def of(tape: Tape, index: int) -> tuple[Block, float]:
    """A block and its time."""
    item = tape[index]
    assert not isinstance(item, Stream)
    return item


def indexes(tape: Tape, is_wanted: Callable[[Block], bool]) -> list[int]:
    """Where on a tape blocks of some kind stand."""
    return [index for index, item in enumerate(tape) if not isinstance(item, Stream) and is_wanted(item[0])]


def is_event(block: Block) -> bool:
    """Whether somebody published it."""
    return not block.type.startswith("gateway.")


def is_break(block: Block) -> bool:
    """Whether it tells of a new epoch, in the midst of a stream."""
    return block.type == "gateway.gap" and json.loads(block.data)["reason"] in {"source", "epoch"}


def is_counted_loss(block: Block) -> bool:
    """Whether it tells how many events a window has lost."""
    said = json.loads(block.data) if block.type == "gateway.gap" else {}
    return said.get("reason") == "window" and said["missed"] is not None


def owed(run: Run, tape: Tape) -> list[int]:
    """Where on a tape events stand that could not be left out, but for the last."""
    if indexes(tape, lambda block: block.type == "gateway.gap"):
        return []
    begun = max([item.begun for item in tape if isinstance(item, Stream) and item.cursor is None], default=-1)
    found = indexes(tape, lambda block: is_event(block) and run.ledger.ids[block.id] > begun)
    return found[:-1]


def drop(tape: Tape, index: int) -> Tape:
    """Without one block."""
    return tape[:index] + tape[index + 1 :]


def double(tape: Tape, index: int) -> Tape:
    """With one block twice."""
    return [*tape[: index + 1], tape[index], *tape[index + 1 :]]


def alter(tape: Tape, index: int) -> Tape:
    """With other data in one block."""
    block, now = of(tape, index)
    return [*tape[:index], (replace(block, data=block.data + "!"), now), *tape[index + 1 :]]


def relabel(tape: Tape, index: int) -> Tape:
    """With the id of another block."""
    block, now = of(tape, index)
    others = indexes(tape, lambda other: is_event(other) and other.id != block.id)
    return [*tape[:index], (replace(block, id=of(tape, others[-1])[0].id), now), *tape[index + 1 :]]


def postpone(tape: Tape, index: int) -> Tape:
    """With two events in the other order."""
    later = next(at for at in indexes(tape, is_event) if at > index)
    changed = list(tape)
    changed[index], changed[later] = tape[later], tape[index]
    return changed


@pytest.mark.parametrize("seed", range(3))
def test_what_was_judged_well_is_judged_well_again(seed: int) -> None:
    """A tape passes as the stream did, whatever happened."""
    run = played(seed, "redis")

    for person in run.people:
        judge(run, person, person.witness.tape or [])


@pytest.mark.parametrize("change", [drop, double, alter, relabel, postpone])
def test_one_event_changed_is_noticed(change: Callable[[Tape, int], Tape]) -> None:
    """Lost, doubled, altered, under another id, out of order: each is seen wherever it happens."""
    rng = Random(1)
    changed = 0
    for seed in range(8):
        run = played(seed, "calm")
        for person, tape in tapes(run):
            for index in rng.sample(owed(run, tape), min(5, len(owed(run, tape)))):
                with pytest.raises(BrokenPromiseError):
                    judge(run, person, change(tape, index))
                changed += 1

    assert changed > 50


def test_a_new_epoch_untold_is_noticed() -> None:
    """A gap that tells of a new epoch cannot be left out."""
    changed = 0
    for seed in range(12):
        run = played(seed, "redis")
        for person, tape in tapes(run):
            for index in indexes(tape, is_break):
                around = tape[index - 1], tape[index + 1] if index + 1 < len(tape) else tape[0]
                if any(isinstance(item, Stream) or item[0].id == "0-0-0" or is_break(item[0]) for item in around):
                    continue  # it is told all the same
                with pytest.raises(BrokenPromiseError):
                    judge(run, person, drop(tape, index))
                changed += 1

    assert changed > 20


def test_a_loss_untold_is_noticed() -> None:
    """A gap that tells what a window has lost cannot be left out."""
    changed = 0
    for seed in range(12):
        run = played(seed, "links")
        for person, tape in tapes(run):
            for index in indexes(tape, is_counted_loss):
                with pytest.raises(BrokenPromiseError):
                    judge(run, person, drop(tape, index))
                changed += 1

    assert changed > 20


def test_a_number_that_is_wrong_is_noticed() -> None:
    """A gap that says how many events are missing says it right."""
    noticed = 0
    for seed in range(40):
        run = played(seed, "links")
        for person, tape in tapes(run):
            for index in indexes(tape, lambda block: '"missed":' in block.data and '"missed":null' not in block.data):
                block, now = of(tape, index)
                told = json.loads(block.data)
                wrong = json.dumps({**told, "missed": told["missed"] + 1000})
                changed = [*tape[:index], (replace(block, data=wrong), now), *tape[index + 1 :]]
                try:
                    judge(run, person, changed)
                except BrokenPromiseError:
                    noticed += 1

    assert noticed > 5
