"""Measurements of the course's own tools."""
