"""Clients of other hands against the whole gateway."""
