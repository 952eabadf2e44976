#!/usr/bin/env bash
# Installs, uses and removes the packages in FOLDER, on a fresh Debian as root; FOLDER/model is a model
# folder. Called by test-packages.sh inside a root.
#
# Usage: scripts/use-packages.sh FOLDER
set -euo pipefail
folder=$1
say() { echo "== $*"; }
fail() {
  echo "use-packages.sh: $*" >&2
  exit 1
}

apt-get update -qq
# A page and completion need these; Debian's minimal systems leave manual pages out by a rule, too.
rm -f /etc/dpkg/dpkg.cfg.d/docker
apt-get install -y -qq --no-install-recommends man-db bash-completion python3 zsh fish mandoc >/dev/null
cd "$folder"
files_now() { find / -xdev \( -path /proc -o -path /dev -o -path /sys -o -path /tmp -o -path /packages -o -path /var/cache -o -path /var/lib/apt \
  -o -path /var/log -o -path /var/lib/dpkg -o -path /root \) -prune -o -print | sort; }

say "install pmkvq"
apt-get install -y -qq --no-install-recommends --download-only ./pmkvq_*.deb >/dev/null
files_now >/tmp/before
installed_before=$(dpkg-query -W -f '${Package}\n' | sort)
apt-get install -y -qq --no-install-recommends ./pmkvq_*.deb >/dev/null
[ -z "$(dpkg -V pmkvq)" ] || fail "dpkg -V finds changed files"
pmkvq --version
pmkvq --version --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["version"])'

say "man"
MANWIDTH=100 man pmkvq-run | col -b | grep -q -- '--kv-budget' || fail "man pmkvq-run does not show --kv-budget"
man -w pmkvq >/dev/null
man -w pmkvq-bench-gemv >/dev/null
whatis pmkvq-run 2>/dev/null || { mandb -q && whatis pmkvq-run; }

say "completion"
python3 program_files_test.py "$(command -v pmkvq)"
for shell in bash zsh fish; do
  case $shell in
    bash) file=/usr/share/bash-completion/completions/pmkvq ;;
    zsh) file=/usr/share/zsh/vendor-completions/_pmkvq ;;
    fish) file=/usr/share/fish/vendor_completions.d/pmkvq.fish ;;
  esac
  pmkvq completion $shell | cmp - $file
done
# As a login shell has it: bash-completion loads the file at the first Tab.
python3 - <<'PY'
import os, pty, select, time
process, terminal = pty.fork()
if process == 0:
    os.execvpe("bash", ["bash", "--norc", "-i"], {**os.environ, "PS1": "> ", "TERM": "dumb"})
def read_until(text):
    data, end = "", time.monotonic() + 60
    while text not in data:
        assert time.monotonic() < end, data
        if select.select([terminal], [], [], 0.2)[0]:
            data += os.read(terminal, 65536).decode(errors="replace")
    return data
os.write(terminal, b". /usr/share/bash-completion/bash_completion; echo re''ady\n")
read_until("ready")
os.write(terminal, b"pmkvq calib\t")
read_until("calibrate")
os.write(terminal, b"\x15exit\n")
print("bash-completion: pmkvq calib<Tab> gives calibrate")
PY

say "run"
answer=$(pmkvq run --model model --temperature 0 \
  "Multiply 472 by 58 with column sums of digit products. What is the product?")
grep -q 'boxed{27376}' <<<"$answer" || fail "the shipped model's answer is not 27376: $answer"
echo "$answer" | tail -n 1

if ls ./pmkvq-mpi_*.deb >/dev/null 2>&1; then
  say "MPI"
  apt-get install -y -qq --no-install-recommends ./pmkvq-mpi_*.deb openmpi-bin >/dev/null
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  mpirun --oversubscribe -np 2 pmkvq run --model model --temperature 0 \
    "Multiply 472 by 58 with column sums of digit products. What is the product?" | grep -q 'boxed{27376}' ||
    fail "two ranks do not answer 27376"
  apt-get purge -y -qq pmkvq-mpi openmpi-bin >/dev/null
fi

say "remove"
apt-get purge -y -qq pmkvq >/dev/null
# The libraries that came with it.
apt-get autoremove -y -qq --purge >/dev/null
installed_after=$(dpkg-query -W -f '${Package}\n' | sort)
[ "$installed_before" = "$installed_after" ] || fail "packages stay: $(diff <(echo "$installed_before") <(echo "$installed_after"))"
mandb -q || true
files_now >/tmp/after
# Caches that triggers renew are no leftovers, nor is the copy of the list of groups that a dependency of openmpi-bin leaves (the group of ssh).
diff /tmp/before /tmp/after | grep -vE '/(ld.so.cache|index.db|CACHEDIR.TAG)|/__pycache__|^[0-9,]+[acd][0-9,]+$|/run/|/etc/(ld.so.cache|mtab)|/var/lib/(systemd|pam|python)|/etc/(passwd|shadow|group|gshadow)-$' >/tmp/left || true
if [ -s /tmp/left ]; then
  cat /tmp/left >&2
  fail "files stay after the package is purged"
fi

say "libpmkvq-dev"
apt-get install -y -qq --no-install-recommends ./libpmkvq-dev_*.deb >/dev/null
[ -z "$(dpkg -V libpmkvq-dev)" ] || fail "dpkg -V finds changed files"
apt-get install -y -qq --no-install-recommends g++ cmake make pkg-config >/dev/null
mkdir -p /tmp/consumer
cat >/tmp/consumer/main.cc <<'CC'
#include <cstdio>
#include "pmkvq/text/chat_template.h"
int main() {
  const pmkvq::ChatTemplate chat = pmkvq::ChatTemplate::BuiltIn("chatml");
  std::printf("%zu characters of template\n", chat.Text().size());
  return chat.Text().empty() ? 1 : 0;
}
CC
cat >/tmp/consumer/CMakeLists.txt <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
find_package(pmkvq REQUIRED)
add_executable(consumer main.cc)
target_link_libraries(consumer PRIVATE pmkvq::pmkvq)
CMAKE
cmake -S /tmp/consumer -B /tmp/consumer/build >/dev/null
cmake --build /tmp/consumer/build >/dev/null
/tmp/consumer/build/consumer
g++ -o /tmp/consumer/by-pkg-config /tmp/consumer/main.cc $(pkg-config --cflags --libs pmkvq)
/tmp/consumer/by-pkg-config
apt-get purge -y -qq libpmkvq-dev >/dev/null
! find /usr -path '*pmkvq*' | grep . || fail "files stay after libpmkvq-dev is purged"
say "done"
