"""Experiments, tables and plots of lab 3.3.4, speculative decoding with Medusa."""
