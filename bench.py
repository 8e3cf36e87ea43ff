"""How fast a student is: compared with its teacher, with other tools, and with the best that the machine can do.

    python bench.py runs/minilm-3/model                                     # the teacher is the run's own
    python bench.py MODEL --teacher T --precision all --peers               # and ONNX Runtime, OpenVINO, ...
    python bench.py MODEL --teacher T --precision all --latency             # and one query at a time
    python bench.py --shape bert-large --layers 24,8 --peers                # random weights of a shape, no download

All systems encode the same sentences in turn, A B C A B C ..., tokenising included. The figure is the median of the
turns, with the slowest and the fastest beside it: on a shared machine a median is disturbed least. `fraction_of_peak`
compares with matrix products of the model's shapes in the same precision, timed on this machine in the same turns.
`cosine` is the mean cosine similarity of a system's embeddings with this project's in fp32.
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("bench")  # --help and a wrong flag end here, before the seconds that the imports below take

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from shortstack.benchmark import peers
from shortstack.benchmark.latency import TOKENS, of_embedder, of_other_tools, one_query, queries_of
from shortstack.benchmark.random_models import random_embedder, random_sentences, shape_config
from shortstack.benchmark.timing import (
    Encoder,
    describe_device,
    encoder_flops,
    gelu_milliseconds,
    in_turn,
    peak_memory_mib,
    products_of,
)
from shortstack.distillation.command_line import run_command
from shortstack.distillation.data.sentences import read_sentences
from shortstack.distillation.evaluation.sets import read_held_out
from shortstack.distillation.recipe import overrides_for, read_recipe
from shortstack.distillation.run import run_directory
from shortstack.model import Embedder
from shortstack.model.directory import usable_device
from shortstack.model.encoding import CPU_BATCH
from shortstack.model.files import InputError, write_json
from shortstack.model.pooling import Pooling
from shortstack.model.precision import cpu_has_bf16, cpu_has_int8, resolve_precision

GPU_BATCH = 4096  # sentences to encode at a time at most; their tokens are bounded as well
ASSETS = Path("assets/sentences")  # where `prepare` puts the default's text


@dataclass
class System:
    """One thing to time: its name, the precision of its products, and what loads it."""

    name: str
    precision: str
    make: Callable[[], Encoder]
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = self.make()


def encode_once(make: Callable[[], Encoder], sentences: Sequence[str], batch_size: int) -> None:
    """Load and encode: what a system's memory is measured on."""
    make().encode(sentences, prompt="", batch_size=batch_size)


def bench(
    systems: Sequence[System], exact: dict[str, np.ndarray], sentences: list[str], repeats: int, batch_size: int
) -> dict[str, Any]:
    """Time systems in `repeats` turns; returns the content of bench.json.

    Args:
        systems: the first two are this project's teacher and student. Those named "student" have the student's weights,
            all others the teacher's.
        exact: the embeddings of both in fp32, by name, (n, dimensions).
        sentences: n sentences to encode.
        batch_size: sentences at a time.
    """
    teacher, student = (system.encoder for system in systems[:2])
    assert isinstance(teacher, Embedder) and isinstance(student, Embedder)
    device, config = teacher.device, teacher.bert.config
    lengths = np.array([len(tokens) for tokens in teacher.tokenize(sentences)])

    encodings = [partial(system.encoder.encode, sentences, prompt="", batch_size=batch_size) for system in systems]
    tokenizing = partial(teacher.tokenize, sentences)
    every = precisions_to_measure(["all"], device) if device.type == "cpu" else []
    peaks = dict.fromkeys([*every, *(system.precision for system in systems)], 0.0)
    products = [product for precision in peaks for product in products_of(config, precision, device)]
    seconds = in_turn([*encodings, tokenizing, *(product.work for product in products)], repeats, device)
    for product, times in zip(products, seconds[len(systems) + 1 :], strict=True):
        peaks[product.precision] = max(peaks[product.precision], product.flops / statistics.median(times))

    rows: list[dict[str, Any]] = []
    for system, encoding, times in zip(systems, encodings, seconds, strict=False):
        quality = {
            "cosine": mean_cosine(encoding(), exact.get(system.name, exact["teacher"])),
            "peak_memory_mib": peak_memory_mib(partial(encode_once, system.make, sentences, batch_size), device),
        }
        rows.append(speed_of(system, config, lengths, times, peaks[system.precision]) | quality)
    return {
        "device": describe_device(device) | {"peak_tflops": {key: value / 1e12 for key, value in peaks.items()}},
        "workload": {
            "sentences": len(sentences),
            "tokens": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
            "batch_size": batch_size,
            "repeats": repeats,
            "real_token_fraction": 1.0,  # packed: no padding is ever computed
            "tokenized_sentences_per_second": len(sentences) / statistics.median(seconds[len(systems)]),
            "timed": "encode, tokenising included; median of the repeats, systems in turn",
        },
        "rows": rows,
        "student_speedup": rows[1]["sentences_per_second"] / rows[0]["sentences_per_second"],
        "layer_ratio": rows[0]["layers"] / rows[1]["layers"] if rows[1]["layers"] else None,
        "training": [],
        "latency": [],
        "gelu_ms": gelu_milliseconds(),
    }


def speed_of(
    system: System, config: PretrainedConfig, lengths: np.ndarray, times: list[float], peak: float
) -> dict[str, Any]:
    """A system's speed from the seconds of its turns; `config` gives the shape where the system is another tool's."""
    ours = system.encoder if isinstance(system.encoder, Embedder) else None
    shape = ours.bert.config if ours else config
    first_token_only = ours is not None and ours.settings.pooling is Pooling.CLS
    median = statistics.median(times)
    rate = encoder_flops(shape, lengths, first_token_only) / median
    return {
        "system": system.name,
        "precision": system.precision,
        "layers": shape.num_hidden_layers,
        "sentences_per_second": len(lengths) / median,
        "slowest": len(lengths) / max(times),
        "fastest": len(lengths) / min(times),
        "tokens_per_second": float(lengths.sum()) / median,
        "tflops": rate / 1e12,
        "fraction_of_peak": rate / peak,
    }


def mean_cosine(embeddings: Any, exact: np.ndarray) -> float:
    """The mean cosine similarity of embeddings, on any device, with exact ones, row by row: (n, dimensions) each."""
    rounded = torch.as_tensor(embeddings).cpu()
    return float(torch.nn.functional.cosine_similarity(rounded, torch.from_numpy(exact)).mean())


def print_table(result: dict[str, Any]) -> None:
    """Print the content of bench.json as a table."""
    tokens = result["workload"]["tokens"]["mean"]
    print(f"{result['device']['name']}, {result['workload']['sentences']:,} sentences of {tokens:.1f} tokens")
    peaks = result["device"]["peak_tflops"].items()
    print("products, TFLOP/s: " + ", ".join(f"{precision} {rate:.3f}" for precision, rate in peaks))
    for row in result["gelu_ms"]:
        shape = f"{row['inputs']} to {row['outputs']}, {row['type']}"
        print(f"product with GELU, {shape}: {row['one_pass']:.3f} ms in one pass, {row['two_passes']:.3f} in two")
    heads = ("sentences/s", "slowest..fastest", "of peak", "MiB", "cosine")
    print(
        f"{'system':<39} {'precision':<9} {'layers':>6} {heads[0]:>12} {heads[1]:>17} {heads[2]:>8} {heads[3]:>6} "
        f"{heads[4]:>8}"
    )
    for row in result["rows"]:
        spread, memory = f"{row['slowest']:.0f}..{row['fastest']:.0f}", row["peak_memory_mib"]
        print(
            f"{row['system']:<39} {row['precision']:<9} {row['layers']:>6} {row['sentences_per_second']:>12.1f} "
            f"{spread:>17} {row['fraction_of_peak']:>8.0%} {'' if memory is None else f'{memory:.0f}':>6} "
            f"{row['cosine']:>8.5f}"
        )
    for row in result["training"]:
        spread = f"{row['slowest']:.0f}..{row['fastest']:.0f}"
        peak = result["device"]["peak_tflops"].get(row["precision"])
        share, memory = f"{row['tflops'] / peak:.0%}" if peak else "", row["peak_memory_mib"]
        name = f"training, batch {row['batch_size']}: {row['system'].replace('sentence-transformers', 's.-t.')}"
        print(
            f"{name:<39} {row['precision']:<9} {row['layers']:>6} {row['sentences_per_second']:>12.1f} {spread:>17} "
            f"{share:>8} {'' if memory is None else f'{memory:.0f}':>6}"
        )
    speedup, ratio = result["student_speedup"], result["layer_ratio"]
    print(f"the student is {speedup:.2f} times as fast" + (f"; its layers promise {ratio:.2f}" if ratio else ""))
    if result["latency"]:
        print("one query at a time, milliseconds, p50 / p99")
        print(f"{'system':<39} {'precision':<9} {'layers':>6} " + " ".join(f"{f'{n} tokens':>15}" for n in TOKENS))
        for row in result["latency"]:
            times = [f"{latency['p50']:.2f} / {latency['p99']:.2f}" for latency in row["latency_ms"].values()]
            cells = " ".join(f"{time:>15}" for time in times)
            print(f"{row['system']:<39} {row['precision']:<9} {row['layers']:>6} {cells}")


# -- the command -----------------------------------------------------------------------------------------------------


def precisions_to_measure(names: Sequence[str], device: torch.device) -> list[str]:
    """Precisions by name, "auto" resolved; "all" means those that the device has instructions for."""
    if "all" in names:
        if device.type == "cuda":
            return ["fp32", "bf16", "fp16"]
        return ["fp32", *(["bf16"] if cpu_has_bf16() else []), *(["int8"] if cpu_has_int8() else [])]
    if "bf16" in names and device.type == "cpu" and not cpu_has_bf16():
        print("note: this CPU has no bf16 instructions; bf16 will be many times slower than fp32", file=sys.stderr)
    return list(dict.fromkeys(resolve_precision(name, device) for name in names))


def teacher_and_student(
    arguments: argparse.Namespace, run: Path | None, device: torch.device, scratch: Path
) -> list[partial[Embedder]]:
    """Functions that load the teacher and the student, given a precision."""
    if arguments.shape:
        if arguments.model:
            raise InputError("--shape: takes no MODEL")
        layers = shape_config(arguments.shape).num_hidden_layers
        numbers = arguments.layers or [layers, max(1, layers // 3)]
        if len(numbers) != 2:
            raise InputError("--layers: give two numbers, the teacher's and the student's, such as 24,8")
        made = [partial(random_embedder, arguments.shape, number, device) for number in numbers]
        if not arguments.peers:
            return made
        directories = [scratch / "teacher", scratch / "student"]
        for make, directory in zip(made, directories, strict=True):
            make(precision="fp32").save(directory)
        return [partial(Embedder.load, directory, device) for directory in directories]
    if not arguments.model:
        raise InputError("give MODEL, or --shape for random weights; see --help")
    recipe = read_recipe(run / "recipe.toml") if run is not None else None
    teacher = arguments.teacher or (recipe.known_teacher if recipe else None)
    if teacher is None:
        raise InputError(f"{arguments.model}: no run names its teacher; give --teacher")
    overrides = overrides_for(teacher, recipe)
    return [partial(Embedder.load, teacher, device, **overrides), partial(Embedder.load, arguments.model, device)]


def sentences_to_encode(arguments: argparse.Namespace, run: Path | None, embedder: Embedder) -> list[str]:
    """The text that the flags name, else what the run held out, else the default's text, else random words."""
    if arguments.sentences:
        texts = itertools.chain.from_iterable(read_sentences(source) for source in arguments.sentences)
        sentences = list(itertools.islice(texts, arguments.count))
    elif run is not None and (run / "held_out.json").exists():
        sentences, _ = read_held_out(run)
    elif not arguments.shape:
        sentences = [sentence for path in sorted(ASSETS.glob("*.txt")) for sentence in read_sentences(str(path))]
    else:
        sentences = []
    if not sentences and not arguments.shape:
        print("note: no text at hand, so random words are encoded; give --sentences", file=sys.stderr)
    return sentences[: arguments.count] or random_sentences(embedder, arguments.count, arguments.mean_tokens)


def main() -> None:
    arguments = parse_arguments("bench")
    device = usable_device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, device, Path(scratch))


def measure(arguments: argparse.Namespace, device: torch.device, scratch: Path) -> None:
    """Time what the flags name, print and write it; `scratch` is for other tools' files."""
    precisions = precisions_to_measure(arguments.precision, device)
    run = run_directory(arguments.model) if arguments.model else None
    output = arguments.output or run or Path(".")
    teacher, student = teacher_and_student(arguments, run, device, scratch)
    models = {"teacher": teacher, "student": student}
    systems = [
        System(name, precision, partial(make, precision=precision))
        for precision in precisions
        for name, make in models.items()
    ]
    first = systems[0].encoder
    assert isinstance(first, Embedder)
    sentences = sentences_to_encode(arguments, run, first)
    queries = queries_of(first, sentences, arguments.queries) if arguments.latency else {}
    if arguments.peers:
        systems += [System(*peer) for peer in peers.encoders(first, precisions, sentences, scratch)]
    exact = {name: np.asarray(make(precision="fp32").encode(sentences, prompt="")) for name, make in models.items()}
    is_cpu = device.type == "cpu"
    batch_size = arguments.batch_size or (CPU_BATCH if is_cpu else GPU_BATCH)
    result = bench(systems, exact, sentences, arguments.repeats, batch_size)
    if arguments.latency:
        ours = [(system.name, system.encoder) for system in systems if isinstance(system.encoder, Embedder)]
        for who in models:
            embedders = [embedder for name, embedder in ours if name == who]
            asked = [of_embedder(who, embedder) for embedder in embedders]
            asked += of_other_tools(who, embedders[0], scratch / "latency" / who) if is_cpu else []
            result["latency"] += one_query(asked, queries)
        del ours, embedders, asked
    if arguments.peers:
        del systems, first  # their memory is for the trainers
        sizes = [arguments.batch_size] if arguments.batch_size else [64, 512] if device.type == "cuda" else [64]
        for size in sizes:
            result["training"] += peers.trainers(student, sentences, size, arguments.steps, precisions)
    write_json(output / "bench.json", result)
    print_table(result)
    print(f"wrote {output / 'bench.json'}")


if __name__ == "__main__":
    run_command(main)
