"""What a training loop needs beside memory: loaders, transfers, precision, threads, power."""
