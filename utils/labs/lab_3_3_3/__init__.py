"""Experiments, tables and plots of lab 3.3.3, continuous batching in vLLM."""
