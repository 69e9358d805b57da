"""Ten minutes with well-behaved and careless clients, while the server's processes are killed.

    python benchmarks/soak.py [--minutes 10] [--clients 50] [--careless 20] [--kills 100] [--seed 0]

Well-behaved clients send files, have tracks of their own drawn, follow the jobs, fetch what they
have made and ask for single frames, all by the SDK. Careless ones do each for some seconds what
`CARELESS` lists, and half of them are killed at it. All the while a front end, its gateway or a
worker is killed (SIGKILL) at random moments; a dead front end is started again, as a service
manager does.

One more client, `attentive`, computes nothing and only asks, ten times a second: what it waits for
is the server alone, while the others share two processors with everything.

Printed: how long short requests (hello, ping, status, held, health) took, those apart that were
under way during a restart; how long each kind of process was away; the resident memory of front end
and gateway; and at the end, when all jobs have been waited for, how many finished frames the server
has lost, which means that it told of them and does not have them, or has others.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq
import zmq.auth
from reenact import protocol
from reenact.client import Client
from reenact.errors import NoServerError, ServerError
from reenact.protocol import CHUNK, File, Frame, Render
from transport import ROOT, resident

from core.face.landmarks import detect_keypoints, detect_landmarks
from core.face.network import aligned_roi, to_picture
from core.personalize.character import Character, CharacterInfo, load_character, save_character
from core.solve.latent_track import FrameState, LatentTrack, save_track
from core.solve.settings import SolveSettings
from core.synthetic.base import base_generator
from server.frontend import home

ANCHORS, FRAMES = 6, 12
GROUPS = 5  # processes that the well-behaved clients share
SETTLED = 2.0  # seconds after a restart for which requests still count as disturbed
NO_SCAN = "0" * 64
PORT = 17411
NICE = 18  # clients would be other machines: they yield to the server, careless ones first
EVERY = 0.1  # seconds between the requests of the client that computes nothing
TALKING = ("front end", "gateway")


# -- what is drawn -----------------------------------------------------------------------------


def make_character(path: Path) -> Character:
    """Saves a character with random anchors on the embedded generator."""
    generator = base_generator()
    with torch.no_grad():
        anchors = generator.mapping(torch.randn(ANCHORS, 512))
        keypoints = detect_keypoints(generator.synthesis(anchors))
    consent = {"who": "nobody: synthetic", "when": "2030-01-01", "scope": "benchmarks"}
    info = CharacterInfo("Soak", consent, selected=list(range(ANCHORS)))
    thumbnail = np.zeros((8, 8, 3), np.uint8)
    save_character(path, Character(generator, anchors, keypoints, thumbnail, info, NO_SCAN))
    return the_character(path)


@lru_cache(maxsize=1)
def mesh(character: Character) -> np.ndarray:
    """Returns the first anchor's landmarks `[478, 3]`, in pixels of its picture."""
    with torch.no_grad():
        picture = character.generator.synthesis(character.anchors[:1])
        found = to_picture(detect_landmarks(picture).landmarks, aligned_roi(picture.shape[-1], 1))
    return found[0].numpy()


@lru_cache(maxsize=1)
def the_character(path: Path) -> Character:
    """Returns the character, loaded once in each process."""
    return load_character(path)


def make_track(path: Path, character: Character, seed: int) -> None:
    """Saves a track of random mixtures of the anchors, of which no two are alike."""
    rng = np.random.default_rng(seed)
    layers = character.generator.architecture.num_ws
    alpha = rng.dirichlet(np.ones(ANCHORS), FRAMES).astype(np.float32)
    codes = np.repeat((alpha @ character.anchors.numpy())[:, None], layers, 1)
    quad = 128.0 * np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    track = LatentTrack(
        character=character.hash,
        numbers=np.arange(1001, 1001 + FRAMES),
        state=np.full(FRAMES, FrameState.SOLVED, np.uint8),
        cut=np.arange(FRAMES) == 0,
        alpha=alpha,
        delta=np.zeros((FRAMES, layers, ANCHORS), np.float32),
        codes=codes,
        smooth=codes.copy(),
        neutral_offset=np.zeros((86, 3), np.float32),
        landmarks=np.repeat(mesh(character)[None], FRAMES, 0),
        quads=np.repeat(quad[None], FRAMES, 0),
        amount=np.ones(FRAMES, np.float32),
        losses={},
        quality={},
        settings=json.loads(json.dumps(SolveSettings(neutral=None).__dict__, default=str)),
        source="soak",
        plate=(128, 128),
    )
    save_track(path, track)


# -- well-behaved clients ----------------------------------------------------------------------


class Diary:
    """What a group of clients has seen: times of requests, jobs, and files that they were told of.

    Args:
        path: of its file, a line of JSON for each entry.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, **entry: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")


def well_behaved_group(folder: Path, numbers: list[int], until: float) -> None:
    """Runs clients in threads until a time (monotonic)."""
    os.nice(NICE // 2)
    diary = Diary(folder / f"diary.{numbers[0]}")
    threads = [
        threading.Thread(target=well_behaved, args=(folder, n, until, diary)) for n in numbers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def well_behaved(folder: Path, number: int, until: float, diary: Diary) -> None:
    """One artist: has a track drawn, follows, fetches, and again with another."""
    rng = random.Random(number)
    with Client(f"artist {number}", deadline=120.0) as client:
        jobs = 0
        while time.monotonic() < until:
            jobs += 1
            try:
                one_job(client, folder, number * 1000 + jobs, rng, diary, until)
            except (ServerError, NoServerError) as error:
                code = getattr(error, "code", type(error).__name__)
                diary.write(trouble=code, text=str(error)[:200])
                time.sleep(rng.uniform(0.5, 2))


def attentive(folder: Path, until: float) -> None:
    """A client that computes nothing and yields to nobody, as on a machine of its own."""
    diary, rng = Diary(folder / "diary.attentive"), random.Random(0)
    with Client("attentive", deadline=120.0) as client:
        while time.monotonic() < until:
            few = protocol.Held(hashes(rng, 4))
            with suppress(ServerError, NoServerError):
                timed(client, diary, rng.choice([protocol.Ping(), few, hello()]))
            time.sleep(EVERY)


def timed(client: Client, diary: Diary, request: protocol.Request) -> dict[str, Any]:
    """Asks, and notes when and for how long."""
    start = time.monotonic()
    answer = client.ask(request)
    kind = type(request).__name__.lower()
    seconds = time.monotonic() - start
    diary.write(request=kind, by=client.name.split()[0], start=start, seconds=seconds)
    return answer


def one_job(
    client: Client, folder: Path, seed: int, rng: random.Random, diary: Diary, until: float
) -> None:
    """Has a new track drawn, and asks in between as artists' nodes do."""
    path = folder / f"{seed}.latents"
    make_track(path, the_character(folder / "soak.character"), seed)
    track, character = client.send([path, folder / "soak.character"])
    path.unlink()
    task = Render(track, character, name=f"soak {seed}")
    job = client.submit(task)
    diary.write(job=job)
    if rng.random() < 0.3:
        single = Frame(track, character, 1001 + rng.randrange(FRAMES), name=f"live {seed}")
        diary.write(job=client.submit(single))
    after = 0
    while True:
        for event in client.events(job, after, 1.0):
            after = event["n"]
            if event["type"] == "file":
                diary.write(file=event["hash"], size=event["size"], of=job, number=event["number"])
                if rng.random() < 0.3:
                    fetch(client, File(event["hash"], event["size"]), folder, rng)
        timed(client, diary, protocol.Ping())
        timed(client, diary, protocol.Held([track.hash, character.hash]))
        state = timed(client, diary, protocol.Status(job))["state"]
        if state in protocol.FINISHED:
            break
        if rng.random() < 0.2:
            timed(client, diary, rng.choice([protocol.Health(), hello()]))
        if state == "paused":
            client.resume(job)
        if time.monotonic() > until:  # the end waits for it
            return
        time.sleep(rng.uniform(0.2, 1.0))
    if state == "failed":  # as an artist would, after reading why
        diary.write(failed=client.status(job)["reason"])
        client.resume(job)


def hello() -> protocol.Hello:
    return protocol.Hello("soak", [protocol.VERSION])


def fetch(client: Client, file: File, folder: Path, rng: random.Random) -> None:
    """Downloads a file, whose content the SDK checks by its hash."""
    target = folder / f"fetched.{rng.getrandbits(64):x}"
    client.receive([(file, target)])
    target.unlink()


# -- careless clients --------------------------------------------------------------------------


class Raw:
    """A DEALER socket that sends whatever it is given.

    Args:
        folder: the server's home.
    """

    def __init__(self, folder: Path) -> None:
        address = json.loads((folder / "server.json").read_text())
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        keys = folder / "keys" / "careless.key_secret"
        self.socket.curve_publickey, self.socket.curve_secretkey = zmq.auth.load_certificate(keys)
        self.socket.curve_serverkey = address["key"].encode()
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, 1000)
        self.socket.connect(address["endpoint"])

    def ask(self, type: str, *chunks: bytes, **body: Any) -> None:
        header = {"reenact": 1, "type": type, "id": os.urandom(8).hex(), "body": body}
        with suppress(zmq.Again):
            self.socket.send_multipart([json.dumps(header).encode(), *chunks])

    def empty(self) -> None:
        """Reads what has come."""
        while self.socket.poll(0):
            self.socket.recv_multipart()


def hashes(rng: random.Random, count: int) -> list[str]:
    return [f"{rng.getrandbits(256):064x}" for _ in range(count)]


def flood_held(raw: Raw, rng: random.Random, folder: Path) -> None:
    """300 requests of 10,000 hashes, and no look at the answers."""
    for _ in range(300):
        raw.ask("held", hashes=hashes(rng, 10_000))


def never_read(raw: Raw, rng: random.Random, folder: Path) -> None:
    """Asks for megabytes again and again, and reads nothing."""
    character = folder / "soak.character"
    hash = protocol.file_hash(character)[0]
    for i in range(2000):
        raw.ask("download", hash=hash, offset=CHUNK * (i % (character.stat().st_size // CHUNK + 1)))
        raw.ask("list")


def verify_all(raw: Raw, rng: random.Random, folder: Path) -> None:
    """Has the largest file read again 200 times, and unknown ones."""
    hash = protocol.file_hash(folder / "soak.character")[0]
    for _ in range(200):
        raw.ask("verify", hash=hash)
        raw.ask("verify", hash=hashes(rng, 1)[0])
    time.sleep(3)
    raw.empty()


def announce(raw: Raw, rng: random.Random, folder: Path) -> None:
    """Begins files of 4 GiB that never come."""
    for hash in hashes(rng, 24):
        raw.ask("upload", os.urandom(CHUNK), hash=hash, size=4 << 30, offset=0)
        time.sleep(0.1)
        raw.empty()


def mutate(raw: Raw, rng: random.Random, folder: Path) -> None:
    """Messages that are none: broken headers, other fields, too many parts."""
    good = json.dumps({"reenact": 1, "type": "status", "id": "a", "body": {"job": "x"}}).encode()
    for _ in range(1000):
        message = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        parts = [bytes(message)] + [os.urandom(rng.randrange(2000))] * rng.randrange(3)
        with suppress(zmq.Again):
            raw.socket.send_multipart(parts)
        raw.empty()


def leave_without_bye(raw: Raw, rng: random.Random, folder: Path) -> None:
    """80 connections, one after the other, none of which says goodbye."""
    for _ in range(80):
        short = Raw(folder)
        short.ask("ping")
        short.socket.poll(500)
        short.socket.close()


def ask_absurdly(raw: Raw, rng: random.Random, folder: Path) -> None:
    """Offsets beyond every file, jobs that are none, and thousands of waits for events."""
    hash = protocol.file_hash(folder / "soak.character")[0]
    for _ in range(300):
        raw.ask("download", hash=hash, offset=2**53 - 1)
        raw.ask("events", job=os.urandom(8).hex(), after=0, wait=30)
        raw.ask("resume", job=os.urandom(8).hex())
        raw.ask("submit", kind="render", task={"track": {"path": "/dev/zero"}})
        raw.empty()


CARELESS: tuple[Callable[[Raw, random.Random, Path], None], ...] = (
    flood_held,
    never_read,
    verify_all,
    announce,
    mutate,
    leave_without_bye,
    ask_absurdly,
)


def careless(folder: Path, seed: int) -> None:
    """One careless client: does one thing, and stays connected for a while."""
    rng = random.Random(seed)
    with suppress(OSError, ValueError, zmq.ZMQError):  # the server is being restarted
        raw = Raw(folder)
        rng.choice(CARELESS)(raw, rng, folder)
        time.sleep(rng.uniform(0, 5))


def keep_careless(folder: Path, count: int, seed: int, until: float) -> None:
    """Keeps so many careless clients going until a time (monotonic), and kills half of them."""
    os.nice(NICE)
    rng = random.Random(seed)
    context = multiprocessing.get_context("fork")
    running: list[tuple[Any, float, bool]] = []
    while time.monotonic() < until:
        while len(running) < count:
            process = context.Process(target=careless, args=(folder, rng.getrandbits(32)))
            process.start()
            running.append((process, time.monotonic() + rng.uniform(3, 15), rng.random() < 0.5))
        for entry in list(running):
            process, end, kill = entry
            if time.monotonic() > end and process.is_alive():
                (process.kill if kill else process.terminate)()
            if not process.is_alive():
                process.join()
                running.remove(entry)
        time.sleep(0.1)
    for process, _, _ in running:
        process.kill()
        process.join()


# -- the server --------------------------------------------------------------------------------


class Server:
    """`reenact serve` at one port, started again whenever it has died, as service managers do.

    A thread looks every tenth of a second at its processes.

    Args:
        folder: its home.

    Attributes:
        memory: of front end and gateway together: seconds (monotonic), MiB.
        deaths: of front ends and gateways that nobody killed: when (monotonic), which.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory: list[tuple[float, float]] = []
        self.deaths: list[tuple[float, str]] = []
        self._killed: set[int] = set()
        self._gateways: set[int] = set()
        self._over = False
        self._start()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _start(self) -> None:
        (self.folder / "server.json").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.cli.main", "serve", "--bind", f"127.0.0.1:{PORT}"],
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 60
        while not (self.folder / "server.json").exists() and self.process.poll() is None:
            if time.monotonic() > until:
                break
            time.sleep(0.02)

    def _watch(self) -> None:
        while not self._over:
            if self.process.poll() is not None:
                self._note_death(self.process.pid, "front end")
                self._start()
            found = self.processes()
            for pid in self._gateways - set(found.get("gateway", [])):
                self._note_death(pid, "gateway")
            self._gateways = set(found.get("gateway", []))
            held = held_by([pid for kind in TALKING for pid in found.get(kind, [])])
            self.memory.append((time.monotonic(), held))
            time.sleep(0.1)

    def _note_death(self, pid: int, kind: str) -> None:
        front_end_died = kind == "gateway" and self._killed & {self.process.pid}
        if pid not in self._killed and not front_end_died:
            self.deaths.append((time.monotonic(), kind))
            self._killed.add(pid)

    def processes(self) -> dict[str, list[int]]:
        """Returns the numbers of its processes that live, by what they are."""
        found: dict[str, list[int]] = {"front end": [self.process.pid]}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    words = (path.parent / "cmdline").read_text()
                    kind = next((n for n in ("gateway", "worker") if n in words), "other")
                    found.setdefault(kind, []).append(int(path.parent.name))
        return found

    def kill(self, rng: random.Random) -> str:
        """Kills one of its processes; returns of which kind it was."""
        found = self.processes()
        kind = rng.choice([k for k in (*TALKING, "worker") if k in found])
        pid = rng.choice(found[kind])
        self._killed |= {pid} if kind != "front end" else {pid, *self._gateways}
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return kind

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        self.process.terminate()
        self.process.wait(90)


def held_by(pids: list[int]) -> float:
    """MiB of processes, of those that are still there."""
    held = 0.0
    for pid in pids:
        with suppress(OSError, IndexError):
            held += resident(pid)
    return held


@contextmanager
def careless_home() -> Iterator[Path]:
    """Makes a server's home, which the environment names, with a key for careless clients."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["REENACT_HOME"] = name
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "nuke_plugin")])
        os.environ.pop("REENACT_SERVER", None)
        home.make_keys(folder)
        home.make_key(folder / "keys", "careless")
        home.add_key(folder, "careless", folder / "keys" / "careless.key")
        yield folder


def answers(client: Client, since: float) -> float:
    """Waits until the server answers; returns the seconds since a time (monotonic)."""
    while True:
        with suppress(ServerError, NoServerError):
            client.ask(protocol.Ping(), 60.0)
            return time.monotonic() - since


def disturb(
    server: Server, client: Client, kills: int, until: float, rng: random.Random
) -> list[tuple[str, float, float]]:
    """Kills one process after another.

    Returns:
        Of each kill the kind of process, when (monotonic), and seconds until the server answered.
    """
    done: list[tuple[str, float, float]] = []
    start = time.monotonic()
    for i in range(kills):
        moment = start + (until - start) * (i + rng.random()) / kills
        time.sleep(max(0.0, moment - time.monotonic()))
        killed = time.monotonic()
        done.append((server.kill(rng), killed, answers(client, killed)))
    return done


# -- the report --------------------------------------------------------------------------------


def read_diaries(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in folder.glob("diary.*")
        for line in path.read_text().splitlines()
    ]


def report_answers(
    entries: list[dict[str, Any]], kills: list[tuple[str, float, float]], server: Server
) -> None:
    """Prints the times of short requests, and how long the server was away."""
    away = [(t, t + seconds + SETTLED) for kind, t, seconds in kills if kind != "worker"]
    away += [(t - 1, t + 1 + SETTLED) for t, _ in server.deaths]
    seconds: dict[str, list[float]] = {}
    for e in entries:
        if "request" in e:
            end = e["start"] + e["seconds"]
            during = any(end > since and e["start"] < until for since, until in away)
            when = "during a restart" if during else "undisturbed"
            seconds.setdefault(f"of {e['by']} clients, {when}", []).append(e["seconds"])
    for name, times in sorted(seconds.items()):
        parts = [f"{q} % {np.percentile(times, q) * 1e3:.0f}" for q in (50, 99, 99.9, 100)]
        print(f"{len(times)} short requests {name}, ms: {', '.join(parts)}")
    for kind in (*TALKING, "worker"):
        times = [seconds for k, _, seconds in kills if k == kind]
        if times:
            print(f"{kind}: killed {len(times)} times, answered after {max(times):.2f} s at most")


def report_server(server: Server) -> None:
    """Prints who died by himself, and memory over time."""
    print(f"died though nobody killed them: {dict(Counter(kind for _, kind in server.deaths))}")
    start = server.memory[0][0]
    minutes: dict[int, float] = {}
    for t, held in server.memory:
        minute = int((t - start) // 60)
        minutes[minute] = max(minutes.get(minute, 0.0), held)
    print(
        "memory of front end and gateway, MiB, at most in each minute: "
        + ", ".join(f"{m:.0f}" for m in minutes.values())
        + f"; {server.memory[-1][1]:.0f} at the end"
    )


def _is_held(client: Client, hash: str, size: int) -> bool:
    """Returns whether the server has a file, whole: it reads it again."""
    try:
        whole = client.ask(protocol.Verify(hash), 60.0)["whole"]
        return bool(whole) and client.ask(protocol.Held([hash]))["bytes"] == [size]
    except (ServerError, NoServerError):
        return False


def report_work(client: Client, entries: list[dict[str, Any]], seconds: float) -> bool:
    """Waits for all jobs, and looks for every file that the server told of; prints both.

    Returns:
        Whether nothing was lost.
    """
    jobs = {e["job"]: "" for e in entries if "job" in e}
    made = {(e["of"], e["number"], e["file"], e["size"]) for e in entries if "file" in e}
    early = len(made)
    until = time.monotonic() + seconds
    for job in jobs:
        with suppress(NoServerError):
            while (state := client.status(job)["state"]) != "done" and time.monotonic() < until:
                if state in ("failed", "paused", "cancelled"):
                    client.resume(job)
                time.sleep(0.2)
            jobs[job] = state
            made |= {
                (job, file["number"], file["hash"], file["size"])
                for file in client.status(job)["files"]
            }
    lost = sum(not _is_held(client, hash, size) for hash, size in {m[2:] for m in made})
    changed = len(made) - len({(job, number) for job, number, _, _ in made})
    states = Counter(jobs.values())
    print(
        f"{len(jobs)} jobs: {dict(states)}; {len(made)} frames, {early} of them told of while "
        f"processes died: {lost} lost, {changed} changed"
    )
    troubles = Counter(e["trouble"] for e in entries if "trouble" in e)
    failures = Counter(e["failed"] for e in entries if "failed" in e)
    print(f"refusals that well-behaved clients got: {dict(troubles)}")
    print(f"jobs that failed and were resumed: {dict(failures)}")
    return not lost and not changed and set(states) == {"done"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--careless", type=int, default=20)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    with careless_home() as folder:
        make_character(folder / "soak.character")
        with Server(folder) as server:
            context = multiprocessing.get_context("spawn")
            until = time.monotonic() + 60 * options.minutes
            numbers = list(range(1, options.clients + 1))
            groups = [
                context.Process(target=well_behaved_group, args=(folder, numbers[i::GROUPS], until))
                for i in range(min(GROUPS, len(numbers)))
            ]
            groups.append(context.Process(target=attentive, args=(folder, until)))
            for group in groups:
                group.start()
            bad = context.Process(
                target=keep_careless, args=(folder, options.careless, options.seed, until)
            )
            bad.start()
            with Client("soak", 120.0) as client:
                kills = disturb(server, client, options.kills, until, random.Random(options.seed))
                bad.join()
                for group in groups:
                    group.join()
                entries = read_diaries(folder)
                report_answers(entries, kills, server)
                whole = report_work(client, entries, 600.0)
            report_server(server)
        sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
