"""Opening a lab, progress; instructors' tools: build, check, release, grade."""

from utils.course.build import build, drift, find_lab, read_labs
from utils.course.problems import CourseError, Problem, SourceError

__all__ = ["CourseError", "Problem", "SourceError", "build", "drift", "find_lab", "read_labs"]
