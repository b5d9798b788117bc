"""Instructors' tools: build the notebooks, list the labs, try the checks."""

from utils.course.build import build, drift, find_lab, read_labs
from utils.course.problems import CourseError, Problem, SourceError

__all__ = ["CourseError", "Problem", "SourceError", "build", "drift", "find_lab", "read_labs"]
