"""How operators are seen and described: shared by what estimates, simulates and rehearses."""
