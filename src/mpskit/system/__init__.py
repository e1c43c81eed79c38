"""The only room that asks the operating system: the machine, its memory, processes and power."""
