"""A Dask cluster on loopback: a scheduler, two workers with one thread each, and a client that does what it is told.

    python3 dask_cluster.py FOLDER

The folder is for what they write. Once the cluster has run some tasks this says `ready`, or else why it cannot. Then it
answers each line of its standard input:

    tasks N     how many tasks that do nothing are done a second, of N that are submitted at once
    start       the seconds from a submit until its task runs

All processes end when the standard input does, and a scheduler that has had nothing to do for long ends by itself.
"""

import json
import pathlib
import subprocess
import sys
import time

# How long anything that is waited for may take, in seconds.
PATIENCE = 60


def nothing(number):
    return number


def serve(folder, processes):
    def start(part, *arguments):
        module = f"distributed.cli.dask_{part}"
        loopback = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        command = [sys.executable, "-m", module, *loopback, *arguments]
        log = open(folder / "log", "ab")
        processes.append(subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    told = folder / "scheduler.json"
    start("scheduler", "--port", "0", "--scheduler-file", str(told), "--idle-timeout", "300s")
    address = address_in(told)
    for _ in range(2):
        options = ["--nthreads", "1", "--no-nanny", "--death-timeout", "60s", "--local-directory", str(folder)]
        start("worker", address, *options)
    with distributed.Client(address, timeout=PATIENCE) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        rate(client, 200)
        start_of_one(client)
        print("ready", flush=True)
        for line in sys.stdin:
            match line.split():
                case ["tasks", count]:
                    print(rate(client, int(count)), flush=True)
                case ["start"]:
                    print(start_of_one(client), flush=True)


def address_in(told):
    """Where the scheduler listens. It may be seen while it writes that down."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            return json.loads(told.read_text())["address"]
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.01)
    raise TimeoutError("the scheduler does not listen")


def rate(client, count):
    begun = time.perf_counter()
    # Not pure: equal calls are tasks of their own.
    futures = client.map(nothing, range(count), pure=False)
    distributed.wait(futures, timeout=PATIENCE)
    return count / (time.perf_counter() - begun)


def start_of_one(client):
    begun = time.time()
    return client.submit(time.time, pure=False).result(timeout=PATIENCE) - begun


def main():
    processes = []
    try:
        serve(pathlib.Path(sys.argv[1]), processes)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    try:
        import distributed
    except ImportError as error:
        print(error, flush=True)
    else:
        main()
