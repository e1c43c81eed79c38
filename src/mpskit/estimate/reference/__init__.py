"""A family's module built from its config, traced at three layers and repeated to its depth."""
