#!/usr/bin/env python3
"""Counts primes, and does not start over when the machine it runs on dies.

    flockwork run --lost-limit 20 -- python3 examples/resumable.py 20000000

The work is done in steps. After each one the program saves where it stands, and only goes on when its node has
told it that the saved work is on other nodes too. When the node dies, the next attempt, wherever it runs, finds
the newest saved work in the file FLOCKWORK_CHECKPOINT_FILE and goes on from there: what is lost is the step that
was under way, at the most. Nothing but Python's standard library is needed.

    flockwork job last          how far it is, and what it saved
    flockwork logs -f last      what it says
    kill -9 <pid of its node>   see it go on elsewhere
"""

import argparse
import json
import math
import os
import signal
import sys
import time
import urllib.error
import urllib.request

STEPS_OF = 50_000


def tell(kind, body=b""):
    """Says something to the node that runs this. Returns whether it was taken as it should be."""
    url, token = os.environ.get("FLOCKWORK_POD_URL"), os.environ.get("FLOCKWORK_POD_TOKEN")
    if not url:
        return True  # Started by hand, not by flockwork: there is nobody to tell.
    request = urllib.request.Request(
        f"{url}?kind={kind}", data=body, method="POST", headers={"Authorization": f"Bearer {token}"}
    )
    for wait in (1, 2, 4, None):
        try:
            # The node is on this machine, whatever proxies the environment names.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=90) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as refusal:
            why = refusal.read().decode(errors="replace")
            if refusal.code == 401:
                # Another attempt goes on in our place: whatever we still did would be in its way.
                sys.exit(f"this attempt is over: {why}")
            print(f"{kind} was refused ({refusal.code}): {why}", file=sys.stderr, flush=True)
        except OSError as error:
            print(f"the node does not answer: {error}", file=sys.stderr, flush=True)
        if wait is None:
            return False
        time.sleep(wait)


def saved_work():
    """Where an earlier attempt stood; the beginning if there was none."""
    path = os.environ.get("FLOCKWORK_CHECKPOINT_FILE")
    if path and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    return {"next": 0, "primes": 0, "largest": None}


def primes_between(low, high):
    """The primes from low up to but not including high, by the sieve of Eratosthenes on just that stretch."""
    is_prime = bytearray([1]) * (high - low)
    for number in range(low, min(high, 2)):
        is_prime[number - low] = 0
    for divisor in range(2, math.isqrt(high) + 1):
        first = max(divisor * divisor, (low + divisor - 1) // divisor * divisor)
        is_prime[first - low :: divisor] = bytes(len(range(first, high, divisor)))
    return [low + at for at, prime in enumerate(is_prime) if prime]


def main():
    parser = argparse.ArgumentParser(description="Counts the primes below a limit, and survives its machine.")
    parser.add_argument("limit", type=int, help="count the primes below this number")
    parser.add_argument("--step", type=int, default=STEPS_OF, help="numbers to look at between two checkpoints")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to rest after each step, to watch it")
    parser.add_argument("--ledger", help="append a line for every step to this file, to see what was done twice")
    options = parser.parse_args()
    if options.limit < 2 or options.step < 1:
        parser.error("the limit must be 2 or more, and a step at least 1")

    work = saved_work()
    attempt = os.environ.get("FLOCKWORK_ATTEMPT", "0")
    # The node ends a pod by SIGTERM; every step is saved already, so there is nothing left to do.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if work["next"]:
        print(f"attempt {attempt} goes on from {work['next']}, with {work['primes']} primes so far", flush=True)
    else:
        print(f"attempt {attempt} begins", flush=True)

    while work["next"] < options.limit:
        low, high = work["next"], min(work["next"] + options.step, options.limit)
        if options.ledger:
            with open(options.ledger, "a", encoding="utf-8") as ledger:
                ledger.write(f"begin {low} {attempt}\n")
        found = primes_between(low, high)
        work = {
            "next": high,
            "primes": work["primes"] + len(found),
            "largest": found[-1] if found else work["largest"],
        }
        is_safe = tell("checkpoint", json.dumps(work).encode())
        if options.ledger:
            with open(options.ledger, "a", encoding="utf-8") as ledger:
                ledger.write(f"{'saved' if is_safe else 'unsafe'} {high} {attempt}\n")
        message = f"{work['primes']} primes below {high}"
        tell("progress", json.dumps({"fraction": high / options.limit, "message": message}).encode())
        time.sleep(options.pause)

    print(f"{work['primes']} primes below {options.limit}, the largest is {work['largest']}", flush=True)
    tell("result", json.dumps(work).encode())


if __name__ == "__main__":
    main()
