#!/usr/bin/env bash
# Prints an interpreter with all that the Python extension and its tests with NumPy need: a virtual environment
# below build/, with nanobind, NumPy and pytest from PyPI. Debian 12 and 13 have no nanobind 3.1, and no pip outside
# of an environment. Where there is none to be had, says why in one line and fails.
# Usage: scripts/python-tools.sh
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

left_out() {
  echo "python-tools.sh: $1; the Python extension is left out, its tests are skipped" >&2
  exit 1
}

interpreter=${PYTHON:-python3}
tag=$("$interpreter" -c 'import sys; print("cp%d%d" % sys.version_info[:2])' 2>/dev/null) || left_out "found no $interpreter"
venv=$PWD/build/python-tools/$tag
python=$venv/bin/python
if [ ! -x "$python" ]; then
  "$interpreter" -m venv "$venv" >/dev/null 2>&1 || left_out "$interpreter cannot make $venv (Debian: apt-get install python3-venv)"
fi
if ! "$python" -c 'import nanobind, numpy, pytest' 2>/dev/null; then
  "$python" -m pip --disable-pip-version-check --quiet install 'nanobind>=3.1' 'numpy>=1.24' 'pytest>=7.2' >&2 ||
    left_out "pip cannot install nanobind, numpy and pytest into $venv"
fi
echo "$python"
