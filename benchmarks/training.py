"""How fast SASRec trains and ranks here and in RecTools, RePlay and RecBole, on the same data, split, sizes and machine.

    python benchmarks/training.py --steps 20                             # speed and memory, from windows of 20 steps
    python benchmarks/training.py                                        # the same from whole epochs: hours
    python benchmarks/training.py --skip-speed --quality-epochs 5        # metrics after 5 epochs of each
    python benchmarks/training.py --steps 20 --only ours replay          # measure some again, keep the rest

Each tool trains through its own trainer in an environment of its own (made on first use), one process a training, one after
the other; peers/ holds the workers and protocol.py what they are asked. A peer is measured as its documentation shows it and
with whatever else it offers for the same loss, and with the C library's allocator as installed and tuned so that large
buffers are reused, which halves some peers' time. `epoch_s` is the fastest of these, `peak_rss_mb` the smallest,
`rank_users_per_s` the largest: each figure is the peer's best, and `as_documented` stands beside it. Ours runs as installed
alone, before and after the others; its figure is the median of both, so that a machine that slowed down shows.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
CE, SAMPLED = "ce", "sampled_softmax"
# glibc otherwise maps every large buffer afresh and gives it back at once, so that each step pays for its page faults again
ALLOCATORS = {
    "as installed": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)},
}
MODEL = {"width": 64, "blocks": 2, "heads": 2, "inner_size": 64,
         "max_length": 50, "dropout": 0.2, "learning_rate": 1e-3}  # fmt: skip
DOCUMENTED, BEST = "as documented", "best options"
CALL = round(time.time())  # tells the runs of this call from those of an earlier one


@dataclass(frozen=True, slots=True)
class Tool:
    """One library and how it is measured.

    Attributes:
        script: its worker.
        packages: what to install; none means the environment of this script.
        losses: which of the two it has.
        variants: options of the worker by name; the last is the fastest and trains for quality.
        allocators: see ALLOCATORS.
    """

    script: str
    packages: tuple[str, ...]
    losses: tuple[str, ...] = (CE, SAMPLED)
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {DOCUMENTED: {}})
    allocators: tuple[str, ...] = tuple(ALLOCATORS)


# Batches of 128 to rank were as fast as any for all three; more loader processes cannot help: loading takes RecTools under
# 1 % of an epoch (3 % where it draws negatives), and both cores are busy.
TOOLS = {
    "ours": Tool("ours.py", (), allocators=("as installed",)),
    "ours_bfloat16": Tool(  # not at equal settings, and in no ratio: what a processor with bfloat16 products makes of it
        "ours.py", (), losses=(CE,), variants={DOCUMENTED: {"precision": "bfloat16"}}, allocators=("as installed",)
    ),
    "rectools": Tool(
        "rectools_sasrec.py",
        ("rectools[torch]==0.19.0",),
        variants={DOCUMENTED: {"workers": 0, "recommend_batch_size": 128}},
    ),
    "replay": Tool(
        "replay_sasrec.py",
        ("replay-rec[torch]==0.22.0",),
        variants={
            DOCUMENTED: {"targets_only": False, "bucket": 0, "predict_batch_size": 128},
            BEST: {"targets_only": True, "bucket": 32, "predict_batch_size": 128},
        },
    ),
    "recbole": Tool(
        "recbole_sasrec_speed.py",
        ("recbole==1.2.1", "numpy<2", "pandas<3", "setuptools<81"),  # the newest that it imports with
        losses=(CE,),
        variants={DOCUMENTED: {"workers": 0, "predict_batch_size": 128}},
    ),
}


def main() -> int:
    """Measure, write."""
    arguments = parse_args()
    raw = {tool: arguments.out.parent / "raw" / f"{arguments.out.stem}_{tool}.json" for tool in TOOLS}
    with tempfile.TemporaryDirectory() as temporary:
        sequences = cut(arguments.sequences, arguments.users, Path(temporary) / "sequences.txt")
        protocol = protocol_of(arguments, sequences)
        failed = []
        for tool, runs in plan(arguments):
            try:
                python = environment(tool, arguments.environments)
            except subprocess.CalledProcessError as error:
                failed.append(f"{tool}: no environment ({error})")
                continue
            done = []
            for run in runs:
                job = job_of(tool, run, arguments, protocol, sequences)
                outcome = execute(tool, python, run, job, arguments)
                if outcome is None:
                    failed.append(f"{tool}: {run}")
                else:
                    done.append(outcome)
            if done:
                keep(raw[tool], protocol, done)
            write(arguments.out, summary(arguments, protocol, raw))
    for line in failed:
        log(f"failed: {line}")
    return 1 if failed else 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sequences", type=Path, default=HERE.parents[1] / "shared/data/amazon-beauty/sequences.txt")
    add("--name", default="beauty", help="what the data set is called in the results")
    add("--users", type=int, help="only the first so many users, to try the script")
    add("--steps", type=int, default=0, help="steps of a timed window; 0: one warm-up epoch and three timed ones")
    add("--warmup", type=int, default=5, help="steps before the first window")
    add("--skip-speed", action="store_true", help="only train for quality")
    add("--quality-epochs", type=int, default=0, help="train each so long with full cross-entropy and measure it")
    add("--losses", nargs="+", choices=(CE, SAMPLED), default=[CE, SAMPLED], help="time these")
    add("--batch-size", type=int, default=128, help="sequences of a step, full cross-entropy")
    add("--sampled-batch-size", type=int, default=128, help="sequences of a step, sampled softmax")
    add("--negatives", type=int, default=256)
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=42)
    add("--minutes", type=float, default=120.0, help="cap on one training")
    add("--only", nargs="+", choices=TOOLS, default=list(TOOLS), help="measure these, keep what is known of the others")
    add("--environments", type=Path, default=HERE.parent / ".bench")
    add("--out", type=Path, default=HERE.parent / "results/training_speed.json")
    arguments = parser.parse_args()
    shown = ("steps", "quality_epochs", "batch_size", "sampled_batch_size", "negatives", "users", "seed")
    changed = {name: getattr(arguments, name) for name in shown if getattr(arguments, name) != parser.get_default(name)}
    options = [f" --{name.replace('_', '-')} {value}" for name, value in changed.items()]
    arguments.command = "python benchmarks/training.py" + "".join(options)
    return arguments


def plan(arguments: argparse.Namespace) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the tools in the order they run in, each with its runs; ours comes first and last."""
    order = []
    for tool in arguments.only:
        runs = [
            {"loss": loss, "variant": variant, "allocator": allocator, "quality": False}
            for loss in TOOLS[tool].losses
            if loss in arguments.losses
            for variant in TOOLS[tool].variants
            for allocator in TOOLS[tool].allocators
        ]
        best = {"loss": CE, "variant": list(TOOLS[tool].variants)[-1], "allocator": TOOLS[tool].allocators[-1]}
        quality = [best | {"quality": True}] if arguments.quality_epochs else []
        if arguments.skip_speed:
            runs = []
        elif arguments.steps == 0 and arguments.quality_epochs >= 4:  # its epochs are timed too
            runs = [run for run in runs if run != best | {"quality": False}]
        order.append((tool, runs + quality))
    again = [(tool, [run for run in runs if not run["quality"]]) for tool, runs in order if tool == "ours"]
    order.sort(key=lambda entry: entry[0] != "ours")
    return order + [entry for entry in again if entry[1] and len(order) > 1]


def cut(source: Path, users: int | None, target: Path) -> Path:
    """Copy the first `users` lines, or all."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    target.write_text("".join(lines[:users]), encoding="utf-8")
    return target


def protocol_of(arguments: argparse.Namespace, sequences: Path) -> dict[str, Any]:
    """Return what must be equal for two measurements to stand side by side."""
    rows = [line.split()[1:] for line in sequences.read_text(encoding="utf-8").splitlines()]
    return {
        "data": {
            "sha256": hashlib.sha256(sequences.read_bytes()).hexdigest(),
            "users": len(rows),
            "items": len({item for row in rows for item in row}),
            "train_targets": sum(len(row) - 3 for row in rows),
        },
        "split": "leave-one-out: last item test, the one before it validation",
        "model": MODEL,
        "optimiser": "Adam, float32",
        "batch_size": {CE: arguments.batch_size, SAMPLED: arguments.sampled_batch_size},
        "negatives": arguments.negatives,
        "threads": arguments.threads,
        "seed": arguments.seed,
    }


def job_of(
    tool: str, run: dict[str, Any], arguments: argparse.Namespace, protocol: dict[str, Any], sequences: Path
) -> dict[str, Any]:
    """Return the job as protocol.py describes it, without its folder."""
    options = dict(TOOLS[tool].variants[run["variant"]])
    batch_size = protocol["batch_size"][run["loss"]]
    if tool == "recbole":  # rows, not sequences: as many steps an epoch as the others
        steps = -(-protocol["data"]["users"] // batch_size)
        options["rows"] = -(-protocol["data"]["train_targets"] // steps)
    whole = run["quality"] or tool.startswith("ours")
    return MODEL | {
        "sequences": str(sequences),
        "loss": run["loss"],
        "batch_size": batch_size,
        "negatives": arguments.negatives,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "steps": 0 if whole else arguments.steps,
        "warmup": arguments.warmup,
        "epochs": arguments.quality_epochs if run["quality"] else 4,
        "rank": run["loss"] == CE and run["variant"] == list(TOOLS[tool].variants)[-1] and not run["quality"],
        "quality": run["quality"],
        "options": options,
    }


def environment(tool: str, folder: Path) -> Path:
    """Make the tool's virtual environment, or use the finished one; return its Python."""
    packages = TOOLS[tool].packages
    if not packages:
        return Path(sys.executable)
    target = folder.absolute() / tool
    python, marker, wanted = target / "bin/python", target / "installed", "\n".join((TORCH, *packages))
    if not (marker.exists() and marker.read_text(encoding="utf-8") == wanted):
        log(f"{tool}: installing {', '.join(packages)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", TORCH, *packages], check=True)
        marker.write_text(wanted, encoding="utf-8")
    return python


def execute(
    tool: str, python: Path, run: dict[str, Any], job: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any] | None:
    """Run one job in a process of its own; None where it failed."""
    threads = str(arguments.threads)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MALLOC_"))}
    env = clean | ALLOCATORS[run["allocator"]]
    env |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "job.json").write_text(json.dumps(job | {"folder": str(folder)}), encoding="utf-8")
        command = [str(python), str(HERE / "peers" / TOOLS[tool].script), "job.json", str(folder / "answer.json")]
        try:
            subprocess.run(
                command, cwd=folder, env=env, check=True, capture_output=True, text=True, timeout=arguments.minutes * 60
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            log(f"{tool}, {run}: {error}\n{str(error.stderr)[-3000:]}")
            return None
        outcome: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    outcome = run | {"command": arguments.command, "load_before": round(load, 2)} | outcome
    log(
        f"{tool}, {run['loss']}, {run['variant']}, allocator {run['allocator']}: {outcome['epoch_s']:.1f} s an epoch, "
        f"peak {outcome['peak_rss_mb']:.0f} MiB"
        + (f", ranks {outcome['rank_users_per_s']:.0f} users/s" if "rank_users_per_s" in outcome else "")
        + (f", test NDCG@10 {outcome['ndcg@10']:.4f}" if "ndcg@10" in outcome else "")
    )
    return outcome


def keep(path: Path, protocol: dict[str, Any], done: list[dict[str, Any]]) -> None:
    """Add runs to those known of a tool; a run replaces older ones of its kind, ours from the same call excepted."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    older = known["runs"] if known.get("protocol") == protocol else []
    fresh = {kind(run) for run in done}
    older = [run for run in older if kind(run) not in fresh or run["call"] == CALL]
    write(path, {"protocol": protocol, "runs": older + [run | {"call": CALL} for run in done]})


def kind(run: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells runs of one tool apart."""
    return run["loss"], run["variant"], run["allocator"], run["quality"]


def summary(arguments: argparse.Namespace, protocol: dict[str, Any], raw: dict[str, Path]) -> dict[str, Any]:
    """Return the published figures of all tools that were measured under this protocol."""
    tools: dict[str, Any] = {}
    commands: dict[str, None] = {}
    for tool, path in raw.items():
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"protocol": protocol, "runs": []}
        if known["protocol"] != protocol:
            log(f"{tool} was measured under other settings and is left out: measure it again")
            continue
        if known["runs"]:
            tools[tool] = figures(known["runs"])
            commands |= dict.fromkeys(run["command"] for run in known["runs"])
    earlier = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    return {
        arguments.name: tools,
        "ratios": ratios(tools),
        "floor_ratio": earlier.get("floor_ratio"),
        "protocol": protocol,
        "machine": machine() | {"threads": arguments.threads},
        "command": "; ".join(commands),
    }


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one tool's figures: a peer's best, our own usual."""
    ours = "distilrec" in runs[0]["versions"]
    ranking = [run["rank_users_per_s"] for run in runs if "rank_users_per_s" in run]
    quality = next((run for run in runs if run["quality"]), {})
    timed = [run for run in runs if not (run["quality"] and run["epochs"] == 1)]  # the first epoch is a warm-up
    return {
        **speed([run for run in timed if run["loss"] == CE], "", max if ours else min),
        **speed([run for run in timed if run["loss"] == SAMPLED], "sampled_", max if ours else min),
        "rank_users_per_s": None if not ranking else statistics.median(ranking) if ours else max(ranking),
        "quality_epochs": quality.get("epochs"),
        **{name: quality.get(name) for name in ("hr@10", "ndcg@10", "valid_ndcg@10")},
        **{name: runs[-1][name] for name in ("train_targets", "steps_per_epoch", "parameters", "versions")},
        "options": {run["variant"]: run["options"] for run in runs},
    }


def speed(runs: list[dict[str, Any]], prefix: str, memory: Callable[[list[float]], float]) -> dict[str, Any]:
    """Return the fastest of the ways in which one loss was trained, and the way the documentation shows it."""
    ways: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        ways.setdefault((run["variant"], run["allocator"], run["mode"]), []).extend(run["epoch_s_each"])
    seconds = {way: statistics.median(epochs) for way, epochs in ways.items()}
    fastest = min(seconds, key=lambda way: seconds[way], default=None)
    documented = [value for way, value in seconds.items() if way[:2] == (DOCUMENTED, "as installed")]
    return {
        f"{prefix}epoch_s": seconds[fastest] if fastest else None,
        f"{prefix}epoch_s_as_documented": min(documented, default=None),
        f"{prefix}epoch_s_documented_any_allocator": min(
            (value for way, value in seconds.items() if way[0] == DOCUMENTED), default=None
        ),
        f"{prefix}peak_rss_mb": memory([run["peak_rss_mb"] for run in runs]) if runs else None,
        f"{prefix}fastest": dict(zip(("options", "allocator", "mode"), fastest, strict=True)) if fastest else None,
        f"{prefix}epoch_s_each": ways[fastest] if fastest else [],
    }


def ratios(tools: dict[str, Any]) -> dict[str, Any]:
    """Return how many times better ours is than each peer's best figure, and than the best of all peers."""
    if "ours" not in tools:
        return {}
    ways = ("epoch_s", "epoch_s_as_documented", "epoch_s_documented_any_allocator")
    smaller = (*ways, *(f"sampled_{way}" for way in ways), "peak_rss_mb", "sampled_peak_rss_mb")
    result: dict[str, Any] = {}
    for tool, peer in tools.items():
        if not tool.startswith("ours"):
            result[tool] = {name: _ratio(peer[name], tools["ours"][name]) for name in smaller}
            result[tool]["rank_users_per_s"] = _ratio(tools["ours"]["rank_users_per_s"], peer["rank_users_per_s"])
    names = list(next(iter(result.values()), {}))
    found = {name: [entry[name] for entry in result.values() if entry[name] is not None] for name in names}
    return result | {"least": {name: min(values, default=None) for name, values in found.items()}}


def _ratio(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or lower is None else upper / lower


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": f"{platform.system()}, {' '.join(platform.libc_ver())}",
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def log(line: str) -> None:
    """Say it on the error stream."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
