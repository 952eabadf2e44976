#!/usr/bin/env bash
# Two hosts on one machine: network name spaces on a bridge, with delay and rate by tc netem
# where the kernel has it. The text of two ranks over TCP equals that of one process; then what exchanges
# cost there.
#
# Usage: two_hosts.sh PROGRAM SOURCE_ROOT PLUGIN [DELAY_US] [RATE]. Exit code 77 (skipped) without
# mpirun, the plugin, ip, tc, or the right to make name spaces.
set -euo pipefail
program=$1 root=$2 plugin=$3 delay_us=${4:-30} rate=${5:-10gbit}

skip() { echo "skipped: $1"; exit 77; }
command -v mpirun >/dev/null || skip "no mpirun (openmpi-bin)"
[ -e "$plugin" ] || skip "no MPI plugin in this build"
command -v ip >/dev/null && command -v tc >/dev/null || skip "no ip or tc (iproute2)"
id=$$
a=pq${id}a b=pq${id}b bridge=pq${id}
work=$(mktemp -d)
cleanup() {
  ip netns del "$a" 2>/dev/null || true
  ip netns del "$b" 2>/dev/null || true
  ip link del "$bridge" 2>/dev/null || true
  rm -rf "$work" "/etc/netns/$a" "/etc/netns/$b"
}
trap cleanup EXIT
ip netns add "$a" 2>/dev/null || skip "no right to make network name spaces"
ip netns add "$b"
ip link add "$bridge" type bridge 2>/dev/null || skip "no right to make a bridge"
ip link set "$bridge" up
host=1
for space in "$a" "$b"; do
  ip link add "v$space" type veth peer name eth0 netns "$space"
  ip link set "v$space" master "$bridge" up
  ip -n "$space" addr add "10.99.7.$host/24" dev eth0
  ip -n "$space" link set eth0 up
  ip -n "$space" link set lo up
  ip netns exec "$space" tc qdisc add dev eth0 root netem delay "${delay_us}us" rate "$rate" 2>/dev/null ||
    delay_us=0 rate="no netem in this kernel"
  mkdir -p "/etc/netns/$space"
  printf '127.0.0.1 localhost\n10.99.7.1 %s\n10.99.7.2 %s\n' "$a" "$b" >"/etc/netns/$space/hosts"
  host=$((host + 1))
done

# In place of ssh: mpirun calls it with the host and a command.
cat >"$work/agent" <<'AGENT'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
AGENT
chmod +x "$work/agent"
printf '%s slots=1\n%s slots=1\n' "$a" "$b" >"$work/hosts"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
on_two_hosts() {
  ip netns exec "$a" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$a" \
    mpirun --hostfile "$work/hosts" -np 2 --bind-to none --mca plm_rsh_agent "$work/agent" \
    --mca btl tcp,self --mca pml ob1 --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 \
    --mca mpi_yield_when_idle 1 "$program" "$@"
}

arguments=(run --model "$root/models/longcot-10m" --file "$root/models/longcot-10m/example.txt"
  --temperature 0 --max-tokens 100 --kv pm-kvq --kv-budget 1MiB --threads 1)
"$program" "${arguments[@]}" --tp-slices 8 >"$work/one" 2>/dev/null
on_two_hosts "${arguments[@]}" >"$work/two" 2>"$work/err" || { cat "$work/err"; exit 1; }
cmp "$work/one" "$work/two"
echo "two hosts, delay ${delay_us} us, ${rate}: the same text; $(grep '^ranks:' "$work/err" || true)"

if on_two_hosts bench comm --model "$root/models/longcot-10m" --threads 1 --repeat 50 >"$work/bench" 2>"$work/err"; then
  cat "$work/bench"
else
  cat "$work/err"
  exit 1
fi

# A link that is lost in mid-run: rank 0, which waits for the other one, says so in one line and ends
# by the time limit. The launcher cannot reach the other host; it is ended here.
on_two_hosts run --model "$root/models/longcot-10m" --file "$root/models/longcot-10m/example.txt" \
  --ignore-eos --max-tokens 100000 --max-len 4000 --n-samples 64 --threads 1 --comm-timeout 3 \
  >/dev/null 2>"$work/err" &
launcher=$!
rank_in() {  # The program's process in a name space; nothing: it does not run.
  local process
  for process in $(ip netns pids "$1"); do
    [ "$(readlink "/proc/$process/exe")" != "$(readlink -f "$program")" ] || echo "$process"
  done
}
seconds_of() {  # Of processor time.
  local ticks
  ticks=$(awk '{sub(/.*\) /, ""); print $12 + $13}' "/proc/$1/stat" 2>/dev/null || echo 0)
  echo $((${ticks:-0} / $(getconf CLK_TCK)))
}
for _ in $(seq 600); do  # Both have begun to compute.
  first=$(rank_in "$a")
  second=$(rank_in "$b")
  [ -z "$first" ] || [ -z "$second" ] || [ "$(seconds_of "$first")" -lt 1 ] || break
  sleep 0.1
done
[ -n "$first" ] && [ -n "$second" ] || { echo "the run does not begin"; cat "$work/err"; exit 1; }
ip link set "v$b" down
begin=$(date +%s)
while [ -e "/proc/$first" ] && [ "$(awk '{sub(/.*\) /, ""); print $1}' "/proc/$first/stat" 2>/dev/null)" != Z ]; do
  if [ $(($(date +%s) - begin)) -gt 30 ]; then
    echo "rank 0 still runs 30 s after the link was lost"
    cat "$work/err"
    kill "$launcher"
    exit 1
  fi
  sleep 0.1
done
took=$(($(date +%s) - begin))
for space in "$a" "$b"; do
  for process in $(ip netns pids "$space"); do kill -KILL "$process" 2>/dev/null || true; done
done
wait "$launcher" || true
[ "$(grep -c 'waits for another rank' "$work/err")" = 1 ] || { cat "$work/err"; exit 1; }
echo "link lost: rank 0 ended after $took s: $(grep 'waits for another rank' "$work/err")"
