#!/usr/bin/env python3
"""Runs openai_client.mjs against a server. Usage: openai_js.py PROGRAM MODEL; OPENAI_MODULE names the installed package's folder."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from served import KEY, QUESTION, Server

if __name__ == "__main__":
    with Server("--reasoning", "on", env={"PMKVQ_API_KEY": KEY}) as server:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "openai_client.mjs")
        sys.exit(subprocess.run(["node", script, f"http://127.0.0.1:{server.port}/v1", KEY, QUESTION], timeout=300).returncode)
