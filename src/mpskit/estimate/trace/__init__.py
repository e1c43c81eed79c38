"""One step, run without numbers: what it allocates and frees, in order."""
