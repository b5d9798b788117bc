"""Tables of lab 3.3.1, the benchmark of all engines."""
