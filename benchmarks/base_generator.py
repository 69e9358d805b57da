"""The base generator's gates on 512 held-out draws of the performer.

    python benchmarks/base_generator.py FOLDER [--sheet pairs.png]

FOLDER is that of `core.synthetic.distill`. Prints, for the rendered targets and for what the
generator makes of the same draws: how well the face mesh's measures follow the driving parameters
(correlations), the landmark error in percent of the distance between the outer eye corners, and
PSNR of the picture and of the eyes. With an encoder in the folder, also its reconstruction beside
those of direct optimisation of w, in dB and milliseconds.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from performer_signals import correlate

from core.face.network import aligned_roi, crop_roi, face_mesh, to_picture
from core.face.perceptual import embedded_metric
from core.generator.storage import load_generator
from core.media.write import write_png
from core.personalize.inversion import invert
from core.personalize.tuning import psnr
from core.synthetic.base import WEncoder
from core.synthetic.distill.evaluation import generate, pair_sheet, score
from core.synthetic.distill.pictures import Pictures, load_pictures
from core.synthetic.parameters import from_normal

SIZE = 256  # pictures are enlarged to this before the mesh network sees them


def meshes(pictures: torch.Tensor) -> np.ndarray:
    """Landmarks `[N, 478, 3]` of aligned pictures `[N, 3, R, R]` in [-1, 1], px of 256."""
    found = []
    for part in pictures.split(32):
        large = F.interpolate(part / 2 + 0.5, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
        roi = aligned_roi(SIZE, len(part))
        with torch.no_grad():
            found.append(to_picture(face_mesh()(crop_roi(large, roi)).landmarks, roi))
    return torch.cat(found).numpy()


def encoder_rows(folder: Path, generator: torch.nn.Module, data: Pictures, count: int = 16) -> None:
    size = generator.architecture.resolution
    encoder = WEncoder(size)
    tensors = load_file(folder / "encoder.safetensors")
    encoder.load_state_dict({k: v.float() for k, v in tensors.items()})
    encoder = encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    plain = torch.zeros(count, dtype=torch.bool)
    target, _, _ = data.batch(torch.arange(count), plain, size)
    metric = embedded_metric()
    encoder(target)
    for name, arguments in {
        "encoder": {},
        "encoder, 70 steps": {"encoder": encoder, "steps": 70},
        "no encoder, 200 steps": {"steps": 200},
    }.items():
        start = time.perf_counter()
        if name == "encoder":
            w = encoder(target)
        else:
            w = invert(generator, target, metric=metric, **arguments).w
        seconds = time.perf_counter() - start
        with torch.no_grad():
            made = generator.synthesis(w).clamp(-1, 1)
        decibels = float(psnr(made, target).mean())
        print(f"{name:22s} {decibels:.2f} dB, {seconds / count * 1e3:.1f} ms a picture")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    generator, header = load_generator(options.folder / "base.safetensors")
    generator.requires_grad_(False)
    held_out = load_pictures([options.folder / "shard0000.npz"])
    params = from_normal(held_out.normals.numpy().astype(np.float64))
    size = generator.architecture.resolution
    targets = held_out.pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    results = torch.cat([r for _, r in generate(generator, held_out, size)])
    seen = {"targets": meshes(targets), "results": meshes(results)}
    rows = {name: correlate(landmarks, params) for name, landmarks in seen.items()}
    print(f"{len(params)} held-out draws, {size} px, recipe {header.get('recipe')}")
    print(f"{'':12s}{'targets':>9s}{'results':>9s}{'loss':>8s}")
    for name in rows["targets"]:
        a, b = rows["targets"][name], rows["results"][name]
        print(f"{name:12s}{a:9.3f}{b:9.3f}{a - b:8.3f}")
    span = np.linalg.norm(seen["targets"][:, 263] - seen["targets"][:, 33], axis=1)
    error = np.linalg.norm((seen["results"] - seen["targets"])[..., :2], axis=2).mean(1) / span
    print(f"landmark error {100 * error.mean():.2f} % of the inter-ocular distance")
    print(" ".join(f"{k} {v:.2f} dB" for k, v in score(generator, held_out, size).items()))
    if (options.folder / "encoder.safetensors").exists():
        encoder_rows(options.folder, generator, held_out)
    if options.sheet:
        write_png(options.sheet, pair_sheet(generator, held_out, 40))


if __name__ == "__main__":
    main()
