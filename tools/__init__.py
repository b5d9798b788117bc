"""Commands that `make` runs. `utils` never imports this package."""
