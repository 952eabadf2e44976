"""Problems of the shipped model under pressure: 16 at once in a pool of 40 % of what they take at 16 bits.

Called with PROGRAM MODEL [COUNT]. Runs COUNT (400) problems with fp16 in an ample pool, with pm-kvq (target 8, floor 4)
and with static-4 in the tight one. Fails where pm-kvq gives up a place, loses or cuts an answer, exceeds the pool, or
solves fewer than static-4 (paired, 95 %).
"""
import concurrent.futures
import math
import sys
import time

PROBLEMS = int(sys.argv.pop(3)) if len(sys.argv) > 3 else 400
AT_ONCE = 16

from problems import is_solved, problems, quantile  # noqa: E402
from served import MODEL, Server  # noqa: E402  (reads sys.argv)


def run(name, options):
    """Solves all problems. What one reply says, by problem, and the server's counters at the end."""
    server = Server("--max-len", "4096", "--max-sequences", str(AT_ONCE), "--queue-size", "64", "--queue-timeout", "0",
                    "--plan", f"{MODEL}/plan.json", "--kv-mode", "pool", *options)
    with server:
        def solve(problem):
            body = {"messages": [{"role": "user", "content": problem["problem"]}], "temperature": 0}
            began = time.monotonic()
            status, reply = server.post("/v1/chat/completions", body)
            seconds = time.monotonic() - began
            if status != 200:
                return {"status": status, "error": reply["error"]["message"]}
            choice = reply["choices"][0]
            text = (choice["message"].get("reasoning_content") or "") + (choice["message"]["content"] or "")
            return {"status": 200, "solved": is_solved(problem, text), "seconds": seconds,
                    "finish": choice["finish_reason"], "kv": reply["kv"], "tokens": reply["usage"]["completion_tokens"]}

        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as clients:
            replies = list(clients.map(solve, problems(MODEL, PROBLEMS)))
        seconds = time.monotonic() - began
        metrics = {key: server.metric("pmkvq_" + key) for key in (
            "kv_pool_bytes", "kv_peak_bytes", "preemptions_total", "recomputed_tokens_total", "kv_halved_bytes_total",
            "kv_water_level")}
        _, text = server.get("/metrics")
        gaps = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("pmkvq_inter_token_seconds_bucket")]
    good = [reply for reply in replies if reply["status"] == 200]
    tokens = sum(reply["tokens"] for reply in good)
    print(f"{name}: pool {metrics['kv_pool_bytes'] / 2**20:.1f} MiB, peak {metrics['kv_peak_bytes'] / 2**20:.1f} MiB; "
          f"{len(good)} of {len(replies)} answered, {sum(r['solved'] for r in good)} solved, "
          f"{sum(r['finish'] != 'stop' for r in good)} cut; {metrics['preemptions_total']:.0f} preempted, "
          f"{metrics['recomputed_tokens_total']:.0f} tokens recomputed; mean bits "
          f"{sum(r['kv']['mean_bits'] for r in good) / max(1, len(good)):.2f}, least "
          f"{min((r['kv']['min_bits'] for r in good), default=0)}; {len(good) / seconds * 60:.1f} answers a minute, "
          f"{tokens / seconds:.0f} tokens/s; an answer p50 {quantile([r['seconds'] for r in good], 0.5):.1f} s, "
          f"p99 {quantile([r['seconds'] for r in good], 0.99):.1f} s; "
          f"halved {metrics['kv_halved_bytes_total'] / 2**20:.0f} MiB", flush=True)
    for reply in replies:
        if reply["status"] != 200:
            print(f"  {reply['status']}: {reply['error']}")
    print("  tokens within: " + ", ".join(f"{label.split('le=')[1][1:-2]} s {count}" for label, count in gaps), flush=True)
    return replies, metrics


def solved(replies):
    return [reply["status"] == 200 and reply["solved"] for reply in replies]


def main():
    # Its peak is that of the requests: kept prompts would count in it.
    ample, of_ample = run("fp16, ample", ["--kv", "fp16", "--kv-pool", "512MiB", "--kv-target", "16", "--prefix-cache", "off"])
    pool = str(int(of_ample["kv_peak_bytes"] * 0.4))
    ours, of_ours = run("pm-kvq", ["--kv", "pm-kvq", "--kv-pool", pool, "--kv-target", "8", "--kv-floor", "4"])
    static, _ = run("static-4", ["--kv", "static-4", "--kv-pool", pool])
    assert all(reply["status"] == 200 for reply in ours), "an answer was lost"
    assert of_ours["preemptions_total"] == 0, "a request gave up its place"
    assert of_ours["kv_peak_bytes"] <= of_ours["kv_pool_bytes"], "the pool was exceeded"
    assert all(reply["kv"]["min_bits"] >= 4 for reply in ours), "a page went below the floor"
    cut = [reply["finish"] for reply in ample].count("length")
    assert [reply["finish"] for reply in ours].count("length") <= cut + PROBLEMS // 100, "answers were cut"
    better = sum(a and not b for a, b in zip(solved(ours), solved(static)))
    worse = sum(b and not a for a, b in zip(solved(ours), solved(static)))
    # McNemar: of the pairs that differ, not significantly more to static-4.
    differ = better + worse
    p = sum(math.comb(differ, i) for i in range(worse, differ + 1)) / 2**differ if differ else 1
    print(f"solved: fp16 {sum(solved(ample))}, pm-kvq {sum(solved(ours))}, static-4 {sum(solved(static))} of {PROBLEMS}; "
          f"pm-kvq alone {better}, static-4 alone {worse} (one-sided p = {p:.3f})")
    assert worse <= better or p > 0.05, "static-4 solves more"


main()
