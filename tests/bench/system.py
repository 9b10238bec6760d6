"""What the benchmark asks of the operating system: users, cores, ports, processes and their CPU time."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time


def unprivileged():
    """The user that PostgreSQL and PgBouncer run as: ours, or `postgres` if we are root, which they refuse."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise SystemExit("run as root, the benchmark needs a user `postgres` to run PostgreSQL as")


def as_user(user):
    """Arguments of Popen that run a program as `user`."""
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_seconds(pid):
    """User and system time that the process has used, of all its threads, also of those that have ended.

    The same as utime + stime of /proc/PID/stat, but in nanoseconds instead of ticks of 10 ms: the clock that
    clock_getcpuclockid(3) names, computed as the kernel's include/linux/posix-timers.h does.
    """
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


@contextlib.contextmanager
def on_cores(cores):
    """Children that are started inside run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for_port(port, process, name, log, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    with open(log, errors="replace") as f:
        raise RuntimeError(f"{name} does not answer on port {port}; its log says:\n{f.read()[-3000:]}")


def stop(process, how=signal.SIGTERM, seconds=10):
    """Ends a process that we started, by its id."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def first_line(command):
    """What a program says of its version, or None if it is not there."""
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    lines = (out.stdout or out.stderr).splitlines()
    return lines[0].strip() if lines else None


def cpu_model():
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"
