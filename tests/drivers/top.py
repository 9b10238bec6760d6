"""`switchyard top` on a terminal: what it shows, what keys do, and that it leaves the terminal as it was."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time

INPUT = json.loads(sys.argv[1])
WAIT_S = 60
# How long a screen may take before all of it is asked for once more: of what is drawn before the tenant is known, letters
# that stay are not written again.
SCREEN_S = 3

pid, terminal = pty.fork()
if pid == 0:
    os.execvpe(INPUT["command"][0], INPUT["command"], {**os.environ, **INPUT["env"], "TERM": "xterm-256color"})

output = ""


def resize(lines):
    """To another size: all of the screen is drawn anew, not only what has changed."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 160, 0, 0))


def read():
    global output
    assert select.select([terminal], [], [], WAIT_S)[0], f"it shows nothing more: {output!r}"
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b""
    output += data.decode(errors="replace")
    return bool(data)


def screen():
    """By what a screen is sorted that shows the tenant, if one does soon; blanks may be jumped over instead of written."""
    global output
    until = time.monotonic() + SCREEN_S
    shown = re.compile(rf"sortedby(\w+?)qquit.*TENANT.*{INPUT['tenant']}")
    while True:
        text = re.sub(r"\s", "", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output))
        if match := shown.search(text):
            output = ""
            return match[1]
        if time.monotonic() > until:
            return None
        assert read(), f"it ended: {output!r}"


def sorted_by(wanted, key=b""):
    global output
    until = time.monotonic() + WAIT_S
    # A key that comes in the same moment as a new size is not to be lost.
    os.write(terminal, key)
    for lines in sizes:
        resize(lines)
        output = ""
        if screen() == wanted:
            return wanted
        assert time.monotonic() < until, f"never sorted by {wanted}: {output!r}"
    raise AssertionError(f"never sorted by {wanted}")


sizes = iter(range(24, 1000))
found = [sorted_by("transactions"), sorted_by("connections", b"c")]
os.write(terminal, b"q")
resize(next(sizes))
while read():
    pass
_, status = os.waitpid(pid, 0)
print(json.dumps({"sorted": found, "restored": "\x1b[?1049l" in output, "code": os.waitstatus_to_exitcode(status)}))
