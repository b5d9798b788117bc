"""Roofline: limits that memory bandwidth and arithmetic set for a machine and a model."""
