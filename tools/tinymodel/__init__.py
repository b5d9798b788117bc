"""Training of the course's own models: the tiny model and its draft heads."""
