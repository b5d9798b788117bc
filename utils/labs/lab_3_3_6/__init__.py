"""Experiments, tables and plots of lab 3.3.6, TensorRT-LLM and compiled engines."""
