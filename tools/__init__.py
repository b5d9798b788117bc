"""Code that `make` runs; notebooks never import it."""
