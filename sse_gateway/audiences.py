"""All audiences: found by what they follow, by the channel of an event, and by how long they are silent.

Rules:
    1. Streams that follow exactly the same, framed in the same way, share one audience. It lives as
       long as it has a reader, be it one that still catches up.
    2. An event finds each audience once: those that follow its channel by name are noted at its
       window, those that follow a prefix of it are found by prefix; no audience does both.
    3. Only channels of rules with `prefix: true` are found by prefix (I11).
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from sse_gateway.audience import Audience

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sse_gateway.history import History
    from sse_gateway.reader import Follow, Framing, Reader
    from sse_gateway.window import Window


class Audiences:
    """The audiences of one gateway."""

    def __init__(self, history: History) -> None:
        """Start with none.

        Args:
            history: Is told which channels have readers.
        """
        self._history = history
        self._by_follow: dict[tuple[Follow, Framing], Audience] = {}
        self._by_prefix: dict[str, dict[Audience, None]] = {}
        self._lengths: Counter[int] = Counter()  # of those prefixes: few, where the prefixes may be very many
        self._watched: dict[int, dict[Audience, None]] = {}  # by the second in which they got something, or since

    def __len__(self) -> int:
        return len(self._by_follow)

    def __iter__(self) -> Iterator[Audience]:
        return iter(self._by_follow.values())

    def admit(self, reader: Reader, now: float) -> Audience:
        """Give a new reader its audience, where it waits until it has caught up."""
        key = reader.follow, reader.framing
        audience = self._by_follow.get(key)
        if audience is None:
            audience = self._by_follow[key] = self._make(reader, now)
        reader.follow, reader.framing = audience.follow, audience.framing  # one object for all
        reader.audience = audience
        audience.wait(reader)
        return audience

    def followers(self, window: Window) -> Iterable[Audience]:
        """Find who follows a channel."""
        if not (self._by_prefix and window.rule.prefix):
            return window.audiences
        name = window.name
        found = [self._by_prefix.get(name[:length], ()) for length in self._lengths if length <= len(name)]
        return chain(window.audiences, *found)

    def silent_since(self, then: float) -> list[Audience]:
        """Find those that have got nothing since a moment. O(found, and those last looked at before it)."""
        silent = []
        for second in [second for second in self._watched if second <= then]:
            for audience in tuple(self._watched[second]):
                if audience.sent_at <= then:
                    silent.append(audience)
                else:
                    self._unwatch(audience)
                    self._watch(audience)
        return silent

    def _watch(self, audience: Audience) -> None:
        """Have a look at an audience once it may be silent.

        What it gets until then only moves its `sent_at`: to keep all in order of that would cost more than a pass.
        """
        audience.watched_at = int(audience.sent_at)
        self._watched.setdefault(audience.watched_at, {})[audience] = None

    def _unwatch(self, audience: Audience) -> None:
        watched = self._watched[audience.watched_at]
        del watched[audience]
        if not watched:
            del self._watched[audience.watched_at]

    def dissolve_if_empty(self, audience: Audience) -> int:
        """Let go of an audience that nobody is left of.

        Returns:
            Bytes that waited in its passes.
        """
        if audience.size or audience.waiting:
            return 0
        del self._by_follow[audience.follow, audience.framing]
        self._unwatch(audience)
        for window in audience.windows:
            del window.audiences[audience]
            if not window.audiences:
                self._history.detach(window, audience.sent_at)
        for prefix, _ in audience.follow.prefixes:
            del self._by_prefix[prefix][audience]
            if not self._by_prefix[prefix]:
                del self._by_prefix[prefix]
                self._lengths -= Counter([len(prefix)])  # drops what has come to nothing
        return audience.drop_passes()

    def _make(self, reader: Reader, now: float) -> Audience:
        windows = [self._history.attach(name, rule, now) for name, rule in reader.follow.exact]
        audience = Audience(reader.follow, reader.framing, windows, now)
        self._watch(audience)
        for window in windows:
            window.audiences[audience] = None
        for prefix, _ in reader.follow.prefixes:
            if prefix not in self._by_prefix:
                self._by_prefix[prefix] = {}
                self._lengths[len(prefix)] += 1
            self._by_prefix[prefix][audience] = None
        return audience
