"""The sparse head against a bare product, the naive formula, the paper's form and sentence-transformers.

    python benchmarks/sparse_head.py [--smoke] [--device cuda] [--threads N] ...

Prints one table of one run and exits with 1 when the pass line is not met. Times are CPU time (on
CUDA: of the device), best of several interleaved rounds; memory is the peak of what torch allocates
on top of the inputs; the error is the largest difference from float64 on a slice of the vocabulary.

Legend: B texts, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from raylab.models.sparse_head import sparse_reps

# At least so many times as fast as, and at most this share of the memory of, on the LoRA rows. An
# untrained head is the worst case, and soon over: a third of the vocabulary carries a gradient.
LEAST_SPEEDUP = {
    "trained": {"paper": 2.0, "sentence-transformers": 3.0},
    "untrained": {"paper": 2.0, "sentence-transformers": 2.5},
}
LARGEST_MEMORY_SHARE = 0.1
LARGEST_ERROR = 1e-6
# Half types keep 8 (bf16) or 11 (fp16) bits of the result.
HALF_ERROR = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
SLICE = 512
ACTIVE = {"trained": 0.005, "untrained": 0.32}
BARE, OURS = "bare product", "raylab"
HEADS = ["naive", "paper", "sentence-transformers", OURS]

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


def naive(hidden, weight, mask, scale):
    logits_BLV = (hidden @ weight.T) * scale
    logits_BLV = logits_BLV.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    return torch.log1p(torch.relu(logits_BLV.max(dim=1).values))


def paper(hidden, weight, mask, scale):
    """The order of operations of 2502.15526 (docs of the head in raylab/models/heads.py)."""
    logits_BLV = (hidden @ weight.T) * scale
    logits_BLV += (1 - mask.unsqueeze(-1).to(logits_BLV.dtype)) * -1e6
    return torch.log(1 + torch.relu(torch.max(logits_BLV, dim=1).values))


def sentence_transformers(hidden, weight, mask, scale):
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    pooling = SpladePooling("max").train()  # eval mode works in place, which autograd refuses
    logits_BLV = (hidden * scale) @ weight.T
    features = {"token_embeddings": logits_BLV, "attention_mask": mask}
    return pooling(features)["sentence_embedding"]


@dataclass
class Case:
    """One row of the table: a head on one set of inputs."""

    head: str
    activity: str  # trained | untrained
    gradients: str  # LoRA | dH+dE
    forward_s: list[float] = field(default_factory=list)
    backward_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    error: float = float("nan")

    @property
    def total_s(self) -> float:
        return min(self.forward_s) + (min(self.backward_s) if self.backward_s else 0.0)


def make_inputs(args, activity: str):
    """Random states and weight, one coordinate of which sets how many terms are active."""
    generator = torch.Generator().manual_seed(args.seed)
    hidden = torch.randn(args.texts, args.length, args.hidden, generator=generator)
    weight = torch.randn(args.vocabulary, args.hidden, generator=generator) / args.hidden**0.5
    lengths = torch.full((args.texts,), args.length)
    if args.real < 1:
        spread = torch.rand(args.texts, generator=generator) * 2 * (1 - args.real)
        lengths = (args.length * (1 - spread)).round().long().clamp(min=1)
    mask = torch.arange(args.length) < lengths[:, None]
    hidden[..., 0], weight[:, 0] = 1.0, 0.0
    logits = (hidden @ weight[:SLICE].T).masked_fill(~mask.unsqueeze(-1), -torch.inf)
    maxima = logits.amax(1).flatten()
    rank = max(1, round((1 - ACTIVE[activity]) * len(maxima)))
    weight[:, 0] = -float(maxima.kthvalue(rank).values)
    upstream = torch.randn(args.texts, args.vocabulary, generator=generator)
    place = {"device": args.device, "dtype": args.dtype}
    return hidden.to(**place), weight.to(**place), mask.to(args.device), upstream.to(**place)


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most that torch had allocated during `run` on top of what it had before."""
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return peak


def step(head: Head, inputs, case: Case, device: str) -> None:
    """One forward and backward pass, timed into the case."""
    hidden, weight, mask, upstream = inputs
    hidden = hidden.detach().requires_grad_()
    weight = weight.detach().requires_grad_(case.gradients == "dH+dE")
    began = clock(device)
    reps = head(hidden, weight, mask, hidden.shape[-1] ** -0.25)
    middle = clock(device)
    reps.backward(upstream)
    case.backward_s.append(clock(device) - middle)
    case.forward_s.append(middle - began)


def measure(args) -> list[Case]:
    heads: dict[str, Head] = {"naive": naive, "paper": paper}
    try:
        import sentence_transformers as _

        heads["sentence-transformers"] = sentence_transformers
    except ImportError:
        print("sentence-transformers is not installed: its rows are left out", file=sys.stderr)
    heads[OURS] = sparse_reps
    heads = {name: head for name, head in heads.items() if name in args.heads}
    cases: list[Case] = []
    for activity in args.activity:
        inputs = make_inputs(args, activity)
        hidden, weight, mask, _ = inputs
        scale = args.hidden**-0.25
        exact = naive(hidden.double(), weight[:SLICE].double(), mask, scale)
        bare = Case(BARE, activity, "-")
        own = [Case(name, activity, gradients) for gradients in args.gradients for name in heads]
        flat, transposed = hidden.reshape(-1, args.hidden), weight.T
        for _ in range(args.rounds):
            began = clock(args.device)
            product = flat @ transposed
            bare.forward_s.append(clock(args.device) - began)
            del product
            for case in own:
                step(heads[case.head], inputs, case, args.device)
        bare.peak_bytes = hidden[..., 0].numel() * len(weight) * hidden.element_size()
        for case in own:
            head = heads[case.head]
            once = functools.partial(step, head, inputs, replace(case, forward_s=[], backward_s=[]))
            case.peak_bytes = peak_bytes(functools.partial(once, args.device), args.device)
            reps = head(hidden, weight[:SLICE].contiguous(), mask, scale)
            case.error = float((reps.double() - exact).abs().max())
        cases += [bare, *own]
    return cases


def table(cases: list[Case]) -> str:
    lines = [
        "| active terms | gradients | head | forward s | backward s | total s | peak MB | max error | time / ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        ours = next(
            (
                c.total_s
                for c in cases
                if c.head == OURS
                and c.activity == case.activity
                and case.gradients in ("-", c.gradients)
            ),
            float("nan"),
        )
        backward = f"{min(case.backward_s):.3f}" if case.backward_s else ""
        error = f"{case.error:.1e}" if case.error == case.error else ""
        lines.append(
            f"| {case.activity} | {case.gradients} | {case.head} | {min(case.forward_s):.3f} | {backward} "
            f"| {case.total_s:.3f} | {case.peak_bytes / 2**20:.0f} | {error} | {case.total_s / ours:.2f} |"
        )
    return "\n".join(lines)


def failures(cases: list[Case], dtype: torch.dtype, timings: bool) -> list[str]:
    """What of the pass line is not met."""
    found = []
    limit = HALF_ERROR.get(dtype, LARGEST_ERROR)
    for ours in (c for c in cases if c.head == OURS):
        where = f"{ours.activity}, {ours.gradients}"
        if not ours.error < limit:
            found.append(f"{where}: error {ours.error:.1e}, to be below {limit:.0e}")
        if ours.gradients != "LoRA":
            continue
        for name, least in LEAST_SPEEDUP[ours.activity].items():
            for other in cases:
                if (other.head, other.activity, other.gradients) != (name, ours.activity, "LoRA"):
                    continue
                speedup = other.total_s / ours.total_s
                if timings and speedup < least:
                    found.append(f"{where}: {speedup:.2f} x {name}, to be at least {least}")
                share = ours.peak_bytes / other.peak_bytes
                if share > LARGEST_MEMORY_SHARE:
                    found.append(
                        f"{where}: {share:.3f} of the memory of {name}, "
                        f"to be at most {LARGEST_MEMORY_SHARE}"
                    )
    return found


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--real", type=float, default=1.0, help="mean share of tokens not padding")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--activity", nargs="+", choices=list(ACTIVE), default=list(ACTIVE))
    parser.add_argument(
        "--gradients", nargs="+", choices=["LoRA", "dH+dE"], default=["LoRA", "dH+dE"]
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a small shape; correctness and memory, not timings"
    )
    args = parser.parse_args(argv)
    if args.smoke:
        args.texts, args.length, args.hidden = 16, 128, 64
        args.vocabulary, args.rounds = 16_384, 1
    args.dtype = getattr(torch, args.dtype)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    print(
        f"B={args.texts} L={args.length} D={args.hidden} V={args.vocabulary} {args.dtype} "
        f"on {args.device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n"
    )
    cases = measure(args)
    print(table(cases))
    missed = failures(cases, args.dtype, timings=not args.smoke)
    checked = "error and memory" if args.smoke else "error, memory and time"
    print(
        "\n" + "\n".join(f"NOT MET {line}" for line in missed) if missed else f"\npass: {checked}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
