"""The only package that calls torch's backends: their features by version, and their memory."""
