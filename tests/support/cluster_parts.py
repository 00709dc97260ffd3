"""What a simulated node is made of: its configuration, and its parts, which mutants replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.control import Control
from sse_gateway.hub import Hub
from sse_gateway.replica import Replica

if TYPE_CHECKING:
    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.errors import MessageError
    from sse_gateway.limits import Limits
    from sse_gateway.reasons import GapReason
    from tests.support.cluster_node import Node

KEY = b"k" * 16


class WatchedHub(Hub):
    """The hub, which tells the oracle what id it gives to each message."""

    watcher: Node

    def publish(
        self, pattern: bytes, channel: bytes, payload: bytes, now: float, wall: float
    ) -> tuple[Rule, MessageError] | None:
        """See `Hub`."""
        before = self.log.head
        taken = super().publish(pattern, channel, payload, now, wall)
        if self.log.head != before:
            self.watcher.run.ledger.note(self.log.cursor(self.log.head), channel, payload)
        return taken

    def begin_epoch(self, name: str, reason: GapReason, now: float) -> None:
        """See `Hub`."""
        before = self.log.cursor(self.log.head) if self.log.epochs else None
        super().begin_epoch(name, reason, now)
        self.watcher.run.epoch_began(self.watcher, name, self.log.cursor(self.log.head), before)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a node is made of; mutants put others in their place.

    Attributes:
        hub: The core.
        replica: Its part in the common log.
        control: Reads and writes control messages.
        tells_link: The replica learns that the link was lost and is back.
    """

    hub: type[WatchedHub] = WatchedHub
    replica: type[Replica] = Replica
    control: type[Control] = Control
    tells_link: bool = True


@dataclass(frozen=True, slots=True)
class Kit:
    """A node's configuration.

    Attributes:
        family: Which log it shares.
        host: Where it runs.
        table: Its rules.
        limits: Its bounds.
        fingerprint: Of its configuration.
        patterns: What it subscribes to.
    """

    family: int
    host: int
    table: RuleTable
    limits: Limits
    fingerprint: str
    patterns: frozenset[bytes]
