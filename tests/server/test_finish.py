"""Trainings that are stopped early and kept, through kills of everything that works on them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from performer_faces import film_scan
from reenact import protocol
from reenact.client import Client, ServerError
from reenact.protocol import File
from running_server import (
    Server,
    finish,
    inputs,
    kill_worker,
    solve_task,
    wait_for,
    wait_for_progress,
)

from core.face import perceptual
from core.face.aligned_clip import align_clip
from core.media.read import open_clip
from core.personalize.character import load_character
from core.personalize.inversion import invert
from core.personalize.tuning import psnr, reconstruct
from core.synthetic.base import base_encoder, base_generator

pytestmark = pytest.mark.timeout(900)

STEPS = 16  # of the character, asked for


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return film_scan(tmp_path_factory.mktemp("scan"), 24)


def facts(client: Client, job: str) -> dict[str, Any]:
    """The last result of a job."""
    return [e for e in all_events(client, job) if e["type"] == "result"][-1]


def all_events(client: Client, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while events := client.events(job, found[-1]["n"] if found else 0):
        found += events
    return found


def made(client: Client, job: str, name: str, path: Path) -> Path:
    (file,) = [f for f in client.status(job)["files"] if f["name"] == name]
    client.receive([(File(file["hash"], file["size"]), path)])
    return path


def gain(path: Path, scan: str) -> float:
    """What a character gains over its base on the scan's frames that it was not trained on, dB."""
    character, base = load_character(path), base_generator()
    clip = align_clip(open_clip(scan), base.architecture.resolution)
    others = [i for i, n in enumerate(clip.face.numbers) if n not in character.info.selected]
    pictures = clip.pictures[others[::2]]
    metric = perceptual.metric(None, "cpu")
    w = invert(base, pictures, base_encoder(), metric=metric, steps=1).w
    before, after = (
        float(psnr(reconstruct(g, w), pictures).mean()) for g in (base, character.generator)
    )
    return after - before


def test_a_character_is_stopped_early_and_kept_and_goes_on(
    own_server: Server, scan: str, tmp_path: Path
) -> None:
    """Between the wish and the end worker and server are killed."""
    own_server.start()
    with own_server.client() as client:
        clip = client.send_clip(scan, range(1, 25))
        task = protocol.Personalize(
            clip, "anna", "nobody", count=8, steps=STEPS, refine=1, batch=4, resolution=128
        )
        job = client.submit(task)
        with pytest.raises(ServerError, match="Nothing is trained yet") as refused:
            client.finish(job)
        assert refused.value.code == "nothing_to_keep"
        wait_for_progress(client, job, "tuning", 6)
        client.finish(job)
        kill_worker(client)
        wish = client.status(job)["finish"]
        assert 6 <= wish < STEPS
        client.finish(job)  # whoever asks again asks for the same
        assert client.status(job)["finish"] == wish
    own_server.kill()
    own_server.start()
    with own_server.client() as client:
        status = finish(client, job)
        steps = status["finish"]
        assert status["state"] == "done", status
        assert wish <= steps < STEPS
        assert facts(client, job)["stopped_early"] is True
        assert facts(client, job)["steps"] == steps
        path = made(client, job, "character", tmp_path / "early.character")
        early = load_character(path).info
        assert (early.steps, early.asked_steps, early.stopped_early) == (steps, STEPS, True)
        assert early.losses[-1]["step"] == steps
        assert gain(path, scan) > 0.2
        # Who looks only now sees the whole curve.
        curves = {c["name"]: c["points"] for c in client.figures(job)}
        assert curves.keys() == {"loss", "psnr", "identity"}
        assert curves["loss"][0][0] <= 2
        assert curves["loss"][-1][0] == steps
        assert [x for x, _ in curves["psnr"]] == [e["step"] for e in early.losses]
        for name in ("psnr", "identity"):
            told = [e[name] for e in early.losses]
            assert [y for _, y in curves[name]] == pytest.approx(told)
            assert told[-1] > (told[0] if name == "psnr" else 0.5)
        # The same request says what it is an answer to, and begins nothing.
        client.finish(job)
        assert client.submit(task) == job
        assert client.status(job)["state"] == "done"
        assert client.status(job)["finish"] == steps
        notes = [e["text"] for e in all_events(client, job) if e["type"] == "note"]
        assert f"stopped early, as asked: {steps} of {STEPS} steps" in notes
        last = client.events(job)[-1]["n"]
        client.resume(job)
        status = finish(client, job)
        assert (status["state"], status["finish"]) == ("done", None)
        again = [e["done"] for e in all_events(client, job) if e.get("stage") == "tuning"]
        assert last
        after = again[len(again) - again[::-1].index(0) :]
        assert min(after) > steps  # it went on from there
        assert facts(client, job)["stopped_early"] is False
        whole = load_character(made(client, job, "character", tmp_path / "whole.character")).info
        assert (whole.steps, whole.stopped_early) == (STEPS, False)
        with pytest.raises(ServerError, match="It is whole"):
            client.finish(job)
        assert not (own_server.folder / "store" / "jobs" / job).exists()
    shown = subprocess.run(
        [sys.executable, "-m", "server.cli.main", "models", "inspect", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"steps            {steps}\n" in shown
    assert f"asked_steps      {STEPS}\n" in shown


def test_only_what_trains_can_be_kept(server: Server, folder: Path) -> None:
    with server.client() as client:
        job = client.submit(dataclasses.replace(solve_task(client, folder), steps=100))
        with pytest.raises(ServerError, match="Only what trains a character or a style"):
            client.finish(job)
        client.cancel(job)
        with pytest.raises(ServerError, match="doesn't know this job"):
            client.finish("nothing")
        character = client.send([inputs(folder)[0]])[0]
        task = protocol.Stylize(character, "drawn", program="sketch", steps=100_000)
        job = client.submit(task)
        wait_for_progress(client, job, "stylizing", 3)
        client.finish(job)
        client.cancel(job)  # who cancels does not want it any more
        wait_for(lambda: client.status(job)["state"] != "running", 60, "the end")
        status = client.status(job)
        if status["state"] == "cancelled":  # else it was whole before the wish to cancel came
            assert status["finish"] is None
            with pytest.raises(ServerError, match="cancelled already"):
                client.finish(job)
        client.delete(job)


def test_a_paused_training_is_finished(server: Server, folder: Path, tmp_path: Path) -> None:
    """What was stopped by Ctrl-C becomes a whole style without another step."""
    with server.client() as client:
        character = client.send([inputs(folder)[0]])[0]
        task = protocol.Stylize(character, "paused", program="sketch", steps=100_000)
        job = client.submit(task)
        wait_for_progress(client, job, "stylizing", 5)
        client.pause(job)
        wait_for(lambda: client.status(job)["state"] == "paused", 60, "the pause")
        client.finish(job)
        assert finish(client, job)["state"] == "done"
        assert facts(client, job)["stopped_early"]
        assert {c["name"] for c in client.figures(job)} >= {"loss", "psnr"}


def test_the_command_line_stops_early_and_keeps(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    character, _ = inputs(folder)
    output = tmp_path / "drawn.style"
    reenact = [sys.executable, "-m", "server.cli.main"]
    command = [*reenact, "style", str(character), "-o", str(output), "--program", "charcoal"]
    command += ["--steps", "100000", "--json"]
    environment = os.environ | {"REENACT_HOME": str(server.folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        lines = (json.loads(line) for line in first.stdout)
        next(line for line in lines if line.get("stage") == "stylizing" and line["done"] > 5)
        with server.client() as client:
            job = client.jobs()[0]["id"]
        subprocess.run([*reenact, "job", "finish", job], env=environment, check=True)
        rest = [*lines]
    assert first.returncode == 0
    result = rest[-1]["result"]
    assert result["stopped_early"] is True
    assert 5 <= result["steps"] < 100_000
    notes = [line["note"] for line in rest if "note" in line]
    assert any(f"`reenact job resume {job}` lets it go on" in note for note in notes)
    shown = subprocess.run(
        [*reenact, "inspect", str(output), "--json"], capture_output=True, text=True, check=True
    )
    style = json.loads(shown.stdout)["result"]
    assert (style["steps"], style["stopped_early"], style["complete"]) == (
        result["steps"],
        True,
        True,
    )
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"stopped early, after {result['steps']} steps" in again.stdout
    with server.client() as client:
        client.resume(job)
        wait_for_progress(client, job, "stylizing", result["steps"] + 1)
        client.cancel(job)
