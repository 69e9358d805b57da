"""The character's file: what comes back, what it weighs, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import ROOT, SUPPORT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.base import container
from core.face.surface import Atlas
from core.generator import Architecture, Generator
from core.generator.storage import save_generator
from core.personalize.character import (
    PLAIN_VERSION,
    VERSION,
    Character,
    CharacterInfo,
    CharacterNotWrittenError,
    NoConsentError,
    NotACharacterError,
    character_hash,
    has_detail,
    load_character,
    save_character,
    write_with_detail,
)
from core.personalize.detail import Detail, DetailInfo, DetailNetwork, DetailShape

CONSENT = {"who": "B. Ackerley", "when": "2026-11-22", "scope": "Feature film, all shots"}


def a_character(anchors: int = 5) -> Character:
    torch.manual_seed(0)
    channels = {4: 32, 8: 32, 16: 32, 32: 16}
    generator = Generator(Architecture(32, channels, mapping_layers=2)).eval()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.1)
    info = CharacterInfo(
        name="Béatrice",
        consent=CONSENT,
        base_hash="ab" * 32,
        metric="embedded-2",
        alignment={"centre_sigma": 0.033, "axes_sigma": 0.1},
        source="/scans/b.mov",
        selected=[1001 + 7 * i for i in range(anchors)],
        losses=[{"step": 10.0, "loss": 0.25}],
        created="2026-11-22T18:00:00+00:00",
    )
    thumbnail = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return Character(
        generator, torch.randn(anchors, 512), torch.randn(anchors, 86, 3), thumbnail, info
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "b.character"
    save_character(path, a_character())
    return path


def test_comes_back(saved: Path) -> None:
    before, after = a_character(), load_character(saved)
    assert after.info == before.info
    assert torch.equal(after.anchors, before.anchors)
    assert torch.equal(after.keypoints, before.keypoints)
    assert np.array_equal(after.thumbnail, before.thumbnail)
    assert not any(p.requires_grad for p in after.generator.parameters())
    with torch.no_grad():
        wanted, got = (c.generator.synthesis(before.anchors) for c in (before, after))
    # What half precision may cost: of pictures that are reconstructed at 35 dB, below 0.01 dB.
    peak = 10 * torch.log10(4 / (wanted - got).square().mean())
    lost = 10 * np.log10(1 + 10 ** (-(float(peak) - 35) / 10))
    assert lost < 0.01


def test_half_precision_only_where_it_is_enough(tmp_path: Path) -> None:
    """Weights beyond its range or below its digits stay as they are."""
    made = a_character()
    huge, tiny = made.generator.mapping.fc0, made.generator.synthesis.b8.conv0
    huge.weight.data.mul_(1e5)
    tiny.weight.data.mul_(1e-7)
    path = tmp_path / "b.character"
    save_character(path, made)
    after = load_character(path).generator.state_dict()
    for name in ("mapping.fc0.weight", "synthesis.b8.conv0.weight"):
        assert torch.equal(after[name], made.generator.state_dict()[name])
    stored = load_file(path)
    assert stored["generator.synthesis.b16.conv0.weight"].dtype == torch.float16


def test_same_character_same_hash(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.character"
    save_character(again, load_character(saved))
    assert character_hash(again) == character_hash(saved)


def test_hash_follows_contents(saved: Path, tmp_path: Path) -> None:
    made = a_character()
    other = tmp_path / "other.character"
    moved = made.anchors.clone()
    moved[0, 0] += 1e-3
    hashes = {character_hash(saved)}
    for change in (
        {"anchors": moved},
        {"info": replace(made.info, consent={**CONSENT, "scope": "one shot"})},
        {"thumbnail": 255 - made.thumbnail},
    ):
        save_character(other, replace(made, **change))
        hashes.add(character_hash(other))
    assert len(hashes) == 4


@pytest.mark.parametrize("consent", [{}, {**CONSENT, "who": " "}, {"who": "B", "scope": "all"}])
def test_no_character_without_consent(tmp_path: Path, consent: dict[str, str]) -> None:
    made = a_character()
    with pytest.raises(NoConsentError, match="who agreed"):
        save_character(
            tmp_path / "b.character", replace(made, info=replace(made.info, consent=consent))
        )
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_not_written(saved: Path) -> None:
    made, before = a_character(), saved.read_bytes()
    nan = made.anchors.clone()
    nan[1, 1] = float("nan")
    for change in (
        {"anchors": nan},
        {"anchors": made.anchors[:3]},
        {"keypoints": made.keypoints[:, :65]},
        {"thumbnail": made.thumbnail.astype(np.float32)},
        {"info": replace(made.info, selected=[1, 2])},
        {"info": replace(made.info, losses=[{"loss": float("nan")}])},
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            save_character(saved, replace(made, **change))
    assert saved.read_bytes() == before


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    cuts = [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]
    for cut in cuts:
        saved.write_bytes(whole[:cut])
        with pytest.raises(NotACharacterError):
            load_character(saved)
        with pytest.raises(NotACharacterError):
            character_hash(saved)


def test_every_changed_byte_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for at in np.random.default_rng(1).integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(at % 8)
        saved.write_bytes(changed)
        with pytest.raises(NotACharacterError):
            load_character(saved)


def forged(path: Path, header: dict[str, str], **tensors: torch.Tensor) -> None:
    """A file whose digest is right for contents that are not."""
    with safe_open(path, "pt") as file:
        entries = {**file.metadata(), **header}
    contents = {**load_file(path), **tensors}
    entries["sha256"] = container.digest(entries, {k: v.numpy() for k, v in contents.items()})
    save_file(contents, path, entries)


def some_detail(base: int = 32, resolution: int = 64, features: int = 16) -> Detail:
    torch.manual_seed(1)
    network = DetailNetwork(DetailShape(base, resolution, features)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn_like(parameter) / 10)
    rng = np.random.default_rng(1)
    triangles = rng.integers(0, 504, (900, 3)).astype(np.int32)
    reference = rng.integers(0, 256, (256, 256)).astype(np.uint8)
    atlas = Atlas(rng.random((478, 3)).astype(np.float32), triangles, reference)
    return Detail(network, atlas, DetailInfo("/scans/b.mov", 5, [{"step": 5.0, "psnr": 31.5}]))


def test_detail_comes_back_and_the_hash_stays(saved: Path, tmp_path: Path) -> None:
    """Tracks name their character by its hash: those of before fit the character with detail."""
    plain, path, detail = character_hash(saved), tmp_path / "sharp.character", some_detail()
    with safe_open(saved, "pt") as file:
        header = file.metadata()
    assert header["version"] == str(PLAIN_VERSION)
    assert header["sha256"] == plain, "a file without detail is as older versions wrote it"
    write_with_detail(saved, path, detail)
    assert character_hash(path) == plain
    assert (has_detail(saved), has_detail(path)) == (False, True)
    after = load_character(path)
    assert after.hash == plain
    assert (after.resolution, load_character(saved).resolution) == (64, 32)
    assert after.detail is not None
    assert after.detail.info == detail.info
    assert np.array_equal(after.detail.atlas.mean, detail.atlas.mean)
    assert np.array_equal(after.detail.atlas.triangles, detail.atlas.triangles)
    assert after.detail.atlas.reference is not None
    assert np.array_equal(after.detail.atlas.reference, detail.atlas.reference)  # type: ignore[arg-type]
    assert after.detail.can_be_mixed(after.detail)
    for name, tensor in detail.network.state_dict().items():
        found = after.detail.network.state_dict()[name]
        torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-4)
    write_with_detail(path, path, some_detail(resolution=128))
    assert load_character(path).resolution == 128
    save_character(path, replace(after, detail=None))
    assert character_hash(path) == plain
    assert not has_detail(path)


def test_the_first_files_with_detail_open(saved: Path, tmp_path: Path) -> None:
    """Version 4 has no picture of the skin: meshes stay as the network finds them."""
    path, detail = tmp_path / "d.character", some_detail()
    older = replace(detail, atlas=replace(detail.atlas, reference=None))
    write_with_detail(saved, path, older)
    forged(path, {"version": "4"})
    after = load_character(path).detail
    assert after is not None
    assert after.atlas.reference is None
    assert not after.can_be_mixed(detail)
    assert after.can_be_mixed(older)


@pytest.mark.parametrize("of", ["another size", "another generator"])
def test_detail_of_another_generator_is_refused(saved: Path, tmp_path: Path, of: str) -> None:
    path = tmp_path / "wrong.character"
    other = some_detail(64, 128) if of == "another size" else some_detail(features=8)
    write_with_detail(saved, path, other)
    with pytest.raises(NotACharacterError, match="detail belongs to another generator"):
        load_character(path)


def test_forged_detail_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.character"
    write_with_detail(saved, path, some_detail())
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["detail"])
    whole = path.read_bytes()

    def refused(match: str, header: dict[str, str], **tensors: torch.Tensor) -> None:
        path.write_bytes(whole)
        forged(path, header, **{f"detail.{n.replace('__', '.')}": t for n, t in tensors.items()})
        with pytest.raises(NotACharacterError, match=match):
            load_character(path)

    shape = described["shape"]
    for wrong in ({"resolution": 1 << 30}, {"features": 1 << 40}, {"base": 48}, {"w_dim": "512"}):
        refused("damaged", {"detail": json.dumps(described | {"shape": shape | wrong})})
    refused("damaged", {"detail": json.dumps({"shape": shape})})
    refused("damaged", {"detail": "[" * 1000})
    refused("tensors are not those", {}, atlas__mean=torch.zeros(477, 3))
    refused("no numbers", {}, atlas__mean=torch.full((478, 3), torch.nan))
    for corner in (-1, 504):
        triangles = torch.full((900, 3), corner, dtype=torch.int32)
        refused("triangles", {}, atlas__triangles=triangles)
    refused("tensors are not those", {}, extra=torch.zeros(3))
    refused("atlas.reference is", {}, atlas__reference=torch.zeros(256, 256))
    refused("atlas.reference is", {}, atlas__reference=torch.zeros(255, 256, dtype=torch.uint8))


def test_newer_version_says_so(saved: Path) -> None:
    forged(saved, {"version": str(VERSION + 1)})
    with pytest.raises(NotACharacterError, match="newer Reenact"):
        load_character(saved)
    forged(saved, {"version": str(PLAIN_VERSION - 1)})
    with pytest.raises(NotACharacterError, match="older Reenact"):
        load_character(saved)
    forged(saved, {"version": "two"})
    with pytest.raises(NotACharacterError, match="no version"):
        load_character(saved)


def test_forged_contents_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    with safe_open(saved, "pt") as file:
        entries = file.metadata()
    info, shape = json.loads(entries["info"]), json.loads(entries["architecture"])
    headers = [
        {"info": "{"},
        {"info": "[]"},
        {"info": json.dumps({**info, "surprise": 1})},
        {"info": json.dumps({**info, "selected": [1]})},
        {"architecture": json.dumps({**shape, "w_dim": 10**12})},  # no memory is taken for it
        {"architecture": json.dumps({**shape, "mapping_layers": 10**9})},
        {"architecture": json.dumps({**shape, "channels": {"4": 10**9}})},
    ]
    for header in headers:
        saved.write_bytes(whole)
        forged(saved, header)
        with pytest.raises(NotACharacterError, match="damaged"):
            load_character(saved)
    for tensors in (
        {"anchors": torch.zeros(5, 512, dtype=torch.int32)},
        {"keypoints": torch.full((5, 86, 3), float("inf"))},
        {"generator.synthesis.more": torch.zeros(1)},
    ):
        saved.write_bytes(whole)
        forged(saved, {}, **tensors)
        with pytest.raises(NotACharacterError, match="damaged"):
            load_character(saved)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    base, text = tmp_path / "base.safetensors", tmp_path / "text.character"
    save_generator(base, a_character().generator)
    text.write_text("no tensors here")
    pickled = tmp_path / "pickle.character"
    torch.save({"anchors": torch.zeros(1)}, pickled)
    for path in (base, text, pickled, tmp_path / "absent.character", tmp_path):
        with pytest.raises(NotACharacterError):
            load_character(path)


def test_failed_write_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    limit = f"""
import resource, sys
sys.path[:0] = {[str(SUPPORT), str(Path(__file__).parent), str(ROOT)]!r}
import signal
from test_character import a_character
from core.personalize.character import CharacterNotWrittenError, save_character
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))  # as a full disk does: some bytes fit
try:
    save_character({str(saved)!r}, a_character())
except CharacterNotWrittenError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True)
    assert "could not be written" in done.stdout, done.stderr
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_kill_while_writing_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    script = f"""
import os, signal, sys
sys.path[:0] = {[str(SUPPORT), str(Path(__file__).parent), str(ROOT)]!r}
from test_character import a_character
from core.base import files
from core.personalize.character import save_character
os.fsync = lambda handle: os.kill(os.getpid(), {int(signal.SIGKILL)})
save_character({str(saved)!r}, a_character(anchors=6))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert saved.read_bytes() == before


def test_no_rights_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CharacterNotWrittenError, match="Check the free space"):
        save_character(tmp_path / "file" / "b.character", a_character())
