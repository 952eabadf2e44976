"""What sharing a prompt leaves to each request of a small pool: mean bits of the pages that answers read at their ends.

Called with PROGRAM MODEL [POOL...]. In each pool (20MiB and 36MiB) runs 8 samples of one prompt of about 1,000 tokens, and
16 requests whose prompts begin with the same 900 tokens or so, with 400 tokens each.
"""
import concurrent.futures
import sys

POOLS = [sys.argv.pop(3) for _ in range(len(sys.argv) - 3)] or ["20MiB", "36MiB"]

from served import Server, wait_until  # noqa: E402  (reads sys.argv)

NUMBERS = ", ".join(f"{(7919 * i) % 900 + 100}" for i in range(180))
PROMPT = f"Sort these 180 numbers from small to large with merge sort: {NUMBERS}. What is the sorted list?"


def ask(text, **fields):
    return {"messages": [{"role": "user", "content": text}], "temperature": 1, "max_tokens": 400, "ignore_eos": True, **fields}


def say(name, pool, replies, server):
    for status, reply in replies:
        assert status == 200, reply
    bits = [reply["kv"]["mean_bits"] for _, reply in replies]
    print(f"{name}: pool {pool}, prompts of {replies[0][1]['usage']['prompt_tokens']} tokens: mean bits {sum(bits) / len(bits):.2f}, least "
          f"{min(reply['kv']['min_bits'] for _, reply in replies)}; halved {server.metric('pmkvq_kv_halved_bytes_total') / 2**20:.1f} MiB, "
          f"peak {server.metric('pmkvq_kv_peak_bytes') / 2**20:.1f} MiB, "
          f"{server.metric('pmkvq_preemptions_total'):.0f} preemptions", flush=True)


def main():
    for pool in POOLS:
        options = ("--kv-mode", "pool", "--kv-pool", pool, "--kv-target", "4", "--kv-floor", "2", "--chunk", "128", "--max-len", "4096",
                   "--max-sequences", "16", "--n-sink-token", "0")
        with Server(*options) as server:
            say("8 samples", pool, [server.post("/v1/chat/completions", ask(PROMPT, n=8, seed=1))], server)
        with Server(*options) as server:
            server.post("/v1/chat/completions", ask(PROMPT, max_tokens=1))
            with concurrent.futures.ThreadPoolExecutor(16) as clients:
                replies = list(clients.map(lambda i: server.post("/v1/chat/completions", ask(PROMPT[:-30] + f" Request {i}.", seed=i)),
                                           range(16)))
            say("16 requests", pool, replies, server)
            wait_until(lambda: server.metric("pmkvq_kv_used_bytes") == 0)


main()
