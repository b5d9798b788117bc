"""Experiments, tables and plots of lab 3.3.5, EAGLE-3."""
