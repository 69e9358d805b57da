"""Stages 4 and 7: the mapping network learns the encoder's w without the synthesis network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.base.checkpoints import load_checkpoint, save_checkpoint
from core.base.digest import digest
from core.base.training import Run, cosine, train
from core.generator import Generator, MappingNetwork, half_precision
from core.generator.network import FullyConnectedLayer, autocast
from core.synthetic.base import WEncoder
from core.synthetic.distill.evaluation import log, log_regularly, score
from core.synthetic.distill.losses import pixel_weights
from core.synthetic.distill.pictures import Pictures, cues, draw_normals, latents
from core.synthetic.parameters import PARAMETERS

TAUGHT = 983_040  # draws whose w the teacher gives
_DRAWS = 8192  # of them at a time
_GAIN = 2**0.5  # of the mapping network's leaky ReLUs


def encode(encoder: WEncoder, data: Pictures, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Encodes all pictures, or all mirrored ones: their normals `[N, P]` and w `[N, 512]`."""
    size, normals, codes = data.pictures.shape[1], [], []
    for indices in torch.arange(len(data.normals)).split(64):
        picture, normal, _ = data.batch(indices, torch.full((len(indices),), mirrored), size)
        picture = picture.to(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(picture.device):
            codes.append(encoder(picture).float())
        normals.append(normal)
    return torch.cat(normals), torch.cat(codes)


def gauss_newton_metric(
    generator: Generator, w: Tensor, data: Pictures, count: int = 1600, draws: int = 3
) -> Tensor:
    """Estimates how errors in w change the picture: the mean over pictures of J^T D J.

    J is the Jacobian of the synthesis network, D holds the pixels' weights in the loss; so this is
    the Gauss-Newton matrix of the weighted squared error. It is estimated by random probes, after
    Hutchinson: J^T D^(1/2) v has this covariance where v is white noise.

    Args:
        generator: whose synthesis network it is about.
        w: `[N, 512]`, codes of the pictures.
        data: the pictures, for their weights.
        count: takes at most this many pictures.
        draws: of noise per picture.

    Returns:
        `[512, 512]`, symmetric.
    """
    size = generator.architecture.resolution
    rng = torch.Generator().manual_seed(8_000_003)
    total = w.new_zeros(w.shape[1], w.shape[1])
    some = torch.randperm(len(w), generator=rng)[:count]
    for indices in some.split(16):
        code = w[indices.to(w.device)].requires_grad_()
        weight, _ = pixel_weights(data.points[indices.to(w.device)], size)
        generated = generator.synthesis(code, half=half_precision(code.device), half_from=4).float()
        for draw in range(draws):
            noise = torch.randn(generated.shape, generator=rng).to(generated) * weight.sqrt()
            (gradient,) = torch.autograd.grad(
                (generated * noise).sum(), code, retain_graph=draw + 1 < draws
            )
            total += gradient.T @ gradient / (len(some) * draws)
    return total


def _error_metric(generator: Generator, w: Tensor, data: Pictures) -> Tensor:
    """The Gauss-Newton metric, normalised, and a little weight for all directions.

    The mean of w has an error of 1, to which every direction alike adds 1 % in all.

    Args:
        generator: that draws w.
        w: codes; the first ones are those of the pictures.
        data: the pictures.
    """
    metric = gauss_newton_metric(generator, w[: len(data.normals)], data)
    metric = metric / (metric @ torch.cov(w.T)).trace()
    return metric + torch.diag(0.01 / w.var(0) / w.shape[1])


def _metric_loss(error: Tensor, metric: Tensor) -> Tensor:
    """Mean squared length of errors `[B, D]` under a metric `[D, D]`."""
    return ((error @ metric) * error).sum(1).mean()


# -- stage 4 -----------------------------------------------------------------------------------


def fit_mapping(
    folder: Path,
    generator: Generator,
    encoder: WEncoder,
    data: Pictures,
    held_out: Pictures,
    steps: int,
    rate: float,
) -> None:
    """Trains the mapping network, in place, on the w that the encoder finds in the pictures.

    Without the synthesis network a step is so cheap that each picture is seen many times. An error
    in w counts by the change of the picture (`gauss_newton_metric`): few of 512 directions show.

    Args:
        folder: keeps `mapping.pt` once this stage is done.
        generator: whose mapping network starts from its present weights.
        encoder: of that generator.
        data: pictures; each is also taken mirrored.
        held_out: pictures for the log.
        steps: of 512 pictures.
        rate: Adam's.

    Raises:
        core.base.checkpoints.CheckpointMismatchError: `mapping.pt` starts from something else.
    """
    mapping, path = generator.mapping.train().requires_grad_(True), folder / "mapping.pt"
    states = (*generator.state_dict().values(), *encoder.state_dict().values())
    task = digest(steps, rate, data.normals, *states)
    if (state := load_checkpoint(path, task)) is not None:
        mapping.load_state_dict(state["mapping"])
        return
    halves = [encode(encoder, data, mirrored) for mirrored in (False, True)]
    normals, w = (torch.cat(part) for part in zip(*halves, strict=True))
    metric = _error_metric(generator, w, data)
    rng = torch.Generator().manual_seed(9_000_003)

    def loss(step: int) -> Tensor:
        indices = torch.randint(len(w), (512,), generator=rng).to(w.device)
        return _metric_loss(mapping(latents(normals[indices], rng)) - w[indices], metric)

    def line(error: float, milliseconds: int) -> dict[str, float]:
        size = generator.architecture.resolution
        return {"mapping": run.step, "error": error, **score(generator, held_out, size)}

    optimiser = torch.optim.AdamW(mapping.parameters(), betas=(0.9, 0.99), weight_decay=5e-4)
    run = Run(mapping, optimiser, steps)
    train(
        run,
        loss,
        lambda run: [rate * min(1, (run.step + 1) / 100) * cosine(run.step, steps)],
        report=log_regularly(folder, run, line, every=1000),
    )
    save_checkpoint(path, task, {"mapping": mapping.state_dict()})


# -- stage 7 -----------------------------------------------------------------------------------


def teach_mapping(
    folder: Path,
    generator: Generator,
    encoder: WEncoder,
    data: Pictures,
    held_out: Pictures,
    *,
    teacher_steps: int,
    taught_steps: int,
    seed: int,
) -> None:
    """Trains the mapping network, in place, on the w of more draws than were ever rendered.

    Mirrored pictures are left out: MediaPipe's alignment is not symmetric, so that a mirrored
    picture lies up to a pixel beside the one that its parameters would be drawn and aligned to.

    Args:
        folder: has `align.npy`; keeps `taught.pt` once this stage is done.
        generator: whose mapping network starts from its present weights.
        encoder: of that generator.
        data: pictures, for the teacher.
        held_out: pictures for the log.
        teacher_steps: of 768 pictures.
        taught_steps: of 1024 draws.
        seed: of the draws and the teacher's weights.

    Raises:
        core.base.checkpoints.CheckpointMismatchError: `taught.pt` starts from something else.
    """
    mapping, path = generator.mapping.requires_grad_(False), folder / "taught.pt"
    weights = np.load(folder / "align.npy")
    states = (*generator.state_dict().values(), *encoder.state_dict().values())
    steps = (teacher_steps, taught_steps)
    task = digest(*steps, TAUGHT, seed, weights, data.normals, *states)
    if (state := load_checkpoint(path, task)) is not None:
        mapping.load_state_dict(state["mapping"])
        return
    normals, w = encode(encoder, data, mirrored=False)
    metric = _error_metric(generator, w, data)
    features = cues(normals.cpu().numpy().astype(np.float64), weights).to(w.device)
    mean, std = features.mean(0), features.std(0)
    inputs = [(features - mean) / std]
    teacher = _train_teacher(folder, inputs[0], w, metric, steps=teacher_steps, seed=seed)

    draws = [normals]
    for i in range(TAUGHT // _DRAWS):
        fresh = draw_normals(seed * 100_003 + 50_000 + i, _DRAWS)
        draws.append(torch.from_numpy(fresh.astype(np.float32)).to(w.device))
        inputs.append((cues(fresh, weights).to(w.device) - mean) / std)
    with torch.no_grad():
        targets = torch.cat([w.mean(0) + teacher(part) for part in inputs])

    pupil = _pupil(mapping, w.device)
    regress(
        folder,
        "taught",
        pupil,
        torch.cat(draws),
        targets,
        metric,
        steps=taught_steps,
        batch=1024,
        rate=1e-2,
    )
    _take_weights(mapping, pupil)
    log(folder, score(generator, held_out, generator.architecture.resolution))
    save_checkpoint(path, task, {"mapping": mapping.state_dict()})


def _train_teacher(
    folder: Path, features: Tensor, w: Tensor, metric: Tensor, *, steps: int, seed: int
) -> nn.Sequential:
    """Trains a network from standardised cues `[N, C]` to w `[N, 512]` minus its mean."""
    torch.manual_seed(seed)
    teacher = dense_network([features.shape[1], 512, 512, w.shape[1]]).to(w.device)
    regress(
        folder,
        "teacher",
        teacher,
        features,
        w - w.mean(0),
        metric,
        steps=steps,
        batch=768,
        rate=2e-2,
        decay=0.03,
    )
    return teacher


def _pupil(mapping: MappingNetwork, device: torch.device) -> nn.Sequential:
    """The mapping network as plain layers of its weights, without the inputs for noise."""
    width = len(mapping.w_avg)
    pupil = dense_network([len(PARAMETERS), *[width] * mapping.layers]).append(nn.LeakyReLU(0.2))
    with torch.no_grad():
        for layer, plain in _layer_pairs(mapping, pupil.to(device)):
            weight = layer.weight * (layer.weight_gain * _GAIN)
            plain.weight.copy_(weight[:, : plain.in_features])
            plain.bias.copy_(layer.bias * (layer.bias_gain * _GAIN))
    return pupil


def _take_weights(mapping: MappingNetwork, pupil: nn.Sequential) -> None:
    """Copies the weights of a trained pupil to the mapping network; noise gets none."""
    with torch.no_grad():
        for layer, plain in _layer_pairs(mapping, pupil):
            layer.weight.zero_()
            layer.weight[:, : plain.in_features] = plain.weight / (layer.weight_gain * _GAIN)
            layer.bias.copy_(plain.bias / (layer.bias_gain * _GAIN))


def _layer_pairs(
    mapping: MappingNetwork, pupil: nn.Sequential
) -> Iterable[tuple[FullyConnectedLayer, nn.Linear]]:
    return zip(
        (m for m in mapping.children() if isinstance(m, FullyConnectedLayer)),
        (m for m in pupil if isinstance(m, nn.Linear)),
        strict=True,
    )


# -- regression --------------------------------------------------------------------------------


def dense_network(sizes: list[int]) -> nn.Sequential:
    """Builds fully connected layers of these widths, with leaky ReLUs between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def regress(
    folder: Path,
    name: str,
    network: nn.Sequential,
    x: Tensor,
    y: Tensor,
    metric: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    decay: float = 0.0,
) -> None:
    """Trains a network of dense layers, in place, to give y of x.

    Args:
        folder: of the log.
        name: in the log.
        network: to train.
        x: `[N, X]`.
        y: `[N, Y]`.
        metric: `[Y, Y]`, of errors in y.
        steps: to take.
        batch: of a step.
        rate: of the optimiser, at its peak.
        decay: see `Muon`.
    """
    rng = torch.Generator().manual_seed(6_000_003)

    def loss(step: int) -> Tensor:
        indices = torch.randint(len(x), (batch,), generator=rng).to(x.device)
        return _metric_loss(network(x[indices]) - y[indices], metric)

    def rates(run: Run) -> list[float]:
        return [rate * min(1, (run.step + 1) / 50) * cosine(run.step, steps, 0.02)] * 2

    run = Run(network, Muon(network.parameters(), decay), steps)
    report = log_regularly(
        folder, run, lambda error, _: {name: run.step, "error": error}, every=200
    )
    train(run, loss, rates, report=report)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for matrices, Adam for all else.

    torch.optim.Muon orthogonalises in bfloat16: seconds per step on a CPU that has none.

    Args:
        parameters: of a network; the second parameter group holds those that are no matrices.
        decay: share of the matrices, by step and rate, that is forgotten.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.0) -> None:
        parameters = [*parameters]
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        super().__init__([{"params": matrices}, {"params": others}], {"lr": 0.0, "decay": decay})
        self.adam = torch.optim.Adam(others, betas=(0.9, 0.99))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Takes one step."""
        group, others = self.param_groups
        self.adam.param_groups[0]["lr"] = others["lr"]
        self.adam.step()
        rate = group["lr"]
        for matrix in group["params"]:
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 0.05)
            direction = orthogonal(matrix.grad.lerp(momentum, 0.95))
            direction = direction * max(1, len(matrix) / matrix.shape[1]) ** 0.5
            matrix.mul_(1 - group["decay"] * rate).sub_(direction, alpha=rate)


@torch.no_grad()
def orthogonal(matrix: Tensor) -> Tensor:
    """Approximates the nearest orthogonal matrix, by Muon's five steps of Newton-Schulz."""
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x
