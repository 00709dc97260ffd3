"""Control messages: what nodes that share a log say to one another, as text and back.

``1 KIND fingerprint node serial field… [mac]`` on the control channel: ASCII, single spaces.

Rules:
    1. Whatever comes is either a message whose every field has its form, or is ignored and
       counted by one reason. Nothing raises.
    2. With a secret each message ends in a MAC over all before it, and what does not verify is
       ignored before anything of it is believed. Without one, whoever may PUBLISH on the control
       channel may speak for every node.
    3. A message counts once: a node's serials ascend, and one that is not above the highest
       heard of that node is ignored. What was recorded can still be replayed to a node that never
       heard its author, or has forgotten it: whoever acts on a message must bear an old one.
    4. Nodes with another fingerprint belong to another log: nothing they say concerns this one.

A new kind, or another form of a field, is a new protocol version.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sse_gateway.cursor import EPOCH_LENGTH, parse_cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sse_gateway.channels import Rule

PROTOCOL_VERSION = 1

MAX_MESSAGE_BYTES = 1024
"""A longer payload is not looked at; the longest that we write has about 250."""

MAX_NODES = 1024
"""Nodes whose serials are remembered; beyond, the one that was silent longest is forgotten."""

MAX_EPOCHS = 8
"""Epochs that one message may accuse."""

MAC_LENGTH = 32
"""Hexadecimal digits: the first 128 bits of HMAC-SHA256."""


class Kind(StrEnum):
    """What a message says; its fields in order."""

    JOIN = "JOIN"
    """token, have: a node asks for the log's state; it has it up to this cursor, or ``-``."""
    OFFER = "OFFER"
    """token, joiner, via: the sender will hand it over, through ``unix`` or ``list``."""
    CLAIM = "CLAIM"
    """epoch: nobody seems to hold the log; the sender would begin it anew."""
    VETO = "VETO"
    """epoch: the sender holds the log."""
    CONFIRM = "CONFIRM"
    """epoch: nobody objected."""
    CHECKPOINT = "CHECKPOINT"
    """cursor: where the sender is."""
    DIVERGED = "DIVERGED"
    """epochs, to, accused: these epochs, joined by ``,``, are not what they seem; a new one begins."""


class Ignored(StrEnum):
    """Why a message was ignored."""

    MALFORMED = "malformed"
    """Not one of these messages: too long, not this text, a field without its form, a MAC where none is due."""
    VERSION = "version"
    """Of another version of this protocol."""
    FOREIGN = "foreign"
    """Of another fingerprint."""
    FORGED = "forged"
    """Its MAC is wrong or missing."""
    STALE = "stale"
    """Its serial is not above the highest heard of its node."""


@dataclass(frozen=True, slots=True)
class Message:
    """One control message that has been accepted.

    Attributes:
        kind: What it says.
        node: Who says it.
        serial: Ascending per node, from 1.
        fields: As many as the kind has, each of its form.
    """

    kind: Kind
    node: str
    serial: int
    fields: tuple[str, ...]


_NAME = re.compile(rf"[0-9a-z]{{{EPOCH_LENGTH}}}", re.ASCII)
_NAMES = re.compile(rf"{_NAME.pattern}(?:,{_NAME.pattern}){{0,{MAX_EPOCHS - 1}}}", re.ASCII)
_VIA = re.compile(r"unix|list", re.ASCII)

_VERSION = re.compile(rb"([1-9][0-9]{0,8}) ")
_MESSAGE = re.compile(
    rf"{PROTOCOL_VERSION} (?P<kind>{'|'.join(Kind)}) (?P<fingerprint>[0-9a-f]{{16}}) (?P<node>{_NAME.pattern})"
    r" (?P<serial>[1-9][0-9]{0,18})(?P<fields>(?: [0-9a-z,-]+){1,3})",
    re.ASCII,
)


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_names(text: str) -> bool:
    return _NAMES.fullmatch(text) is not None


def _is_via(text: str) -> bool:
    return _VIA.fullmatch(text) is not None


def _is_cursor(text: str) -> bool:
    return parse_cursor(text) is not None


def _is_cursor_or_none(text: str) -> bool:
    return text == "-" or _is_cursor(text)


_FORMS: dict[Kind, tuple[Callable[[str], bool], ...]] = {
    Kind.JOIN: (_is_name, _is_cursor_or_none),
    Kind.OFFER: (_is_name, _is_name, _is_via),
    Kind.CLAIM: (_is_name,),
    Kind.VETO: (_is_name,),
    Kind.CONFIRM: (_is_name,),
    Kind.CHECKPOINT: (_is_cursor,),
    Kind.DIVERGED: (_is_names, _is_name, _is_name),
}


class Control:
    """Writes one node's messages, and reads everybody's.

    Attributes:
        ignored: Messages ignored so far, by reason.
    """

    def __init__(self, node: str, fingerprint: str, secret: bytes = b"") -> None:
        """Begin with serial 1.

        Args:
            node: 12 of ``[0-9a-z]``, drawn at random for every process: serials begin anew with it.
            fingerprint: See `fingerprint`.
            secret: Key of the MAC, any length; empty for none.
        """
        self.ignored = dict.fromkeys(Ignored, 0)
        self._node = node
        self._fingerprint = fingerprint
        self._secret = secret
        self._serial = 0
        self._heard: dict[str, int] = {}

    def write(self, kind: Kind, *fields: str) -> bytes:
        """Write a message of our own, with the next serial.

        Raises:
            ValueError: A field has not the form that the kind demands: nobody could read it.
        """
        serial = self._serial + 1
        text = " ".join((str(PROTOCOL_VERSION), kind, self._fingerprint, self._node, str(serial), *fields))
        match = _MESSAGE.fullmatch(text)
        if match is None or _message(match) is None:
            raise ValueError(f"not a control message: {text!r}")
        self._serial = serial
        body = text.encode()
        return body + b" " + self._mac(body) if self._secret else body

    def read(self, payload: bytes) -> Message | None:
        """Read what came on the control channel, our own messages too.

        Returns:
            The message; None for one that is ignored, which is counted.
        """
        found = self._judge(payload)
        if isinstance(found, Message):
            return found
        self.ignored[found] += 1
        return None

    def _judge(self, payload: bytes) -> Message | Ignored:
        version = _VERSION.match(payload) if len(payload) <= MAX_MESSAGE_BYTES else None
        if version is None:
            return Ignored.MALFORMED
        if int(version[1]) != PROTOCOL_VERSION:
            return Ignored.VERSION
        body = self._verified(payload)
        if body is None:
            return Ignored.FORGED
        match = _MESSAGE.fullmatch(body.decode("ascii", "replace"))
        if match is None:
            return Ignored.MALFORMED
        if match["fingerprint"] != self._fingerprint:
            return Ignored.FOREIGN
        return self._heed(_message(match))

    def _heed(self, message: Message | None) -> Message | Ignored:
        if message is None:
            return Ignored.MALFORMED
        if message.serial <= self._heard.get(message.node, 0):
            return Ignored.STALE
        self._heard.pop(message.node, None)  # to the end: whoever speaks is remembered
        self._heard[message.node] = message.serial
        if len(self._heard) > MAX_NODES:
            del self._heard[next(iter(self._heard))]
        return message

    def _verified(self, payload: bytes) -> bytes | None:
        """What the MAC stands for; None where it is wrong or missing."""
        if not self._secret:
            return payload
        body, _, mac = payload.rpartition(b" ")
        return body if hmac.compare_digest(mac, self._mac(body)) else None

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, body, "sha256").hex()[:MAC_LENGTH].encode()


def _message(match: re.Match[str]) -> Message | None:
    """A message of the right shape; None where a field is not what its kind demands."""
    kind = Kind(match["kind"])
    fields = tuple(match["fields"].split())
    forms = _FORMS[kind]
    if len(fields) != len(forms) or not all(fits(field) for fits, field in zip(forms, fields, strict=True)):
        return None
    return Message(kind, match["node"], int(match["serial"]), fields)


def fingerprint(rules: Sequence[Rule], message_bytes: int, key: bytes) -> str:
    """Digest everything that decides what an event is, and nothing else.

    Nodes that differ in it would count or encode differently. Windows, queues and who may follow
    prefixes do not change what an event is.

    Args:
        rules: In their order; of each its pattern, `strip_prefix` and format.
        message_bytes: The largest message.
        key: Key of the log's hash; it cannot be read off the digest.

    Returns:
        16 hexadecimal digits.
    """
    parts = [b"%d" % PROTOCOL_VERSION, b"%d" % message_bytes, hashlib.sha256(key).digest()]
    for rule in rules:
        parts += (rule.pattern.encode(), rule.strip_prefix.encode(), rule.format.encode())
    digest = hashlib.blake2b(digest_size=8, person=b"sse-gateway fp")
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))  # lengths: no two configurations run together
    return digest.hexdigest()
