"""Counts the proxy's system calls per transaction, in runs of their own: counting costs time."""

import os
import re
import shutil
import signal
import subprocess
import time

# Until all clients of a run are logged in and busy.
LEAD = 1.0
# For perf to attach and to let go, which takes longer the more events it counts.
MARGIN = 3.0
# What a proxy is likely to call. Others are only in the sum.
NAMES = """recvfrom sendto recvmsg sendmsg read write readv writev epoll_wait epoll_pwait epoll_ctl futex close accept accept4
connect socket setsockopt getsockopt getsockname getpeername fcntl mmap munmap madvise brk""".split()


def per_transaction(directory, postgres, system, load, seconds):
    """System calls per transaction by name, and `all`; and what counted them.

    perf counts in the kernel, at nearly full speed. Where it may not be used, strace slows the proxy down, so that
    it finds more work at each wake-up than it would otherwise.
    """
    for name, count in (("perf", by_perf), ("strace", by_strace)):
        if not shutil.which(name):
            continue
        run = load.start(directory, postgres, system, LEAD + seconds + MARGIN)
        try:
            time.sleep(LEAD)
            begin, end, calls = count(system.pid, seconds)
            run.finish()
        except BaseException:
            run.kill()
            raise
        done = run.done(begin, end)
        if calls and done and end <= run.span()[1]:
            return {"by": name, "calls": {key: round(number / done, 2) for key, number in calls.items()}}
    return None


def by_perf(pid, seconds):
    events = ["raw_syscalls:sys_enter", *(f"syscalls:sys_enter_{name}" for name in NAMES)]
    done = subprocess.run(
        ["perf", "stat", "-e", ",".join(events), "-p", str(pid), "sh", "-c", f"sleep {seconds}; date +%s.%N"],
        capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    # perf takes a while to attach and to let go: it counts from `elapsed` before the end of `sleep`.
    end = float(done.stdout.strip() or 0)
    elapsed = re.search(r"([\d.]+) seconds time elapsed", done.stderr)
    if not elapsed:
        return end, end, {}
    calls = {}
    for number, name in re.findall(r"^\s*([\d,]+)\s+\w+:sys_enter(\w*)", done.stderr, re.M):
        if number != "0":
            calls[name.removeprefix("_") or "all"] = int(number.replace(",", ""))
    return end - float(elapsed[1]), end, calls


def by_strace(pid, seconds):
    tracer = subprocess.Popen(
        ["strace", "-c", "-f", "-p", str(pid)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        attached = tracer.stderr.readline()
        begin = time.time()
        if "attached" not in attached:
            tracer.communicate(timeout=20)
            return begin, begin, {}
        time.sleep(seconds)
        end = time.time()
        tracer.send_signal(signal.SIGINT)
        text = tracer.communicate(timeout=20)[1]
    finally:
        if tracer.poll() is None:
            tracer.kill()
            tracer.wait()
    calls = {}
    for line in text.splitlines():
        fields = line.split()
        # % time, seconds, usecs/call, calls, [errors,] syscall
        if len(fields) >= 5 and fields[0].replace(".", "").isdigit() and fields[3].isdigit():
            calls["all" if fields[-1] == "total" else fields[-1]] = int(fields[3])
    return begin, end, calls
