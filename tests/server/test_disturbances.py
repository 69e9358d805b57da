"""The server with real workers: jobs through whatever happens to the processes that do them."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from performer_faces import film_scan
from reenact import protocol
from reenact.client import ServerError
from reenact.protocol import CHUNK, File
from running_server import (
    FRAMES,
    QUICK,
    Server,
    finish,
    inputs,
    kill_worker,
    render_task,
    same_track,
    solve_task,
    wait_for,
    wait_for_progress,
)

from core.media.read import open_clip
from core.personalize.character import load_character
from server.blobs import file_path
from server.cli.reporting import Report
from server.frontend.transfers import Disk
from server.jobs import registry
from server.jobs.common import Context

pytestmark = pytest.mark.timeout(600)


def test_each_gpu_has_its_workers(
    own_server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: 1)'\necho 'GPU 1: A (UUID: 2)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own_server.start()
    with own_server.client() as client:
        task = solve_task(client, folder)
        for steps in (300, 301, 302):
            client.submit(dataclasses.replace(task, steps=steps))
        wait_for(
            lambda: sorted(j["state"] for j in client.jobs()) == ["queued"] + 2 * ["running"],
            30,
            "two at once",
        )
        workers = client.ask(protocol.Health())["workers"]
        assert sorted(workers) == ["long 0", "long 1"]
        for name, facts in workers.items():
            environment = Path(f"/proc/{facts['pid']}/environ").read_text()
            assert f"CUDA_VISIBLE_DEVICES={name[-1]}\0" in environment


def test_a_killed_worker_costs_nothing_but_time(
    own_server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    own_server.start()
    with own_server.client() as client:
        job = client.submit(solve_task(client, folder))
        wait_for_progress(client, job, "solving")
        kill_worker(client)
        status = finish(client, job)
        assert status["state"] == "done", status
        track = same_track(client, job, local, tmp_path)
        said = [e["text"] for e in client.events(job) if e["type"] == "note"]
        assert any(t.startswith("the worker died at solving (signal 9") for t in said)

        drawing = client.submit(render_task(client, folder, track))
        wait_for(lambda: client.status(drawing)["files"], 60, "a frame")
        before = client.status(drawing)["files"]
        kill_worker(client)
        assert finish(client, drawing)["state"] == "done"
        after = client.status(drawing)["files"]
        assert [f for f in after if f in before] == before
        assert len(after) == FRAMES
        told = [e["number"] for e in client.events(drawing) if e["type"] == "file"]
        assert len(told) == len(set(told)) == FRAMES


def test_the_front_end_is_killed_and_jobs_go_on(
    own_server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    own_server.start()
    with own_server.client() as client:
        job = client.submit(solve_task(client, folder))
        wait_for_progress(client, job, "solving")
        worker = client.ask(protocol.Health())["workers"]["long"]["pid"]
        own_server.kill()
        own_server.start()
        assert finish(client, job)["state"] == "done"  # the client found the new port
        same_track(client, job, local, tmp_path)
        wait_for(lambda: not Path(f"/proc/{worker}").exists(), 30, "the orphan's end")
        second = client.submit(solve_task(client, folder, steps=4))
        wait_for_progress(client, second, "solving")
        assert own_server.stop() == 0  # SIGTERM: the step is finished, the job kept
        own_server.start()
        assert finish(client, second)["state"] == "done"


def test_a_job_at_which_workers_die_fails_with_the_reason(own_server: Server, folder: Path) -> None:
    own_server.start()
    with own_server.client() as client:
        job = client.submit(solve_task(client, folder, steps=2))
        for death in range(1, 4):
            wait_for(
                lambda: client.ask(protocol.Health())["workers"].get("long", {}).get("job"),
                60,
                "a worker",
            )
            kill_worker(client)
            wait_for(
                lambda death=death: sum(e["type"] == "note" for e in client.events(job)) == death,
                60,
                "its death",
            )
        status = finish(client, job)
        assert status["state"] == "failed"
        assert "died 3 times at the start (signal 9" in status["reason"]
        client.resume(job)  # the artist insists
        assert finish(client, job)["state"] == "done"


def test_damage_in_the_store_is_found_and_mended(
    own_server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    own_server.start()
    with own_server.client() as client:
        task = solve_task(client, folder)
        damage(file_path(own_server.folder / "store", task.plate.files[2].hash))
        job = client.submit(task)
        wait_for(lambda: client.status(job)["missing"], 60, "the finding")
        assert client.status(job)["missing"] == [task.plate.files[2].hash]
        client.send_clip(inputs(folder)[1], range(1001, 1001 + FRAMES))
        assert finish(client, job)["state"] == "done"
        (made,) = client.status(job)["files"]
        damage(file_path(own_server.folder / "store", made["hash"]))
        with pytest.raises(ServerError):
            client.receive([(File(made["hash"], made["size"]), tmp_path / "a.latents")])
        assert not (tmp_path / "a.latents").exists()
        assert finish(client, job)["state"] == "done"  # it was computed again
        same_track(client, job, local, tmp_path)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    os.chmod(path, 0o644)
    path.unlink()  # a job's folder may hold the same inode
    path.write_bytes(content)


def test_a_worker_killed_in_tuning_gives_the_same_character(
    own_server: Server, tmp_path: Path
) -> None:
    pattern = film_scan(tmp_path, 18)
    # Nearly all frames are trained on: each that is held out is drawn at every evaluation.
    task = protocol.Personalize(
        protocol.Clip(), "anna", "nobody", count=16, steps=6, refine=1, batch=2, resolution=128
    )
    context = Context(
        Report(machine=True),
        clips={"scan": open_clip(pattern)},
        outputs={"character": tmp_path / "local.character"},
    )
    registry.run_task(task, context)
    own_server.start()
    with own_server.client() as client:
        clip = client.send_clip(pattern, range(1, 19))
        job = client.submit(dataclasses.replace(task, scan=clip))
        wait_for_progress(client, job, "tuning", 2)
        kill_worker(client)
        status = finish(client, job)
        assert status["state"] == "done", status
        (made,) = [f for f in status["files"] if f["name"] == "character"]
        client.receive([(File(made["hash"], made["size"]), tmp_path / "served.character")])
        assert [c["name"] for c in client.hello()["characters"]] == ["anna"]
    ours, theirs = (load_character(tmp_path / f"{n}.character") for n in ("served", "local"))
    assert torch.equal(ours.anchors, theirs.anchors)
    for name, tensor in ours.generator.state_dict().items():
        assert torch.equal(tensor, theirs.generator.state_dict()[name]), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_said_and_costs_nothing(
    small_disk: Path, folder: Path, local: Path, tmp_path: Path
) -> None:
    running = Server(small_disk).start()
    try:
        with running.client() as client:
            task = solve_task(client, folder)
            render = render_task(client, folder, local)
            ballast = small_disk / "ballast"

            def fill(leave: int) -> None:
                ballast.unlink(missing_ok=True)
                free = shutil.disk_usage(small_disk).free
                with ballast.open("wb") as file:
                    file.write(bytes(max(free - leave, 0)))

            big = tmp_path / "big.mov"
            big.write_bytes(np.random.default_rng(5).bytes(8 * CHUNK))
            fill(2 * CHUNK)
            with pytest.raises(ServerError, match="disk is full"):
                client.send([big])
            fill(300_000)
            drawing = client.submit(render)
            wait_for(lambda: client.status(drawing)["state"] == "paused", 100, "the pause")
            status = client.status(drawing)
            assert "resume the job" in status["reason"]
            assert 0 < len(status["files"]) < FRAMES  # those are safe
            ballast.unlink()
            client.resume(drawing)
            job = client.submit(task)
            assert finish(client, drawing)["state"] == "done"
            assert status["files"] == [
                f for f in client.status(drawing)["files"] if f in status["files"]
            ]
            assert finish(client, job)["state"] == "done"
            same_track(client, job, local, tmp_path)
            (sent,) = client.send([big])
            client.receive([(sent, tmp_path / "back.mov")])
            assert (tmp_path / "back.mov").read_bytes() == big.read_bytes()
    finally:
        running.kill()


def test_a_chunk_that_fits_in_part_is_refused(small_disk: Path) -> None:
    for name in ("files", "partial"):
        (small_disk / name).mkdir()
    content = np.random.default_rng(7).bytes(2 * CHUNK)
    sha = hashlib.blake2b(content, digest_size=32).hexdigest()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - CHUNK - CHUNK // 2))
    disk = Disk(small_disk, lambda task: None)
    first, second = (protocol.Upload(sha, 2 * CHUNK, i * CHUNK) for i in range(2))
    assert disk.write(first, content[:CHUNK]) == (CHUNK, None)
    with pytest.raises(OSError, match="No space"):
        disk.write(second, content[CHUNK:])
    assert not file_path(small_disk, sha).exists()
    ballast.unlink()
    received, end = disk.write(second, content[CHUNK:])
    assert received == 2 * CHUNK
    assert end is not None
    end()
    assert file_path(small_disk, sha).read_bytes() == content
    disk.close()


def test_shared_storage_is_read_in_place(tmp_path: Path, folder: Path, local: Path) -> None:
    running = Server(tmp_path / "home", "--allow-path", str(folder)).start()
    try:
        with running.client() as client:
            character, pattern = inputs(folder)
            path = protocol.Clip(path=pattern, name=pattern)
            job = client.submit(protocol.Solve(path, File(path=str(character)), **QUICK))
            assert finish(client, job)["state"] == "done"
            same_track(client, job, local, tmp_path)
            assert client.ask(protocol.Health())["store_bytes"] < 1 << 20  # the track alone
            outside = tmp_path / "out.png"
            shutil.copyfile(pattern.replace("####", "1001"), outside)
            (folder / "link.1001.png").symlink_to(outside)
            with pytest.raises(ServerError, match="link leads out"):
                client.submit(
                    protocol.Solve(
                        protocol.Clip(path=str(folder / "link.####.png")), File(path=str(character))
                    )
                )
            (folder / "link.1001.png").unlink()
    finally:
        assert running.stop() == 0
