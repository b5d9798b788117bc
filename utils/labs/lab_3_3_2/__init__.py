"""Experiments, tables and plots of lab 3.3.2, SGLang deployment."""
