"""Tests mirror modules; `tests.support` is what they share."""

from __future__ import annotations
