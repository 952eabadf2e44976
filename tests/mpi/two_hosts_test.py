#!/usr/bin/env python3
"""Fan-out over two hosts: what one process makes, over a slow network too, and after the network was gone.

Usage: two_hosts_test.py PROGRAM MODEL. Exit code 77 where two hosts cannot be made on this machine."""
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import fan_out
import hosts
from fan_out import check, eval_command, responses

PROGRAM, MODEL = "", ""


class TwoHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.scratch.name)
        cls.hosts = hosts.Hosts(cls.folder)
        whole = check(eval_command(PROGRAM, MODEL, cls.folder / "whole", "--json", "-"))
        cls.summary = fan_out.summary_without_times(whole.stdout)
        cls.expected = responses(cls.folder / "whole")

    @classmethod
    def tearDownClass(cls):
        subprocess.run(["umount", "/etc/hosts"], check=False)
        cls.scratch.cleanup()

    def test_eval(self):
        out = self.folder / "run"
        result = check(self.hosts.ranks(*eval_command(PROGRAM, MODEL, out)))
        self.assertIn("host-b", (self.folder / "started").read_text())
        self.assertIn("2 ranks: 24 responses", result.stdout)
        self.assertEqual(responses(out), self.expected)

    def test_a_slow_network_changes_nothing(self):
        discipline = self.hosts.slow_down()
        if discipline is None:
            self.skipTest("this kernel has neither tc netem nor tap devices")
        print("links:", discipline, file=sys.stderr)
        try:
            # Without a folder all texts go over the network.
            shared = check(self.hosts.ranks(*eval_command(PROGRAM, MODEL, None, "--json", "-")))
            for name, command in (("one", lambda *words: words), ("two", self.hosts.ranks)):
                plan = self.folder / f"plan-{name}.json"
                check(command(PROGRAM, "calibrate", "--model", MODEL, "--dataset", pathlib.Path(MODEL) / "calibration.jsonl",
                              "--n-samples", "3", "--seq-len", "64", "--memory-budget", "2MiB", "--max-len", "512",
                              "--threads", "1", "--plan", plan))
            # One model on both hosts: every token's sums cross the network.
            run = [PROGRAM, "run", "--model", MODEL, "--file", pathlib.Path(MODEL) / "example.txt", "--temperature", "0",
                   "--max-tokens", "12", "--kv", "pm-kvq", "--kv-budget", "1MiB", "--threads", "1"]
            sliced = check([*run, "--tp-slices", "8"])
            on_two = check(self.hosts.ranks(*run))
        finally:
            self.hosts.speed_up()
        for suffix in ".json", ".safetensors":
            self.assertEqual((self.folder / "plan-two.json").with_suffix(suffix).read_bytes(),
                             (self.folder / "plan-one.json").with_suffix(suffix).read_bytes())
        self.assertEqual(on_two.stdout, sliced.stdout)
        self.assertEqual(json.loads(shared.stdout)["ranks"], 2)
        self.assertEqual(fan_out.summary_without_times(shared.stdout), self.summary)

    def test_each_host_may_have_a_folder_of_its_own(self):
        # The folder is on a file system that each host mounts for itself.
        mine = self.folder / "mine"
        mine.mkdir()
        script = self.folder / "with-own-disk"
        script.write_text(f'#!/bin/sh\nexec unshare --mount sh -c \'[ "$(hostname)" = host-a ] || '
                          f'mount -t tmpfs none {mine}; exec "$@"\' sh "$@"\n')
        script.chmod(0o755)
        check(self.hosts.ranks(script, *eval_command(PROGRAM, MODEL, mine / "run")))
        self.assertEqual(responses(mine / "run"), self.expected)

    def test_hosts_reach_each_other_once_a_link_is_up(self):
        # What is left of a lost job asks for the other host while the link is down. Its last question is asked 2 s after the
        # first; a connection that joins it then ends with it, 1 s later.
        connect = ["ip", "netns", "exec", "host-b", sys.executable, "-c", hosts.REACH, hosts.HOSTS["host-a"]]
        for pause in 2.2, 2.6, 2.9:
            self.hosts.set_link("host-b", "down")
            with subprocess.Popen(connect, stderr=subprocess.DEVNULL):
                time.sleep(pause)
                self.hosts.set_link("host-b", "up")
                check(connect)

    def test_a_job_goes_on_after_its_network_was_gone(self):
        out = self.folder / "lost"
        command = [str(word) for word in self.hosts.ranks(*eval_command(PROGRAM, MODEL, out))]
        with subprocess.Popen(command, env=fan_out.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
            deadline = time.monotonic() + 60
            while not list(out.glob("parts/responses-*")) and time.monotonic() < deadline:
                time.sleep(0.005)
            self.hosts.set_link("host-b", "down")
            output, errors = job.communicate(timeout=180)
        self.hosts.set_link("host-b", "up")
        self.assertNotEqual(job.returncode, 0, (output, errors))
        self.hosts.wait_until_idle("host-b")
        check(self.hosts.ranks(*eval_command(PROGRAM, MODEL, out)))
        self.assertEqual(responses(out), self.expected)


if __name__ == "__main__":
    PROGRAM, MODEL = sys.argv[1:3]
    fan_out.need_ranks(PROGRAM)
    hosts.enter()
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
