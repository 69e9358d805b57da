"""Faces found in single frames: figures of any size and roll, and pictures without a face.

    python benchmarks/faces.py FOLDER [--part I/N] [--table]
    python benchmarks/faces.py FOLDER --clips

A performer stands in a larger frame: 900 figures about upright (roll within 12 degrees), of 3 to
60 % of its height, 120 more of 3 to 10 %, 180 rolled by every second degree, and 60 pictures
without a face (the same backgrounds, and photographs of scikit-image). Size is the height of the
head, from chin to crown, over that of the frame, and uniformly distributed. Places, turning (40
degrees either way), people, light, exposure, blur, noise, formats and backgrounds are drawn. The
baseline is the search as MediaPipe makes it, with our squares: whatever the detector finds first is
given to the mesh network, which accepts it or not. A mesh is right if eyes and mouth corners are
off by less than 15 % of the distance from the eyes to the chin, on average. Milliseconds are of
processor time.

`--clips` tracks 24 frames of a performer, where the baseline is the mesh network alone in the ROI
of the frame before, and 36 without a face, where it is the search as it was in each frame.

FOLDER keeps the results; what is there is not measured again. `--part 1/2` measures one half of
them, so that two processes share the work; `--table` only prints. All takes half an hour on one
core.
"""

import argparse
import json
import math
import time
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

from core.face.alignment import ffhq_points
from core.face.network import MESH_SCORE, face_detector, face_mesh, roi_from_landmarks
from core.face.search import Face, find_face, read_mesh
from core.face.tracking import track_face
from core.synthetic import performer
from core.synthetic.performer import INDEX

SMALLEST, SMALL, LARGEST = 0.03, 0.1, 0.6
SIZES = ((0.03, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.6))
FORMATS = (  # width, height, pixel aspect
    (1920, 1080, 1.0),
    (1080, 1920, 1.0),
    (2048, 858, 1.0),
    (1024, 858, 2.0),
    (1280, 720, 1.0),
)
COUNTS = {"upright": 900, "small": 120, "rolled": 180, "empty": 60}
PHOTOGRAPHS = (
    "coffee", "chelsea", "rocket", "hubble_deep_field", "immunohistochemistry", "page", "text",
    "clock", "brick", "grass", "gravel",
)  # fmt: skip
TOLERANCE = 0.15


def photograph(name: str) -> np.ndarray:
    """Returns `[H, W, 3]`, linear light."""
    picture = getattr(skimage.data, name)()
    picture = np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture[..., :3]
    return (picture.astype(np.float32) / 255) ** 2.2


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draws a wall, a gradient, things, or a blurred photograph, `[H, W, 3]` linear light."""
    kind = rng.integers(4)
    plate = np.full((height, width, 3), rng.uniform(0.02, 0.5, 3) * 0.5 + 0.1, np.float32)
    if kind == 1:
        grid = rng.uniform(0, 0.7, (rng.integers(3, 9), rng.integers(3, 14), 3)).astype(np.float32)
        plate = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    elif kind == 2:
        for _ in range(40):
            corner = rng.uniform(0, 1, 2) * (width, height)
            size = rng.uniform(0.02, 0.2, 2) * min(width, height) * (1, 3)
            ends = [tuple(map(int, p)) for p in (corner, corner + size)]
            cv2.rectangle(plate, *ends, rng.uniform(0, 0.6, 3).tolist(), -1)
        plate = cv2.GaussianBlur(plate, (0, 0), rng.uniform(0.8, 4))
    elif kind == 3:
        name = rng.choice(["coffee", "rocket", "hubble_deep_field", "immunohistochemistry"])
        plate = cv2.resize(photograph(name), (width, height), interpolation=cv2.INTER_AREA)
        plate = cv2.GaussianBlur(plate, (0, 0), rng.uniform(0.5, 6))
    return plate


def cut_out(params: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a performer `[size, size, 3]`, linear and premultiplied, and its alpha.

    Both come from renders before a dark and a light backdrop.
    """
    renders = []
    for level in (0.1, 0.85):
        p = params.copy()
        p[[INDEX[n] for n in ("bg_gradient", "bg_clutter")]] = 0
        p[[INDEX[n] for n in ("bg_r", "bg_g", "bg_b")]] = level
        renders.append((performer.render(p, size).astype(np.float32) / 255) ** 2.2)
    dark, light = renders
    backdrop = np.median(dark[:4].reshape(-1, 3), 0)
    between = np.median((light - dark)[:4].reshape(-1, 3), 0)
    alpha = np.clip(1 - ((light - dark) / between).mean(2), 0, 1)
    return dark - (1 - alpha[..., None]) * backdrop, alpha


def figure(
    rng: np.random.Generator, size: float, roll: float
) -> tuple[np.ndarray, float, np.ndarray, dict[str, float]]:
    """Draws a performer in a frame.

    Args:
        rng: draws all else.
        size: of the head, over the frame's height.
        roll: degrees, clockwise.

    Returns:
        The picture `[H, W, 3]` float32 sRGB, its pixel aspect, the true eyes and mouth corners
        `[4, 2]` in square px, and yaw, roll, and the distance from eyes to chin, px.
    """
    width, height, aspect = FORMATS[rng.integers(len(FORMATS))]
    square_width = round(width * aspect)
    p = performer.from_normal(rng.standard_normal(len(performer.PARAMETERS)))
    p[INDEX["glasses"]] = round(p[INDEX["glasses"]])
    p[INDEX["roll"]] = 0
    p[INDEX["yaw"]], p[INDEX["pitch"]] = rng.uniform(-40, 40), rng.uniform(-12, 12)
    p[[INDEX["blink_l"], INDEX["blink_r"]]] = rng.random() < 0.1
    points = performer.landmarks(p)
    middle = (points["chin"] + points["crown"]) / 2
    head = abs(points["chin"][1] - points["crown"][1])
    side = size * height / head
    colour, alpha = cut_out(p, int(np.clip(side, 64, 1024)))
    margin = 0.62 * size * height
    place = [rng.uniform(margin, max(n - margin, margin)) for n in (square_width, height)]
    turn = math.radians(roll)
    axes = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])

    def to_plate(point: np.ndarray) -> np.ndarray:
        return axes @ ((np.asarray(point) - middle) * side) + place

    plate = background(rng, square_width, height)
    shoulders = np.flatnonzero(alpha[-3:].mean(0) > 0.5) / len(alpha)
    if len(shoulders):
        left, right = shoulders[0], shoulders[-1]
        mid, half = (left + right) / 2, max((right - left) / 2, 0.3)
        outline = [(left, 0.97), (right, 0.97)]
        for x, y in ((1.15, 1.25), (1.2, 2.2), (0.8, 2.6), (0.75, 4.6)):
            outline = [(mid - x * half, y), *outline, (mid + x * half, y)]
        body = np.round(np.array([to_plate(q) for q in outline]) * 16).astype(np.int32)
        cloth = (0.7 * p[[INDEX[n] for n in ("cloth_r", "cloth_g", "cloth_b")]]) ** 2.2
        cv2.fillPoly(plate, [body], cloth.tolist(), cv2.LINE_AA, shift=4)
    scale = side / len(alpha)
    matrix = np.concatenate([axes * scale, (to_plate(np.zeros(2)))[:, None]], 1)
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    if scale < 0.8:
        colour, alpha = (cv2.GaussianBlur(a, (0, 0), 0.4 / scale) for a in (colour, alpha))
    colour, alpha = (cv2.warpAffine(a, matrix, (square_width, height)) for a in (colour, alpha))
    plate = colour + plate * (1 - alpha[..., None])
    truth = [to_plate(points[n]) for n in ("eye_r", "eye_l", "mouth_r", "mouth_l")]
    eyes = (points["eye_r"] + points["eye_l"]) / 2
    length = float(np.hypot(*(to_plate(points["chin"]) - to_plate(eyes))))
    facts = {"size": size, "yaw": float(p[INDEX["yaw"]]), "roll": roll, "length": length}
    return developed(rng, plate, width), aspect, np.array(truth), facts


def empty(rng: np.random.Generator) -> np.ndarray:
    """Draws a picture without a face, `[H, W, 3]` float32 sRGB."""
    width, height, aspect = FORMATS[rng.integers(len(FORMATS))]
    width = round(width * aspect)
    if rng.random() < 0.3:
        return developed(rng, background(rng, width, height), width)
    picture = photograph(str(rng.choice(PHOTOGRAPHS)))
    share = rng.uniform(0.4, 1)
    h, w = (int(n * share) for n in picture.shape[:2])
    y, x = (rng.integers(0, n - m + 1) for n, m in zip(picture.shape[:2], (h, w), strict=True))
    larger = min(width / w, height / h)
    size = (round(w * larger), round(h * larger))
    picture = cv2.resize(picture[y : y + h, x : x + w], size, interpolation=cv2.INTER_CUBIC)
    return developed(rng, picture.clip(0, 1), size[0])


def developed(rng: np.random.Generator, plate: np.ndarray, width: int) -> np.ndarray:
    """Exposes a linear plate, squeezes it to a width, and adds noise; float32 sRGB."""
    gain = math.exp(rng.uniform(math.log(0.35), math.log(1.5)))
    picture = np.clip(plate * gain, 0, 1) ** (1 / 2.2)
    if width != picture.shape[1]:
        picture = cv2.resize(picture, (width, len(picture)), interpolation=cv2.INTER_AREA)
    noise = rng.choice([0, 0.01, 0.02])
    return np.clip(picture + rng.normal(0, noise, picture.shape), 0, 1).astype(np.float32)


def baseline(image: torch.Tensor) -> Face | None:
    """Returns the face that the search accepted as it was: the largest of what was found first."""
    found = face_detector()(image)
    if not len(found.score):
        return None
    face = read_mesh(face_mesh(), image, found.roi[found.roi[:, 2].argmax()][None])
    return face if face.score > MESH_SCORE else None


def measure(kind: str, index: int) -> dict[str, object]:
    """Searches one picture both ways: errors, None where no face is found, and processor time."""
    rng = np.random.default_rng([27, list(COUNTS).index(kind), index])
    truth, facts, aspect = None, {}, 1.0
    if kind == "empty":
        picture = empty(rng)
    else:
        size = rng.uniform(SMALLEST, SMALL if kind == "small" else LARGEST)
        roll = 2.0 * index - 180 if kind == "rolled" else rng.uniform(-12, 12)
        picture, aspect, truth, facts = figure(rng, size, roll)
    if aspect != 1:
        size = (round(picture.shape[1] * aspect), len(picture))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    image = tensor(picture)
    result: dict[str, object] = {"kind": kind, "index": index, **facts}
    for name, search in (
        ("baseline", baseline),
        ("ours", lambda image: find_face(image, face_mesh(), face_detector()).face),
    ):
        start = time.process_time()
        face = search(image)
        result[f"{name}_ms"] = 1e3 * (time.process_time() - start)
        error = None
        if face is not None:
            error = math.inf
            if truth is not None:
                points = ffhq_points(face.landmarks.numpy())[0]
                error = float(np.hypot(*(points - truth).T).mean()) / facts["length"]
        result[name] = error
    return result


def clips() -> None:
    """Prints milliseconds a frame of tracking, with a face and without."""
    print(f"{'1280 x 720, ms a frame':28s} baseline   ours")
    rng = np.random.default_rng(27)
    identity = performer.random_identity(4)
    heads = [performer.render(p, 400) for p in performer.performance(identity, 24)]
    wall = developed(rng, background(rng, 1280, 720), 1280)
    frames = []
    for head in heads:
        frames.append(wall.copy())
        frames[-1][160:560, 400:800] = head.astype(np.float32) / 255

    def follow(image: torch.Tensor) -> None:
        nonlocal roi
        roi = roi_from_landmarks(read_mesh(face_mesh(), image, roi).landmarks)

    roi = face_detector()(tensor(frames[0])).roi[:1]
    search_rng = np.random.default_rng(28)
    walls = [developed(search_rng, background(search_rng, 1280, 720), 1280)] * 36
    for title, pictures, search in (("a performer", frames, follow), ("no face", walls, baseline)):
        times = []
        for run in (
            lambda search=search, pictures=pictures: [search(tensor(p)) for p in pictures],
            lambda pictures=pictures: track_face(enumerate(pictures)),
        ):
            start = time.process_time()
            run()
            times.append(1e3 * (time.process_time() - start) / len(pictures))
        print(f"{title:28s} {times[0]:8.0f} {times[1]:6.0f}")


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()


def table(results: list[dict]) -> None:
    """Prints counts of right, wrong and missed faces."""
    print(f"{'':28s} pictures  baseline: right wrong none    ms   ours: right wrong none    ms")

    def row(title: str, chosen: list[dict]) -> None:
        if not chosen:
            return
        cells = []
        for name in ("baseline", "ours"):
            errors = [r[name] for r in chosen]
            none = sum(e is None for e in errors)
            right = sum(e is not None and e < TOLERANCE for e in errors)
            share = f"{100 * right / len(chosen):5.1f} %"
            ms = np.mean([r[f"{name}_ms"] for r in chosen])
            cells.append(f"{share} {len(chosen) - right - none:5d} {none:4d} {ms:5.0f}")
        print(f"{title:28s} {len(chosen):8d}  {cells[0]:>31s}   {cells[1]:>27s}")

    upright = [r for r in results if r["kind"] == "upright"]
    both = [r for r in results if r["kind"] in ("upright", "small")]
    rolled = [r for r in results if r["kind"] == "rolled"]
    row("upright", upright)
    for low, high in ((0, 15), (15, 30), (30, 41)):
        row(f"  yaw {low} to {high}", [r for r in upright if low <= abs(r["yaw"]) < high])
    for low, high in SIZES:
        some = [r for r in both if low <= r["size"] < high]
        row(f"  {100 * low:.0f} to {100 * high:.0f} % of the height", some)
    row("rolled", rolled)
    for low, high in ((0, 45), (45, 90), (90, 135), (135, 181)):
        row(f"  roll {low} to {high}", [r for r in rolled if low <= abs(r["roll"]) < high])
    row("without a face", [r for r in results if r["kind"] == "empty"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--clips", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.clips:
        clips()
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, options.part.split("/"))

    def read() -> list[dict]:
        files = sorted(options.folder.glob("*.jsonl"))
        return [json.loads(line) for f in files for line in f.read_text().splitlines()]

    done = {(r["kind"], r["index"]) for r in read()}
    wanted = [] if options.table else [(k, i) for k, n in COUNTS.items() for i in range(n)]
    np.random.default_rng(27).shuffle(wanted)  # so that unfinished runs hold some of everything
    with (options.folder / f"part{part}.jsonl").open("a") as file:
        for kind, index in wanted[part - 1 :: parts]:
            if (kind, int(index)) not in done:
                file.write(json.dumps(measure(kind, int(index))) + "\n")
                file.flush()
    table(read())


if __name__ == "__main__":
    main()
