"""Simulation of the whole cluster: the shipping core, everything around it virtual, all from one seed."""
