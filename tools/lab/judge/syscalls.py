"""System calls that a learner's code is refused: a seccomp filter, as container runtimes have one.

Refused are memory that no limit counts (files in memory, System V shared memory and messages), new
namespaces, in which a user has more rights, and parts of the kernel that no exercise needs. The
filter is a program of classic BPF over `struct seccomp_data` (Linux, include/uapi/linux/seccomp.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBERS = {  # (on x86_64, on aarch64), from the kernel's unistd.h
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_NAMESPACE = 0x7E02_0000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_MACHINES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}  # AUDIT_ARCH_*

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL, _FAIL_WITH = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def can_refuse() -> bool:
    """Return whether there is a filter for this machine."""
    return platform.system() == "Linux" and platform.machine() in _MACHINES


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    """Instructions: code, how many to skip if true, if false, operand."""
    which = list(_MACHINES).index(machine)
    refuse = (_RETURN, 0, 0, _FAIL_WITH | errno.EPERM)
    program = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, 0x4000_0000),  # x32, whose numbers are others
        refuse,
    ]
    for numbers in _NUMBERS.values():
        program += [(_EQUAL, 0, 1, numbers[which]), refuse]
    # The flags of clone3 lie in memory, out of a filter's sight; without it, clone is taken.
    program += [(_EQUAL, 0, 1, _CLONE3[which]), (_RETURN, 0, 0, _FAIL_WITH | errno.ENOSYS)]
    program += [
        (_EQUAL, 0, 3, _CLONE[which]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACE),
        refuse,
    ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def refuse_for_ever() -> None:
    """Refuse them to this process and all that it starts; cannot be undone.

    Raises:
        OSError: the kernel takes no filter.
    """
    program = _program(platform.machine())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    where = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))  # struct sock_fprog
    filter_ = ctypes.create_string_buffer(where)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    for arguments in [
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(filter_), 0, 0),
    ]:
        if prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
