"""Checks of the exercises. One file per lab, `lab_3_3_N.py`; base.py explains how to write them."""

from utils.checks.base import Check, CheckResult, check, checks_of
from utils.checks.expect import expect, expect_close, expect_equal, expect_raises, expect_type
from utils.checks.failures import CheckFailed, NotAttempted
from utils.checks.predictions import compare_prediction

__all__ = [
    "Check",
    "CheckFailed",
    "CheckResult",
    "NotAttempted",
    "check",
    "checks_of",
    "compare_prediction",
    "expect",
    "expect_close",
    "expect_equal",
    "expect_raises",
    "expect_type",
]
