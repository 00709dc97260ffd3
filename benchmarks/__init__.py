"""Measurements of the gateway against a floor and a baseline: see README.md."""
