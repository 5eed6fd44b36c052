"""Put a filter on this process that asks a listener before each of the given calls, then become the service.

    launch.py TOLD NUMBERS COMMAND...

Writes to TOLD which number the listening descriptor will have: afterwards the write itself might be one of the calls.
Needs nothing of ours, so it is run by its path with `-I -S`.
"""

import ctypes
import os
import struct
import sys

LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
SET_MODE_FILTER = 1
NEW_LISTENER = 1 << 3
WAIT_KILLABLE = 1 << 5  # a signal does not end the question, which would be asked again and counted twice
SECCOMP = 317


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(numbers: list[int]) -> int:
    """The listener's descriptor; -1 where the kernel refuses."""
    code = [struct.pack("=HBBI", LOAD, 0, 0, 0)]
    for index, number in enumerate(numbers):
        code.append(struct.pack("=HBBI", JUMP_IF_EQUAL, len(numbers) - index, 0, number))
    code.append(struct.pack("=HBBI", RETURN, 0, 0, ALLOW))
    code.append(struct.pack("=HBBI", RETURN, 0, 0, NOTIFY))
    program = Program(len(code), b"".join(code))
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER | WAIT_KILLABLE, ctypes.byref(program)))


if __name__ == "__main__":
    told, numbers = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")]
    os.set_inheritable(told, False)
    lowest = os.dup(told)  # the number that the listener will have
    os.close(lowest)
    os.write(told, str(lowest).encode())
    if install(numbers) < 0:
        sys.exit("could not put a filter on this process")
    os.execvp(sys.argv[3], sys.argv[3:])
