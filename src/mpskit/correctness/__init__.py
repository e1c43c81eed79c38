"""Whether the numbers are right: known bugs of torch's backends."""
