"""Intercepting and describing operators, for estimates, simulation and rehearsal."""
