"""What found directions move, beside what they should leave alone.

    python benchmarks/edits.py FOLDER [--character NAME.character] [--samples 768]

Directions of the embedded generator, and of a character: the given one, or 64 samples of one person
by the embedded generator. They are kept in FOLDER, with a sheet of each, so that the same line goes
on where it stopped.

Printed for each, on codes that nothing was fitted to:
- the table of what an amount of 1 moves, in units, and R^2 over amounts of -2 to 2;
- by how much an amount of 1 of smile raises the mouth corners against the middle of the upper lip,
  in percent of the distance between the outer eye corners, and what it does to yaw;
- in how many codes each direction's own measure rises with every step from -2 to 2;
- identity: the distance (embedded metric) of pictures at -1 and 1 from the one at 0, beside the
  distances between the scan's own pictures, or those between different people;
- of a character also identity as `reenact qc` measures it (proxy recogniser): the mean cosine with
  the five most similar of the scan's pictures, beside what these have with one another.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import people

from core.edit.directions import (
    AMOUNTS,
    TRUNCATION,
    Directions,
    DirectionSettings,
    facts,
    find_in_character,
    find_in_generator,
    load_directions,
    sample_p,
    save_directions,
    sheet,
    table,
)
from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_landmarks
from core.face.measures import measure
from core.face.perceptual import embedded_metric
from core.generator import Generator
from core.media.write import write_png
from core.personalize.character import Character, CharacterInfo, load_character
from core.quality.definitions import TOP
from core.synthetic.base import base_generator
from core.synthetic.distill.pictures import latents
from server.cli.reporting import Report

CODES = 12  # on which is measured
PAIRS = 48  # of pictures, for the spread


def pictures(generator: Generator, codes: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([generator.synthesis(part).clamp(-1, 1) for part in codes.split(8)])


def someone() -> Character:
    """64 samples of one person as anchors; nothing is tuned."""
    generator = base_generator()
    with torch.no_grad():
        anchors = generator.mapping(latents(people(64), torch.Generator().manual_seed(0)))
    info = CharacterInfo("samples of one person", {}, selected=list(range(64)))
    picture = np.zeros((8, 8, 3), np.uint8)
    return Character(generator, anchors, torch.zeros(64, 86, 3), picture, info, "0" * 64)


def embedded(drawn: Tensor) -> Tensor:
    """What the proxy recogniser knows pictures by, `[B, D]`."""
    embed = proxy_recogniser().embed
    return torch.cat(
        [embed(part, detect_landmarks(part).landmarks.detach()) for part in drawn.split(8)]
    )


def identity(who: Character, found: Directions, codes: Tensor) -> None:
    """Prints how similar edited pictures are to the scan, and the scan's to one another."""
    known = embedded(pictures(who.generator, who.anchors))
    own = (known @ known.T).fill_diagonal_(-1).topk(TOP).values.mean(1)
    low = float(own.quantile(0.05))
    print(f"  identity, cosine with the scan: its own {own.median():.4f} (median), {low:.4f} (5 %)")
    for amount in (0.0, 1.0, 2.0):
        moved = torch.cat(
            [
                codes + sign * amount * torch.from_numpy(direction.vector)
                for direction in found.directions.values()
                for sign in (-1, 1)
            ]
        )
        near = (embedded(pictures(who.generator, moved)) @ known.T).topk(TOP).values.mean(1)
        inside = 100 * float((near >= low).float().mean())
        print(f"  at +-{amount:g}: {near.median():.4f} (median), {inside:.0f} % within")


def rows(generator: Generator, found: Directions, codes: Tensor, own: Tensor) -> None:
    """Prints the figures; `own` are pictures of the scan, or of different people."""
    print(table(facts(found)))
    metric = embedded_metric()
    random = torch.Generator().manual_seed(3)
    first, second = torch.randint(len(own), (2, PAIRS), generator=random)
    apart = first != second
    spread = metric.distance(own[first[apart]], own[second[apart]]).numpy()
    rest = pictures(generator, codes)
    rising, far, at_two = {}, {}, {}
    for name, direction in found.directions.items():
        vector = torch.from_numpy(direction.vector)
        seen = []
        for amount in AMOUNTS:
            made = pictures(generator, codes + amount * vector) if amount else rest
            with torch.no_grad():
                parts = [detect_landmarks(part).landmarks for part in made.split(8)]
            seen.append(measure(torch.cat(parts).numpy()))
            if abs(amount) == 1:
                far.setdefault(name, []).append(metric.distance(made, rest).numpy())
            elif amount:
                at_two.setdefault(name, []).append(metric.distance(made, rest).numpy())
        steps = [b[name] - a[name] for a, b in pairwise(seen)]
        rising[name] = int(np.all(np.array(steps) > 0, 0).sum())
        means = [s[name].mean() for s in seen]
        if not all(b > a for a, b in pairwise(means)):
            print(f"  {name}: on average not rising everywhere from -2 to 2")
        if name == "smile":
            up = 100 * (seen[3]["smile"] - seen[2]["smile"])
            turned = (seen[3]["yaw"] - seen[2]["yaw"]) / found.units["yaw"]
            print(f"  +1 of smile: corners {up.mean():.1f} % up ({up.min():.1f} to {up.max():.1f})")
            print(
                f"  +1 of smile: yaw {100 * turned.mean():+.1f} % of its unit on average, "
                f"{100 * np.abs(turned).mean():.1f} % either way"
            )
    print(f"  rising at every step from -2 to 2, of {len(codes)} codes: {rising}")
    print(
        f"  identity, distance: own spread {np.median(spread):.3f} (median), "
        f"{np.quantile(spread, 0.95):.3f} (95 %)"
    )
    for label, distances in (("1", far), ("2", at_two)):
        shown = {name: round(float(np.mean(d)), 3) for name, d in distances.items()}
        within = np.mean(
            np.concatenate([np.ravel(d) for d in distances.values()]) < np.quantile(spread, 0.95)
        )
        print(f"  at +-{label}: {shown}; {100 * within:.0f} % within the spread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--character", type=Path)
    parser.add_argument("--samples", type=int, default=768)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report, random = Report(), torch.Generator().manual_seed(1)
    settings = DirectionSettings(arguments.samples)
    base, folder = base_generator(), arguments.folder
    who = load_character(arguments.character) if arguments.character else someone()
    for name in ("embedded generator", who.info.name):
        path = folder / f"{name}.directions"
        of_base = name == "embedded generator"
        if not path.exists():
            found = (
                find_in_generator(base, report, settings, name)
                if of_base
                else find_in_character(who, report, settings)
            )
            save_directions(path, found)
        found = load_directions(path)
        print(f"\n{name}")
        if of_base:
            with torch.no_grad():
                drawn = base.mapping(torch.randn(CODES + 48, 512, generator=random), TRUNCATION)
            codes, others, generator = drawn[:CODES], pictures(base, drawn[CODES:]), base
            centre = base.mapping.w_avg
        else:
            codes, generator = sample_p(who.anchors, CODES, random), who.generator
            others, centre = pictures(generator, who.anchors), who.anchors.mean(0)
        rows(generator, found, codes, others)
        if not of_base:
            identity(who, found, codes)
        write_png(folder / f"{name}.png", sheet(generator, centre, found))


if __name__ == "__main__":
    main()
