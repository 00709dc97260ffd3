"""Why a measurement could not be made."""

from __future__ import annotations


class BenchmarkError(Exception):
    """A measurement could not be made; the text says why and what to do."""
