"""Instructors' grading: collect submissions, judge them, write the gradebook and the feedback."""
