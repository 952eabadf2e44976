"""A slow and lossy network between name spaces without tc netem, which many kernels lack.

A tap device in each name space; this process carries frames between them: each waits for its turn at the rate, then for the
delay, and some are lost. Usage: slow_link.py DELAY_MS MBIT_PER_S LOSS_PERCENT NAME=ADDRESS... Writes "ready" when the devices
`slow0` have their addresses, and runs until it is killed."""
import collections
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time

DEVICE = "slow0"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
LONGEST_QUEUE = 1000  # Frames; what comes then is lost, as in a switch.


def open_tap(space):
    """The file of a new tap device in a name space, which this process then is in."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}", "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns " + space)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def main():
    delay, bytes_per_second, loss = float(sys.argv[1]) / 1e3, float(sys.argv[2]) * 1e6 / 8, float(sys.argv[3]) / 100
    taps = []
    for word in sys.argv[4:]:
        space, address = word.split("=")
        taps.append(open_tap(space))
        subprocess.run(["ip", "addr", "add", address + "/24", "dev", DEVICE], check=True)
        subprocess.run(["ip", "link", "set", DEVICE, "up"], check=True)
    print("ready", flush=True)
    random.seed(1)
    queues = {tap: collections.deque() for tap in taps}  # Of (when, frame), for those that receive.
    free_at = dict.fromkeys(taps, 0.0)
    while True:
        due = [queue[0][0] for queue in queues.values() if queue]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select(taps, [], [], wait)
        now = time.monotonic()
        for tap in readable:
            frame = os.read(tap, 65536)
            for other in taps:
                if other == tap or random.random() < loss or len(queues[other]) >= LONGEST_QUEUE:
                    continue
                free_at[other] = max(now, free_at[other]) + len(frame) / bytes_per_second
                queues[other].append((free_at[other] + delay, frame))
        now = time.monotonic()
        for tap, queue in queues.items():
            while queue and queue[0][0] <= now:
                os.write(tap, queue.popleft()[1])


if __name__ == "__main__":
    main()
