"""Learners' commands: open a lab, check one's own work, show the progress."""
