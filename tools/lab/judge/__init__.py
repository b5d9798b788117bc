"""Judge of exercises: runs a notebook's cells in a worker process and applies the checks."""
