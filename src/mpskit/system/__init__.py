"""The only package that queries the operating system: machine, memory, processes, power."""
