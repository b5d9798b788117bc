"""Opening a lab, progress; instructors' tools: build, check, release, grade."""
