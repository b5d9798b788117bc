"""For every test: Ctrl-C means what it means in a terminal."""

import signal

# A shell starts background jobs with SIGINT ignored, and Python leaves it so. Tests that interrupt themselves
# would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
