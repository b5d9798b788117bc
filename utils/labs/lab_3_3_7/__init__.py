"""Experiments, tables and plots of lab 3.3.7, the production API."""
