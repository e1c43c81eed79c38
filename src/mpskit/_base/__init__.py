"""Small helpers that every room may use; nothing here knows torch or the machine."""
