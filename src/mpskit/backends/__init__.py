"""The only room that asks torch's backends: what each can do, by version, and its memory."""
