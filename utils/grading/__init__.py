"""Grading: what learners handed in is picked out, run out of reach, and judged part by part."""
