"""Adapters for clients written in Python; each is run as a module of its own."""
