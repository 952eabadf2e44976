"""Two hosts on one machine: network name spaces on a bridge, each with a host name of its own.

Everything lies in name spaces of this process, so nothing is left when it ends, however it ends. A test calls `enter()`
first, which starts the script anew inside of them, or ends it as skipped where the system does not allow that."""
import os
import pathlib
import shutil
import subprocess
import sys
import time

import fan_out

HOSTS = {"host-a": "10.77.0.1", "host-b": "10.77.0.2"}
SLOW = {"host-a": "10.78.0.1", "host-b": "10.78.0.2"}  # Addresses on slow_link.py's devices.
DELAY_MS, MBIT_PER_S, LOSS_PERCENT = 5, 10, 0.5
INSIDE = "PMKVQ_TEST_HOSTS"


def enter():
    if os.environ.get(INSIDE):
        return
    for program in "ip", "unshare", "hostname":
        if shutil.which(program) is None:
            fan_out.skip(f"there is no {program} (Debian: iproute2, util-linux, hostname)")
    space = ["unshare", "--mount", "--net", "--propagation", "private"]
    if os.geteuid() != 0:
        space.insert(1, "--map-root-user")
    probe = subprocess.run([*space, "sh", "-c", "mount -t tmpfs none /run && ip link add br0 type bridge"],
                           capture_output=True, text=True)
    if probe.returncode != 0:
        fan_out.skip("no right to make name spaces: " + probe.stderr.strip())
    os.environ[INSIDE] = "1"
    os.execvp(space[0], [*space, sys.executable, *sys.argv])


def system(*words):
    subprocess.run(words, check=True)


# Ends with 0 when the address answers. A port where nobody listens answers, too: by a refusal.
REACH = """
import socket, sys
with socket.socket() as probe:
    probe.settimeout(5)
    try:
        probe.connect((sys.argv[1], 9))
    except ConnectionRefusedError:
        pass
"""


class Hosts:
    """The hosts, with `scratch` for files of their own."""

    def __init__(self, scratch):
        self.scratch = pathlib.Path(scratch)
        self.interface = "eth0"
        self.carrier = None  # The process of a slow network.
        system("mount", "-t", "tmpfs", "none", "/run")
        names = self.scratch / "hosts"
        names.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in HOSTS.items()))
        system("mount", "--bind", str(names), "/etc/hosts")
        system("ip", "link", "set", "lo", "up")
        system("ip", "link", "add", "br0", "type", "bridge")
        system("ip", "link", "set", "br0", "up")
        for name, address in HOSTS.items():
            system("ip", "netns", "add", name)
            system("ip", "link", "add", self.link(name), "type", "veth", "peer", "name", "eth0", "netns", name)
            system("ip", "link", "set", self.link(name), "master", "br0", "up")
            inside = ["ip", "-n", name]
            system(*inside, "addr", "add", address + "/24", "dev", "eth0")
            system(*inside, "link", "set", "eth0", "up")
            system(*inside, "link", "set", "lo", "up")
        self.wait_until_reachable(HOSTS)
        # In place of ssh.
        self.agent = self.scratch / "agent"
        self.agent.write_text("#!/bin/sh\nhost=$1; shift; echo $host >> " + str(self.scratch / "started") + "\n"
                              'exec ip netns exec $host unshare --uts sh -c "hostname $host; $*"\n')
        self.agent.chmod(0o755)
        self.hostfile = self.scratch / "hostfile"
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in HOSTS))

    @staticmethod
    def link(name):
        return "veth-" + name[-1]

    def set_link(self, name, state):
        system("ip", "link", "set", self.link(name), state)
        if state == "up":
            self.wait_until_reachable(HOSTS)

    @staticmethod
    def wait_until_reachable(addresses, seconds=60):
        """A link carries frames up to a second after it is up, and a host that has asked for the other's hardware address in
        vain refuses new connections with "No route to host" until it asks again. So nothing is started before each host has
        had an answer from the other."""
        deadline = time.monotonic() + seconds
        for name in addresses:
            for other, address in addresses.items():
                if other == name:
                    continue
                command = ["ip", "netns", "exec", name, sys.executable, "-c", REACH, address]
                while (answer := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{name} does not reach {other}: {answer.stderr}")

    @staticmethod
    def wait_until_idle(name, seconds=120):
        """Waits until no process runs on a host. What is left there of a lost job holds the locks of its parts until it ends."""
        deadline = time.monotonic() + seconds
        while left := subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True).stdout.split():
            if time.monotonic() > deadline:
                raise TimeoutError(f"on {name} there still are processes {left}")
            time.sleep(0.05)

    def slow_down(self):
        """Ranks exchange over a network of 5 ms, 10 Mbit/s and 0.5 % of packets lost: by tc netem, or by slow_link.py where
        the kernel has no netem. Says which, or None where it has no tap devices either."""
        netem = f"netem delay {DELAY_MS}ms rate {MBIT_PER_S}mbit loss {LOSS_PERCENT}%"
        if all(subprocess.run(["tc", "qdisc", "replace", "dev", self.link(name), "root", *netem.split()],
                              capture_output=True).returncode == 0 for name in HOSTS):
            return netem
        if not os.path.exists("/dev/net/tun"):
            return None
        script = pathlib.Path(__file__).parent / "slow_link.py"
        self.carrier = subprocess.Popen(
            [sys.executable, script, str(DELAY_MS), str(MBIT_PER_S), str(LOSS_PERCENT),
             *[f"{name}={address}" for name, address in SLOW.items()]], stdout=subprocess.PIPE, text=True)
        if self.carrier.stdout.readline() != "ready\n":
            self.speed_up()
            return None
        self.wait_until_reachable(SLOW)
        self.interface = "slow0"
        return f"slow_link.py, {DELAY_MS} ms, {MBIT_PER_S} Mbit/s, {LOSS_PERCENT} % lost"

    def speed_up(self):
        self.interface = "eth0"
        if self.carrier is None:
            for name in HOSTS:
                system("tc", "qdisc", "del", "dev", self.link(name), "root")
            return
        self.carrier.kill()
        self.carrier.communicate()
        self.carrier = None

    def ranks(self, *command):
        """The command with a rank on each host; mpirun runs on the first one."""
        first = next(iter(HOSTS))
        mpirun = ["mpirun", "--hostfile", self.hostfile, "-np", len(HOSTS), "--mca", "plm_rsh_agent", self.agent, "--mca",
                  "btl", "tcp,self", "--mca", "btl_tcp_if_include", self.interface, "--mca", "oob_tcp_if_include", "eth0",
                  # A host whose network is gone is missed after seconds, not minutes.
                  "--mca", "oob_tcp_keepalive_time", 2, "--mca", "oob_tcp_keepalive_intvl", 1, "--mca",
                  "oob_tcp_keepalive_probes", 3, *command]
        return ["ip", "netns", "exec", first, "unshare", "--uts", "sh", "-c", f'hostname {first}; exec "$@"', "sh",
                *[str(word) for word in mpirun]]
