"""A client in JavaScript that knows the server from `docs/protocol.md` alone.

Its programs are in `tests/server/node_client`. What the document does not say, they do not know.
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_packages import node_program
from reenact import protocol
from reenact.protocol import File, Render
from running_server import Server, inputs

from core.media.numbering import frame_path
from core.media.read import open_clip
from server.cli.reporting import Report
from server.frontend import gateway
from server.jobs import registry
from server.jobs.common import Context

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

SOURCES = Path(__file__).parent / "node_client"
NUMBERS = (1002, 1003)  # of the track's six frames
NAME = "track"
VECTORS = ("", "abc")
LARGE = 3 * protocol.CHUNK + 5  # bytes of a file whose upload is interrupted


@pytest.fixture(scope="module")
def report(
    running: Server, folder: Path, local: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the client tells of one whole round with a server."""
    tmp_path = tmp_path_factory.mktemp("node")
    node, program = node_program(SOURCES, tmp_path / "client")
    character, pattern = inputs(folder)
    (tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(LARGE))
    given = {
        "large": str(tmp_path / "large"),
        "character": str(character),
        "track": str(local),
        "plate": {number: frame_path(pattern, number) for number in NUMBERS},
        "plate_name": pattern,
        "name": NAME,
        "out": str(tmp_path / "frames"),
        "vectors": VECTORS,
        "largest_frame": gateway.FRAME_BYTES,
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    done = subprocess.run(
        [node, "round.js", str(tmp_path / "given.json")],
        cwd=program,
        env={"PATH": str(Path(node).parent), "REENACT_HOME": str(running.folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_it_knows_what_files_are_called(report: dict[str, Any]) -> None:
    for text, hash in report["vectors"].items():
        assert hash == hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    assert report["hello"]["version"] == protocol.VERSION


def test_its_upload_goes_on_after_a_crash(report: dict[str, Any]) -> None:
    chunk = protocol.CHUNK
    # What is not complete counts one chunk less than was received: that one is sent again.
    assert report["held"] == [0, chunk, 2 * chunk, chunk, LARGE]
    assert report["resumed"] == [2 * chunk, 3 * chunk, LARGE]


def test_its_job_is_done(report: dict[str, Any]) -> None:
    assert report["missing"] == []
    assert report["again"] is True  # the same task is the same job
    states = [e["state"] for e in report["events"] if e["type"] == "state"]
    assert states == ["queued", "running", "done"]
    numbers = [e["n"] for e in report["events"]]
    assert numbers == sorted(set(numbers))
    assert report["status"]["state"] == "done"
    (result,) = (e for e in report["events"] if e["type"] == "result")
    assert result["frames"] == len(NUMBERS)


def test_its_frames_are_those_of_the_command_line_and_of_python(
    report: dict[str, Any], running: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    character, pattern = inputs(folder)
    plate = open_clip(pattern, *NUMBERS)
    out = str(tmp_path / "local.####.exr")
    context = Context(
        Report(machine=True),
        {"track": local, "character": character},
        {"plate": plate},
        {"frame": Path(out)},
    )
    registry.run_task(Render(File(), File(), name=NAME), context)
    with running.client() as client:
        track, face = client.send([local, character])
        clip = client.send_clip(pattern, NUMBERS)
        job = client.submit(Render(track, face, clip, name=NAME))
        assert job == report["status"]["id"]  # the same task from another client
        manifest = client.collect(job, tmp_path / "shots", "anna")
    assert sorted(report["frames"]) == [str(number) for number in NUMBERS]
    for number, frame in report["frames"].items():
        assert frame["hash"] == protocol.file_hash(frame["path"])[0]
        content = Path(frame["path"]).read_bytes()
        for there in (out, manifest["pattern"]):
            assert Path(frame_path(there, int(number))).read_bytes() == content


def test_a_repeat_is_no_second_request(report: dict[str, Any]) -> None:
    assert report["repeats"] == ["answered"] * protocol.CREDIT
    assert report["refusedCredit"] == 0
    assert report["sameId"] == "number"


def test_it_is_refused_with_codes(report: dict[str, Any]) -> None:
    assert report["refused"] == {
        "an unknown file": "no_such_file",
        "a name for a hash": "malformed",
        "an unknown field": "malformed",
        "an unknown request": "malformed",
        "an unknown field of a header": "malformed",
        "an unknown job": "no_such_job",
        "an unknown kind": "unknown_kind",
        "another version": "version",
        "events before the first one": "malformed",
        "a wait below 0": "malformed",
        "a chunk of another length": "malformed",
        "a path and a size": "malformed",
        "a path elsewhere": "path",
        "unknown layers": "bad_value",
        "too much grain": "bad_value",
        "a movie of no plate": "bad_value",
        "a limit in words": "bad_value",
        "a batch of 0": "bad_value",
        "a finish of what is no training": "nothing_to_keep",
    }
    assert report["verified"] == {"whole": False}
    assert report["pastTheEnd"] == 0


def test_what_can_not_be_read_has_no_id(report: dict[str, Any]) -> None:
    assert report["unnamed"] == {
        "no JSON": "malformed",
        "a bad id": "malformed",
        "too many parts": "malformed",
        "the largest frame": "too_large",
    }
    assert report["afterTooLarge"] == ["answered", None]


def test_a_refused_key_needs_a_new_socket(report: dict[str, Any]) -> None:
    assert report["revoked"] == ["no_server", "no_server", "no_server", "answered"]
    assert report["fromAfar"] == "answered"


def test_it_says_goodbye(report: dict[str, Any], running: Server) -> None:
    with running.client() as client:
        clients = client.ask(protocol.Health())["clients"]
    assert clients <= report["clients"]  # this one has taken its place
