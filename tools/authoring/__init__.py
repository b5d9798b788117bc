"""Tools of authors and instructors; not part of a release."""
