"""Opens a file three times, after a line on stdin, and prints what each came to."""

import sys

print("up", flush=True)
sys.stdin.readline()
for _ in range(3):
    try:
        open("/dev/null").close()
        print("opened")
    except OSError as exc:
        print(exc.errno)
