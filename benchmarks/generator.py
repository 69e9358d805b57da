"""StyleGAN2: milliseconds per picture, ours and the textbook form, in the same run.

    python benchmarks/generator.py [--threads N] [--resolutions 256 1024] [--batches 1 8]

The textbook form scales the weights per sample and runs one grouped convolution over the batch
(as most public implementations do without a custom kernel). Both have configuration F, frozen
weights and the same latents; their pictures are compared before they are timed. Backward goes to
w. Each row is a process of its own, so that its peak memory is its own; a row that needs more
than the limit says so. On a GPU rows in float16 and compiled follow.
"""

import argparse
import math
import multiprocessing as mp
import queue
import resource
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.generator import Generator, config_f
from core.generator.network import ModulatedConv, SynthesisLayer, ToRGB

LIMIT = 14 << 30  # bytes of address space per row on the CPU
# At peak arithmetic and memory rates, dense: float32 (TF32) and float16 FLOP/s, bytes/s.
GPU_PEAKS = {"H100": (4.9e14, 9.9e14, 3.35e12), "H200": (4.9e14, 9.9e14, 4.8e12)}


Answer = tuple[float, float, np.ndarray]  # ms per picture, peak MiB, samples of the picture


def grouped(self: ModulatedConv, x: Tensor, w: Tensor) -> Tensor:
    """The textbook modulated convolution: a weight per sample, the batch as groups."""
    batch, inputs = x.shape[:2]
    style: Tensor = self.affine(w)
    weight = self.weight[None] * style[:, None, :, None, None] / math.sqrt(self.weight[0].numel())
    if self.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    weight = weight.to(x.dtype)
    outputs, kernel = weight.shape[1], weight.shape[3]
    x = x.reshape(1, batch * inputs, *x.shape[2:])
    if self.upsample:
        weight = weight.transpose(1, 2).reshape(batch * inputs, outputs, kernel, kernel)
        x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
        fir = self.fir.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        x = F.conv2d(x, fir, padding=1, groups=x.shape[1])
    else:
        weight = weight.reshape(batch * outputs, inputs, kernel, kernel)
        x = F.conv2d(x, weight, padding=kernel // 2, groups=batch)
    return x.reshape(batch, outputs, *x.shape[2:])


def grouped_layer(self: SynthesisLayer, x: Tensor, w: Tensor, noise: str = "const") -> Tensor:
    x = grouped(self, x, w) + (self.noise_const * self.noise_strength).to(x.dtype)
    bias = self.bias[None, :, None, None].to(x.dtype)
    return F.leaky_relu(x + bias, 0.2) * math.sqrt(2)


def grouped_rgb(self: ToRGB, x: Tensor, w: Tensor) -> Tensor:
    return grouped(self, x, w) + self.bias[None, :, None, None].to(x.dtype)


def run(
    form: str,
    resolution: int,
    batch: int,
    backward: bool,
    threads: int,
    device: str,
    dtype: torch.dtype | None,
    answers: "mp.Queue[Answer]",
) -> None:
    """One row, in its own process."""
    torch.set_num_threads(threads)
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    torch.manual_seed(0)
    synthesis = Generator(config_f(resolution)).synthesis.to(device).requires_grad_(False)
    ws = torch.randn(batch, 512).to(device)
    if form == "grouped":
        SynthesisLayer.forward = grouped_layer  # type: ignore[assignment,method-assign]
        ToRGB.forward = grouped_rgb  # type: ignore[method-assign]
    if form == "compiled":
        synthesis.compile(mode="max-autotune-no-cudagraphs" if backward else "max-autotune")
    ws.requires_grad_(backward)

    def once() -> Tensor:
        with torch.set_grad_enabled(backward):
            picture = synthesis(ws, half=dtype, half_from=resolution // 8)
            if backward:
                ws.grad = None
                picture.square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return picture

    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    picture = once().detach().float().cpu()
    once()
    times = []
    while len(times) < 3 or (sum(times) < 4 and len(times) < 50):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline) / 2**10
    answers.put((statistics.median(times) * 1e3 / batch, memory, picture[:1, :, ::8, ::8].numpy()))


def row(*arguments: object) -> Answer | None:
    """What `run` measured in a process of its own; None if it did not fit."""
    context = mp.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=run, args=(*arguments, answers))
    process.start()
    while process.is_alive():
        try:
            answer = answers.get(timeout=1)
        except queue.Empty:
            continue
        process.join()
        return answer
    return None


def floor(resolution: int, dtype: torch.dtype | None) -> str:
    """What arithmetic and memory traffic alone would cost on this GPU, per picture and forward."""
    name = torch.cuda.get_device_name()
    peak = next((v for k, v in GPU_PEAKS.items() if k in name), None)
    if peak is None:
        return ""
    channels = config_f(resolution).channels
    macs = sum(c * c * 9 * r * r for r, c in channels.items())
    macs += sum(channels[r // 2] * c * 9 * r * r / 4 for r, c in channels.items() if r > 4)
    size = 2 if dtype else 4
    # each layer reads and writes its features about five times: style, conv, blur, demod, bias
    traffic = sum(2 * 5 * c * r * r * size for r, c in channels.items())
    arithmetic = 2 * macs / peak[1 if dtype else 0] * 1e3
    return f"  floor: {arithmetic:.3f} ms arithmetic, {traffic / peak[2] * 1e3:.3f} ms memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    setups: list[tuple[str, str, torch.dtype | None]] = [("ours", "cpu", None)]
    if torch.cuda.is_available():
        setups = [
            ("ours", "cuda", None),
            ("ours", "cuda", torch.float16),
            ("compiled", "cuda", torch.float16),
        ]
        print(torch.cuda.get_device_name())
    print(f"torch {torch.__version__}, {options.threads} threads; ms per picture, peak MiB")
    print(f"{'':28s}{'grouped':>18s}{'ours':>18s}  faster")
    for resolution in options.resolutions:
        for batch in options.batches:
            for backward in (False, True):
                for form, device, dtype in setups:
                    rest = (resolution, batch, backward, options.threads, device, dtype)
                    theirs, mine = row("grouped", *rest), row(form, *rest)
                    what = f"{resolution} px, batch {batch}, {'fwd+bwd' if backward else 'fwd'}"
                    if dtype:
                        what += f" {'fp16' if form == 'ours' else 'fp16 compiled'}"
                    cells = [
                        f"{r[0]:9.1f} {r[1]:8.0f}" if r else f"{'over limit':>18s}"
                        for r in (theirs, mine)
                    ]
                    note = ""
                    if theirs and mine:
                        error = np.abs(theirs[2] - mine[2]).max() / np.abs(theirs[2]).max()
                        assert error < (0.05 if dtype else 1e-4), f"the forms differ: {error}"
                        note = f"{theirs[0] / mine[0]:6.2f}x"
                    if device == "cuda" and not backward:
                        note += floor(resolution, dtype)
                    print(f"{what:28s}{cells[0]}{cells[1]}  {note}", flush=True)


if __name__ == "__main__":
    main()
