"""Sessions and their states, stepped in batches. No I/O and no clock: the time is an argument."""
