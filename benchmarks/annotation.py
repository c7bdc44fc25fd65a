"""Rows per second of local teachers against a plain loop, with the rankings compared; and the error of the cost estimate.

python benchmarks/annotation.py                 # both teachers on MovieLens-100K, about 25 minutes on two cores
python benchmarks/annotation.py --server        # 50 sessions through a real server on loopback, about 4 minutes

The plain loop does what a first script does: one example at a time, the whole prompt each time, scores at every position
(e4srec) or transformers' own beam search (bigrec), then a full sort. It sees the same histories as the fast path. Both are
measured in one process, in turn, `--repeats` times; medians are written, all repeats are kept in results/raw/.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilrec.config_file import load_config
from distilrec.data.batching import training_windows
from distilrec.data.dataset import Dataset, training_examples
from distilrec.data.sources import fetch_llm
from distilrec.files import write_json
from distilrec.knowledge.annotate import answer, jobs_of
from distilrec.pipeline import Pipeline
from distilrec.teachers.llm import load_causal

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results/annotation.json"
TOP = 20
TEACHERS: dict[str, list[str]] = {
    "e4srec": ["teacher.name=e4srec", "teach.epochs=1"],
    "bigrec": [
        "teacher={name: bigrec, windows: 256}",
        "teach={epochs: 1, batch_tokens: 2048, learning_rate: 0.0005, validate_users: 32}",
    ],
}


def main() -> None:
    """Measure, and write what was found into results/annotation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--fast-rows", type=int, default=2000)
    parser.add_argument("--naive-rows", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--server", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if arguments.server:
        found |= server_figures()
    else:
        for name in arguments.teachers:
            found[name] = measured(name, arguments)
            write_json(ROOT / f"results/raw/annotation_{name}.json", found[name].pop("raw"))
    found["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    found["command"] = "python benchmarks/annotation.py; python benchmarks/annotation.py --server"
    write_json(RESULT, found)
    print(json.dumps(found, indent=2))


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one teacher in each precision; the first one's figures stand at the top."""
    words = [f"name=annotation-{name}", *TEACHERS[name], f"teacher.precision={arguments.precisions[0]}"]
    run = Pipeline(load_config(ROOT / "configs/demo.yaml", words), arguments.runs / f"annotation-{name}")
    trained = run.teaching.trained
    assert trained is not None
    by_precision = {}
    for precision in arguments.precisions:
        by_precision[precision] = compared(name, run, in_precision(run, trained.folder, precision), arguments)
        print(
            name, precision, {key: value for key, value in by_precision[precision].items() if key != "raw"}, flush=True
        )
    first = by_precision[arguments.precisions[0]]
    raw = {precision: part.pop("raw") for precision, part in by_precision.items()}
    return {
        "rows_per_s": first["rows_per_s"],
        "naive_rows_per_s": first["naive_rows_per_s"],
        "ratio": first["ratio"],
        "precisions": by_precision,
        "repeats": arguments.repeats,
        "raw": raw,
    }


def in_precision(run: Pipeline, folder: Path, precision: str) -> Any:
    """Load the trained teacher with its language model in another number format."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(folder, Path(place) / "teacher"))
        card = json.loads((copy / "teacher.json").read_text(encoding="utf-8"))
        card["settings"]["precision"] = precision
        write_json(copy / "teacher.json", card)
        return run.teacher_kind.restore(copy, run.teacher_settings, run.teaching.materials())


def compared(name: str, run: Pipeline, teacher: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask one teacher the fast way and the plain way, and compare rows per second and rankings."""
    dataset = run.data
    windows = training_windows(dataset, teacher.max_length, None)
    size = run.config.annotate.batch_tokens // teacher.tokens_per_item
    jobs = jobs_of(dataset, teacher.max_length, training_examples(dataset), size)
    order = np.random.default_rng(0).permutation(len(jobs))
    chosen, rows = [], 0
    for place in order:  # jobs of all lengths, as they come in a whole annotation
        chosen.append(jobs[place])
        rows += len(jobs[place].wanted)
        if rows >= arguments.fast_rows:
            break
    asked = np.random.default_rng(1).permutation(np.concatenate([job.wanted for job in chosen]))[: arguments.naive_rows]
    starts = starts_of(windows, asked)
    answer(teacher, dataset, windows, chosen[0], TOP)  # warm: prefix, titles' vectors
    plain = {"e4srec": plain_e4srec, "bigrec": plain_bigrec}[name](teacher, dataset)
    plain(*history(dataset, starts[0], asked[0]))
    fast_seconds, naive_seconds = [], []
    fast: dict[int, list[int]] = {}
    naive: dict[int, list[int]] = {}
    for _ in range(arguments.repeats):
        if name == "bigrec":
            teacher.grounding._known.clear()  # each repeat reads its texts again
        started = time.perf_counter()
        for job in chosen:
            frame = answer(teacher, dataset, windows, job, TOP)
            fast.update(zip(frame["example_id"].to_list(), frame["items"].to_list(), strict=True))
        fast_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        for example, start in zip(asked, starts, strict=True):
            naive[int(example)] = plain(*history(dataset, start, example))
        naive_seconds.append(time.perf_counter() - started)
    fast_rate = [rows / seconds for seconds in fast_seconds]
    naive_rate = [len(asked) / seconds for seconds in naive_seconds]
    same = [fast[example] == naive[example] for example in naive]
    overlap = [len(set(fast[example]) & set(naive[example])) / TOP for example in naive]
    return {
        "rows_per_s": statistics.median(fast_rate),
        "naive_rows_per_s": statistics.median(naive_rate),
        "ratio": statistics.median(fast_rate) / statistics.median(naive_rate),
        "identical_rankings": sum(same) / len(same),
        "overlap_top20": sum(overlap) / len(overlap),
        "rows": rows,
        "naive_rows": len(asked),
        "raw": {"rows_per_s": fast_rate, "naive_rows_per_s": naive_rate},
    }


def starts_of(windows: Any, examples: Any) -> list[int]:
    """Return where the history that each example is answered from begins."""
    order = np.argsort(windows.end)
    first = np.searchsorted(windows.end[order], examples)
    return [int(windows.start[order[place]]) for place in first]


def history(dataset: Dataset, start: int, example: int) -> tuple[torch.Tensor, list[int]]:
    """Return a history as tensor [1, L] and as list."""
    items = [int(item) for item in dataset.items[start:example]]
    return torch.tensor([items]), items


def plain_e4srec(teacher: Any, _dataset: Dataset) -> Any:
    """Return a function that ranks for one history: the whole prompt, scores at every position, a full sort."""

    @torch.no_grad()
    def rank(items: torch.Tensor, _items: list[int]) -> list[int]:
        inputs = torch.cat([teacher.prompt, teacher.project(teacher.id_embeddings[items])], dim=1)
        with torch.autocast("cpu", teacher.precision, enabled=teacher.precision != torch.float32):
            hidden = teacher.llm(inputs_embeds=inputs, use_cache=False).last_hidden_state.float()
        logits = hidden @ teacher.item_vectors().T
        return logits[0, -1].sort(descending=True, stable=True).indices[:TOP].tolist()

    return rank


def plain_bigrec(teacher: Any, dataset: Dataset) -> Any:
    """Return a function that ranks for one history: generate, embed the text, sort all distances."""
    full, _ = load_causal(fetch_llm(teacher.settings.llm), teacher.settings.layers, teacher.head.dtype)
    full.model = teacher.llm.base_model.model  # the trained one, LoRA on it
    full.lm_head.weight = torch.nn.Parameter(teacher.head, requires_grad=False)
    titles, vectors = teacher.titles, teacher.grounding.vectors
    known = {" ".join(title.split()): item for item, title in reversed(list(enumerate(dataset.titles)))}

    @torch.no_grad()
    def rank(_history: torch.Tensor, items: list[int]) -> list[int]:
        prompt = torch.tensor([[*teacher.instruction, *titles.lines(items)[0]]])
        out = full.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=teacher.settings.beams,
            do_sample=False,
            max_new_tokens=teacher.settings.max_new,
            length_penalty=0.0,
            eos_token_id=titles.ends,
            pad_token_id=titles.end,
        )[0, prompt.shape[1] :].tolist()
        ends = [place for place, token in enumerate(out) if token in titles.ends]
        text = teacher.tokenizer.decode(out[: ends[0]] if ends else out, skip_special_tokens=True).strip()
        vector = vectors[known[text]] if text in known else teacher._read([text])[0]
        distances = (vectors - vector).square().sum(dim=1).sqrt()
        return distances.sort(stable=True).indices[:TOP].tolist()

    return rank


def server_figures() -> dict[str, Any]:
    """Run the test against a real server and return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "pytest", "-q", "-s", str(ROOT / "tests/test_real_server.py")]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "DISTILREC_FIGURES": str(figures)})
        measured: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return {"cost_estimate_error": measured["cost_estimate_error"], "server": measured}


if __name__ == "__main__":
    main()
