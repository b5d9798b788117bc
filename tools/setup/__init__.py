"""Sets up what `make lab` and `make test` need. Standard library only: it runs before `.venv` exists."""
