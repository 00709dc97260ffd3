"""Turns under random schedules: few sets of channels, so that audiences have many members, and few writes in a step.

Other than in `test_hub`, rounds, runs, passes and slots that are used again all occur here beside each other,
with joins, ends and links lost in between. The same oracle judges. Then one rule is switched off at a time.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from sse_gateway import batch
from sse_gateway.audience import RUN, Audience
from sse_gateway.batch import Batch
from sse_gateway.channels import RuleTable, WindowBounds
from sse_gateway.hub import Hub
from sse_gateway.turns import Turns
from tests.support.messages import Setup
from tests.support.schedules import KINDS, Run
from tests.support.world import ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.audience import Write
    from sse_gateway.limits import Limits
    from tests.support.schedules import Step

SCHEDULES = int(os.environ.get("SSE_GATEWAY_TEST_SCHEDULES", "300")) // 6
PARTS = 6
LENGTH = 120

CROWD = [["n1"], ["n1"], ["n1"], ["n1", "n2"], ["n1", "l:1"], ["n*"], ["audit:1", "n1"]]
WEIGHTS = KINDS | {
    "attach": 20,
    "resume": 4,
    "leave": 6,
    "step": 40,
    "cut_off": 3,
    "crowd": 3,
    "loners": 3,
    "pile": 4,
    "lose": 1,
}


class Crowd(Run):
    """One schedule with large audiences."""

    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        self._framings = rng.choice([[(False, True)], [(False, True), (True, True)], [(False, False)]])

        def make_hub(rules: RuleTable, limits: Limits, key: bytes, write: Write) -> Hub:
            return Hub(rules, replace(limits, writes_per_step=rng.choice([1, 2, 3, 9, 30, 30])), key, write)

        super().__init__(seed, make_hub)

    def _setup(self, seed: int) -> Setup:
        """In half of the schedules the windows lose nothing; in these, links are lost."""
        setup = Setup(seed)
        self._is_roomy = seed % 2 == 0
        if self._is_roomy:
            window = WindowBounds(1_000_000, 1e6, 1 << 30)
            setup.table = RuleTable([replace(rule, window=window) for rule in setup.table.rules])
            setup.limits = replace(setup.limits, channels=100_000, window_bytes=1 << 30)
        return setup

    def do(self, step: Step) -> None:
        """See `Run`; then what the loop does not see has to be in order as well."""
        super().do(step)
        self._look()

    def _names(self, rng: Random) -> list[str]:
        return rng.choice(CROWD)

    def _framing(self, rng: Random) -> tuple[bool, bool]:
        return rng.choice(self._framings)

    def _do_crowd(self, rng: Random) -> None:
        """Many that follow the same; mostly nothing holds them up, so that they are written to in runs, but for one at times."""
        names = self._names(rng)
        begin = len(self.clients)
        for _ in range(rng.choice([4, RUN, 3 * RUN])):
            self._attach(names, None, rng)
        for client in self._open() if rng.random() < 0.7 else ():
            client.room = None
            client.writable()
        crowd = [client for client in self.clients[begin:] if client.reason is None]
        if crowd and rng.random() < 0.8:
            rng.choice(crowd).room = rng.choice([0, 0, 7, 50, 150])
            self._settle()
            self.step += 1
            self._tell("to all", rng)
            self._step()

    def _do_loners(self, rng: Random) -> None:
        """Audiences of one, with a channel of their own beside what the crowd follows."""
        for own in rng.sample(range(4, 30), rng.choice([2, 9])):
            self._attach([*rng.choice(CROWD[:4]), f"n{own}"], None, rng)

    def _do_pile(self, rng: Random) -> None:
        """More between two turns than fits a batch; and one more while it is under way."""
        text = "x" * min(200, self.setup.message_bytes - 180)
        count = rng.choice([2, 4])
        for number in range(count + 1):
            for _ in range(rng.choice([1, 2, 4]) if number == count else 0):
                self._step()
            self._tell(f"{number} {text}", rng)

    def _tell(self, text: str, rng: Random) -> None:
        """Publish what the crowd follows."""
        plan = self._publisher.text("n1", text)
        self._publish(self._upcoming.popleft() if self._upcoming else plan, rng)
        self.hub.flush(self.now)
        self._settle()
        self.step += 1

    def _do_lose(self, _: Random) -> None:
        """The link was lost, and nothing on it: live streams go back to the windows."""
        hub = self.hub
        hub.flush(self.now)
        for reader in hub._rewind() if self._is_roomy else ():
            assert reader.catchup is not None
            reader.catchup.serial = hub.history.serial
            if reader not in hub.lagging:
                hub.schedule(reader)

    def _look(self) -> None:
        """Handles stand where their members do; rounds keep nothing (I5, I11)."""
        hub, turns = self.hub, self.hub._turns
        for audience in hub._audiences:
            slots = audience._members
            handles = [None if r is None or r.outbox is not None else r.sink.handle for r in slots]
            ensure(audience.handles == handles, "handles", audience.handles, handles)
            ensure(audience.lone is (handles[0] if len(handles) == 1 else None), "lone", audience.lone, handles)
            ensure(all(r is None or r.slot == slot for slot, r in enumerate(slots)), "slots")
            ensure(not audience.passes or audience in turns._ready, "passes that nobody goes on with")
        idle = not turns._round.due and not turns._round.held
        ensure(not idle or not turns._round.joiner.made, "kept after a round")


def steps_of(seed: int) -> list[Step]:
    """Draw the steps of a schedule."""
    rng = Random(seed)
    kinds = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=LENGTH)
    return [(kind, rng.getrandbits(32)) for kind in kinds]


def play(seed: int, steps: Sequence[Step]) -> None:
    """Run one schedule to its end."""
    run = Crowd(seed)
    for step in steps:
        run.do(step)
    run.finish(Random(seed))


@pytest.fixture(autouse=True)
def joined_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has gathered mostly fits a batch, and sometimes does not."""
    monkeypatch.setattr(batch, "JOINED_BYTES", 300)


@pytest.mark.timeout(0)  # as long as was asked for
@pytest.mark.parametrize("part", range(PARTS))
def test_turns_keep_the_promise(part: int) -> None:
    """Order, holes, positions, counters and handles hold, whoever joins, ends or falls behind when (I1 I2 I3 I5 I8 I11)."""
    for seed in range(part, SCHEDULES, PARTS):
        try:
            play(seed, steps_of(seed))
        except Exception:
            print(f"play({seed}, steps_of({seed}))")  # noqa: T201
            raise


MUTANTS = {
    "nothing settled": (Turns, "settle", "if gathered:", "if False:"),
    "settled backwards": (Turns, "settle", "self._round, self._next", "self._next, self._round"),
    "only this round settled": (Turns, "settle", "self._round, self._next", "self._round,"),
    "due is no delay": (Turns, "__contains__", "in self._next.due", "in ()"),
    "rounds not released": (Turns, "_begin_round", "batch.release()", "0"),
    "a round kept": (Turns, "_begin_round", "self._round = self._none", "self._round.held.clear()"),
    "passes overtaken": (Turns, "_take_turns", "or audience.passes", ""),
    "before the wrapping": (Turns, "_take_turns", "or audience.framing.wrapped", ""),
    "two in ready for none": (Turns, "_go_on", "self._ready.append(audience)", "pass"),
    "gathered forgotten": (Turns, "add", "found[audience] = after", "pass"),
    "charged twice": (Batch, "hold", "if self.holds == 1", "if True"),
    "behind and written to": (Audience, "_fall_behind", "self._set_handle(slot, None)", "pass"),
    "gone and written to": (Audience, "leave", "self._set_handle(reader.slot, None)", "pass"),
    "writable and not written to": (Audience, "writability_changed", "_handle_of(reader)", "None"),
    "alone with an empty slot": (Audience, "_set_handle", "if len(self.handles) == 1", "if handle"),
    "alone, and joined": (Audience, "_set_handle", "if len(self.handles) == 1 else None", "or self.lone"),
    "a hole in a run": (
        Audience,
        "_write_run",
        "if not all(run):",
        "run = [each for each in run if each is not None]\n    if not run:",
    ),
    "a run not counted": (Audience, "_write_run", "batch.served += whole", "pass"),
    "a run's errors skipped": (Audience, "_write_run", "return start + len(taken)", "return stop"),
    "parts taken for whole": (Audience, "_write_run", "if whole < len(taken)", "if False"),
    "alike though due another": (Turns, "_serve_alike", "found is not gathered or", ""),
    "alike though framed otherwise": (Turns, "_serve_alike", "or audience.framing is not framing", ""),
    "alike though not alone": (Turns, "_serve_alike", "or audience.lone is None", ""),
    "alike though others come before": (Turns, "_serve_alike", "or audience.passes", ""),
    "alike and nowhere": (Turns, "_serve_alike", "audience.position = position", "pass"),
    "alike and a part again": (Audience, "finish_lone", "if sent < 0", "if True"),
    "alike and forgotten": (Turns, "_serve_alike", "due[audience] = found", "pass"),
    "alike and not counted": (Turns, "_serve_alike", "batch.served += whole", "pass"),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_rule_switched_off_is_noticed(mutant: tuple[type, str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns without one of their rules break the promise within a few schedules (negative test)."""
    owner, name, rule, instead = mutant
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert rule in source
    broken = "from __future__ import annotations\n" + source.replace(rule, instead)
    made: dict[str, object] = {}
    exec(broken, vars(sys.modules[owner.__module__]), made)  # noqa: S102 - our own source
    monkeypatch.setattr(owner, name, made[name])
    assert any(breaks(seed) for seed in range(180))


def breaks(seed: int) -> bool:
    """Whether a schedule fails as a broken rule makes it fail."""
    try:
        play(seed, steps_of(seed))
    except Exception:  # noqa: BLE001 - whatever fails is the finding
        return True
    return False
