"""Speculative decoding, small and exact: trees, verification, Medusa, EAGLE, training and export."""
