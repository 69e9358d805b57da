"""A million wrong messages to a running server.

    python benchmarks/wire_fuzz.py [--messages 1000000] [--seed 0]

Each is a request that the protocol allows, changed in one to five places: a value of it becomes
another of any type, or a field is dropped, added or doubled, or bytes of the header are changed,
cut off or repeated, or chunks are added. Four processes send them, each over connections that it
drops now and then, and read every answer. All the while a well-behaved client asks `ping` ten
times a second.

Printed: how many were answered with which code (`internal` would be a fault of the server), how
long a `ping` took, memory on the way, and whether a process of the server has died.
"""

import argparse
import copy
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from reenact import protocol
from reenact.client import Client
from reenact.protocol import Clip, File, Move
from soak import Raw, Server, careless_home, report_server

SENDERS = 4
A_FILE = File("5" * 64, 1000)
A_CLIP = Clip(".exr", [1001, 1002], [A_FILE, File("6" * 64, 9)])
TASKS: tuple[protocol.Task, ...] = (
    protocol.Personalize(A_CLIP, "Ann", "Ann"),
    protocol.Solve(A_CLIP, A_FILE),
    protocol.Render(A_FILE, A_FILE, A_CLIP),
    protocol.Frame(A_FILE, A_FILE, 1001),
    protocol.Repair(A_FILE, [{"kind": "hold", "frames": "1-2"}]),
    protocol.Qc(A_FILE, A_FILE, A_CLIP),
    protocol.Stylize(A_FILE, "ink", program="sketch"),
    protocol.Edit(A_FILE, A_FILE, [A_FILE], [Move("smile", "1")]),
    protocol.FitDirections(base=A_FILE),
)
REQUESTS: tuple[protocol.Request, ...] = (
    protocol.Hello("fuzz", [1]),
    protocol.Ping(),
    protocol.Health(),
    protocol.List_(),
    protocol.Status("0" * 16),
    protocol.Events("0" * 16, 3, 0.1),
    protocol.Figures("0" * 16),
    protocol.Cancel("0" * 16),
    protocol.Pause("0" * 16),
    protocol.Resume("0" * 16),
    protocol.Finish("0" * 16),
    protocol.Delete("0" * 16),
    protocol.Held(["5" * 64, "6" * 64]),
    protocol.Upload("5" * 64, 1000, 0),
    protocol.Download("5" * 64, 0),
    protocol.Verify("5" * 64),
    *(protocol.Submit(protocol.kind_of(task), protocol.plain(task)) for task in TASKS),
)
NONSENSE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**53 - 1, -(2**53) + 1, 2**63, 10**400, 0.5, 1e308, -0.0, "", "x" * 5000,
    "\0", "\ud800", "../../etc/passwd", "/dev/zero", "tcp://x", "5" * 64, [], [[]], [0] * 2000, {},
    {"path": "/"}, {"": {"": {}}},
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns all containers in a JSON value with each of their keys or positions."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, k) for k in keys] + [p for k in keys for p in places(value[k])]


def spoil(header: dict[str, Any], rng: random.Random) -> None:
    """Changes one place of a header's JSON."""
    container, key = rng.choice(places(header))
    match rng.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[rng.choice(("x", "path", "size", "reenact", ""))] = copy.deepcopy(
                rng.choice(NONSENSE)
            )
        case 2 if isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        case _:
            container[key] = copy.deepcopy(rng.choice(NONSENSE))


def wrong_message(rng: random.Random) -> list[bytes]:
    """Returns the frames of a message that is wrong in one to five places, most probably."""
    request = rng.choice(REQUESTS)
    header = json.loads(protocol.encode(request, f"{rng.getrandbits(40):x}"))
    changes = rng.randrange(1, 6)
    for _ in range(changes if rng.random() < 0.7 else 0):
        if places(header):
            spoil(header, rng)
    text = bytearray(json.dumps(header).encode())
    if rng.random() < 0.4:
        for _ in range(changes):
            at = rng.randrange(len(text) + 1)
            match rng.randrange(4):
                case 0:
                    text[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del text[at:]
                case 2:
                    text[at:at] = text[max(0, at - 9) : at] * rng.randrange(1, 50)
                case 3:
                    text[at : at + 4] = rng.choice((b"NaN", b"1e999", b"\xff\xfe", b"[" * 200))
    chunks = 1 if isinstance(request, protocol.Upload) else 0
    if rng.random() < 0.05:
        chunks = rng.randrange(4)
    return [bytes(text), *(os.urandom(rng.choice((0, 1, 1000, 1000))) for _ in range(chunks))]


def send_wrong(folder: Path, count: int, seed: int) -> None:
    """Sends messages and reads the answers; writes how many of which code came."""
    rng = random.Random(seed)
    codes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    sent = 0
    while sent < count:
        raw = Raw(folder)
        for _ in range(min(rng.randrange(1, 20_000), count - sent)):
            message = wrong_message(rng)
            sent += 1
            with suppress(zmq.Again):
                raw.socket.send_multipart(message)
            while raw.socket.poll(0 if sent % 16 else 20):
                answer = json.loads(raw.socket.recv_multipart()[0])
                body = answer.get("body", {})
                code = str(body.get("code")) if answer["type"] == "error" else "answer"
                codes[code] += 1
                examples.setdefault(code, json.dumps(body)[:300])
        raw.socket.close(0)
    facts = {"sent": sent, "codes": codes, "internal": examples.get("internal", "")}
    (folder / f"fuzz.{seed}").write_text(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with careless_home() as folder:
        with Server(folder) as server:
            context = multiprocessing.get_context("spawn")
            share = options.messages // SENDERS
            seeds = [SENDERS * options.seed + i for i in range(SENDERS)]
            senders = [
                context.Process(target=send_wrong, args=(folder, share, seed)) for seed in seeds
            ]
            for sender in senders:
                sender.start()
            start = time.monotonic()
            pings = []
            with Client("good", 60.0) as client:
                while any(sender.is_alive() for sender in senders):
                    asked = time.monotonic()
                    client.ask(protocol.Ping())
                    pings.append(time.monotonic() - asked)
                    time.sleep(0.1)
            seconds = time.monotonic() - start
            facts = [json.loads((folder / f"fuzz.{seed}").read_text()) for seed in seeds]
            codes = sum((Counter(f["codes"]) for f in facts), Counter())
            print(f"{sum(f['sent'] for f in facts)} messages in {seconds:.0f} s: {dict(codes)}")
            parts = [f"{q} % {np.percentile(pings, q) * 1e3:.0f}" for q in (50, 99, 100)]
            print(f"{len(pings)} pings of a well-behaved client, ms: {', '.join(parts)}")
            report_server(server)
            for text in {f["internal"] for f in facts} - {""}:
                print("internal:", text)
        sys.exit(1 if server.deaths or codes["internal"] else 0)


if __name__ == "__main__":
    main()
