"""Nobody sees what he may not (I11): the core under random grants, prefixes, reconnections, cursors, drops and revocations.

The oracle knows each event's channel by its data, and what its client was granted, written down another way. The second half
switches one rule off at a time: the oracle has to notice.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from sse_gateway.audiences import Audiences
from sse_gateway.channels import RuleTable, literal_head
from sse_gateway.credentials import bearer_tokens, cookie_values
from sse_gateway.cursor import parse_cursor
from sse_gateway.errors import AccessError, RequestError
from sse_gateway.grants import NOTHING, Grant, read_grant
from sse_gateway.reasons import CloseReason, Policy
from sse_gateway.subscription import parameter_values, read_wish
from sse_gateway.tokens import Expected, parse_token, read_claims
from tests.support.core import Core, rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sse_gateway.audience import Audience
    from sse_gateway.window import Window
    from tests.support.core import Client

ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "40"))
STEPS = 150
UNLIMITED = 1 << 30

RULES = (
    rule("a.open.*", public=True, events=5),
    rule("a.closed.*", prefix=False, events=5),
    rule("a.*", events=8, queue=3, policy=Policy.DROP_OLDEST),
    rule("b.hidden.*", prefix=False, events=4),  # inside a public prefix, which does not show it
    rule("b.*", public=True, events=4, queue=3, policy=Policy.LATEST),
    rule("b.secret", events=4),  # never owns anything: the rule above it does
    rule("c.?.*", events=4, queue=3, policy=Policy.DISCONNECT),
    rule("c.*", public=True, prefix=False, events=4),
)
PUBLIC = ("a.open.", "b.")
"""What the rules say in other words; `c.` is public where its second letter has no dot behind it."""

CHANNELS = ["a.open.1", "a.open.2", "a.closed.1", "a.1", "a.2", "a.opening", "b.1", "b.secret", "b.hidden.1", "c.x.1"]
CHANNELS += ["c.xy", "c.x.", "c.1"]
ASKED = [*CHANNELS, "a.*", "a.open.*", "a.o*", "a*", "b.*", "c.*", "c.x.*", "*", "", "a.closed.*", "d.1", "d*"]
GRANTS = [*CHANNELS, "a.*", "a.open*", "a.o*", "b.s*", "c.*", "c.x*", "*", "a.1*"]


def is_public(channel: str) -> bool:
    """Whether anybody may read a channel."""
    if channel.startswith("b.hidden."):
        return False
    return channel.startswith(PUBLIC) or (channel.startswith("c.") and channel[3:4] != ".")


def may_read(entries: Iterable[str], channel: str) -> bool:
    """Whether a grant covers a channel."""
    return is_public(channel) or any(
        channel.startswith(entry[:-1]) if entry.endswith("*") else channel == entry for entry in entries
    )


class Viewer:
    """One stream, what it was granted, and how much of what it was shown has been looked at."""

    def __init__(self, client: Client, entries: Sequence[str]) -> None:
        self.client = client
        self.entries = entries
        self.judged = 0

    def judge(self) -> int:
        """Look at every line of data that is new; returns how many."""
        taken = self.client.sock.taken
        end = taken.rfind(b"\n") + 1
        lines = [line for line in taken[self.judged : end].split(b"\n") if line.startswith(b"data: ")]
        self.judged = max(self.judged, end)
        channels = [line[6:].decode().partition(" ")[0] for line in lines if line[6:7] != b"{"]
        for channel in channels:
            assert may_read(self.entries, channel), (channel, self.entries)
        return len(channels)


class Play:
    """One schedule."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.core = Core(*RULES, channels=6)
        self.open: list[Viewer] = []
        self.gone: list[tuple[Client, int]] = []
        self.cursors = ["", "0-0-0", "epoch0000001-0-000000000000"]
        self.number = 0
        self.shown = 0
        self.refused = 0

    def run(self, steps: int = STEPS) -> None:
        """Play it, and judge what was shown after each step."""
        acts = [self.publish, self.publish, self.connect, self.connect, self.read, self.stall, self.part]
        for _ in range(steps):
            self.random.choice([*acts, self.wait, self.break_off])()
            self.judge()
        for viewer in self.open:
            viewer.client.read()
        self.judge()

    def publish(self) -> None:
        """Publish a few events; their data is their channel."""
        for _ in range(self.random.randint(1, 6)):
            channel = self.random.choice(CHANNELS)
            self.number += 1
            self.core.publish(channel, f"{channel} {self.number}")

    def connect(self) -> None:
        """Ask for something, with a grant and somebody's cursor; all of it is allowed, or nothing opens."""
        entries = self.random.sample(GRANTS, self.random.choice([0, 1, 1, 2, 4]))
        asked = [name for name in self.random.sample(ASKED, self.random.choice([1, 1, 2, 3])) if name]
        query = "&".join([*(f"channel={name}" for name in asked), self.random.choice(["", "replay=3", "replay=all"])])
        try:
            wish = read_wish(None, query, None, 64)
            grant = read_grant(entries) if entries else NOTHING
            if not grant.allows(wish.names, self.core.rules):
                self.refused += 1
                return
            wish.subscription(self.core.rules)
        except RequestError:
            return
        cursor = self.random.choice([*self.cursors[:3], *self.cursors[-8:]]) or None
        room = self.random.choice([UNLIMITED, UNLIMITED, 300])
        self.open.append(Viewer(self.core.connect(query, cursor, room=room, chunked=False), entries))

    def read(self) -> None:
        """Somebody who had stopped reads on."""
        if (viewer := self.somebody()) is not None:
            viewer.client.read()

    def stall(self) -> None:
        """Somebody stops reading."""
        if (viewer := self.somebody()) is not None:
            viewer.client.sock.room = self.random.choice([0, 40, 200])

    def part(self) -> None:
        """Somebody goes, or his right ends: nothing more may come."""
        if (viewer := self.somebody()) is not None:
            reader = viewer.client.reader
            if self.random.random() < 0.5:
                self.core.hub.leave(reader, CloseReason.CLIENT)
            else:
                self.core.hub.farewell(reader, CloseReason.REVOKED)
            self.open.remove(viewer)
            self.gone.append((viewer.client, len(viewer.client.sock.taken)))

    def somebody(self) -> Viewer | None:
        """One whose stream is open: a policy, or a time-out, may have ended others."""
        self.open = [viewer for viewer in self.open if viewer.client.reader.audience is not None]
        return self.random.choice(self.open) if self.open else None

    def wait(self) -> None:
        """Time passes: heartbeats, time-outs, channels that are forgotten."""
        self.core.tick(self.random.choice([0.1, 5.0, 40.0]))

    def break_off(self) -> None:
        """The source was away."""
        if self.random.random() < 0.2:
            self.core.begin_epoch()

    def judge(self) -> None:
        """Look at what was shown, and that nothing was to whoever has gone."""
        self.cursors.append(self.core.cursor)
        self.shown += sum(viewer.judge() for viewer in self.open)
        assert all(len(client.sock.taken) == size for client, size in self.gone)


def play_all(rounds: int) -> tuple[int, int]:
    """Play many schedules; returns the events that were shown, and the requests that were refused."""
    shown = refused = 0
    for seed in range(rounds):
        play = Play(seed)
        play.run()
        shown += play.shown
        refused += play.refused
    return shown, refused


def test_no_schedule_shows_what_was_not_granted() -> None:
    """Live, by replay, by prefix, after a forgotten channel has come back, with anybody's cursor (I11)."""
    shown, refused = play_all(ROUNDS)
    assert shown > 10 * ROUNDS
    assert refused > 3 * ROUNDS


def names_for_a_prefix(self: Grant, asked: str) -> bool:
    """As `covers`, but a name inside a prefix is enough."""
    if asked.endswith("*"):
        return any(name.startswith(asked[:-1]) for name in (*self.names, *self.prefixes))
    return asked in self.names or asked.startswith(self.prefixes)


def any_public(self: RuleTable, asked: str) -> bool:
    """As `is_public`, but one public rule makes a prefix public."""
    owners = self.rules_of_prefix(asked[:-1]) if asked.endswith("*") else (self.rule_of(asked),)
    return any(rule is not None and rule.public for rule in owners)


def first_is_enough(self: Grant, asked: Iterable[str], rules: RuleTable) -> bool:
    """As `allows`, but one channel opens the door for all."""
    return any(rules.is_public(name) or self.covers(name) for name in asked)


def by_prefix_always(self: Audiences, window: Window) -> Iterable[Audience]:
    """As `followers`, but rules that no prefix may follow are followed all the same."""
    found = [self._by_prefix.get(window.name[:length], ()) for length in self._lengths if length <= len(window.name)]
    return chain(window.audiences, *found)


@pytest.mark.parametrize(
    ("owner", "method", "mutant"),
    [
        (Grant, "covers", names_for_a_prefix),
        (RuleTable, "is_public", any_public),
        (Grant, "allows", first_is_enough),
        (Audiences, "followers", by_prefix_always),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_rule_that_is_switched_off_is_noticed(
    owner: type, method: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them keeps something from somebody (I11)."""
    monkeypatch.setattr(owner, method, mutant)
    with pytest.raises(AssertionError):
        play_all(200)


GLOBS = st.text("ab.*?[]^-\\_", min_size=1, max_size=6)
STRIPPED = st.integers(0, 2)


@given(st.lists(st.tuples(GLOBS, STRIPPED, st.booleans()), min_size=1, max_size=5), st.text("ab.*_", max_size=8))
def test_a_prefix_knows_every_rule_that_it_could_show(made: list[tuple[str, int, bool]], channel: str) -> None:
    """Whether a prefix is public is judged by rules: one too few, and a private channel would be shown (I11)."""
    rules = []
    for index, (pattern, strip, prefix) in enumerate(made):
        head = literal_head(pattern.encode()).decode()[:strip]
        rules.append(replace(rule(pattern, index, prefix=prefix), strip_prefix=head))
    table = RuleTable(rules)
    owner = table.owner(channel.encode())
    name = None if owner is None else table.client_name(owner, channel.encode())
    if owner is not None and name is not None and owner.prefix:
        for length in range(len(name) + 1):
            assert owner in table.rules_of_prefix(name[:length])


TEXTS = st.text(max_size=60) | st.text("abc.-_=%&;+*?#\"'\\ \r\n\t\0ä", max_size=60)


@given(TEXTS, TEXTS, TEXTS)
def test_any_request_is_read_or_refused(query: str, header: str, cursor: str) -> None:
    """Whatever stands in query, headers and cursor: nothing but a documented refusal comes of it."""
    try:
        wish = read_wish(None, query, cursor, 8)
        wish.subscription(RuleTable(RULES))
    except RequestError as error:
        assert error.status in {400, 404}  # noqa: PT017 - most are refused, some are not
    parse_cursor(cursor)
    for found in (parameter_values(query, "token"), bearer_tokens([header]), cookie_values([header], "sid")):
        for text in found:
            with_any_token(text)


@given(st.binary(max_size=200))
def test_any_claims_give_access_or_are_refused(payload: bytes) -> None:
    """Also those that a key of ours has signed."""
    try:
        access = read_claims(payload, Expected(None, None, "channels", 60.0, lambda _, __: ()), 0.0)
    except AccessError:
        return
    assert access.identity.expires_at > 0


def with_any_token(text: str) -> None:
    """Take a text apart, if it is a token."""
    try:
        parse_token(text)
    except AccessError:
        return
