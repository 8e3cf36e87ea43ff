"""How fast a student is: beside its teacher, beside other tools, and beside what the machine could do at best.

    python bench.py runs/minilm-3/model                                # the teacher is the run's own
    python bench.py MODEL --teacher T --precision fp32 int8 --peers    # and ONNX Runtime, sentence-transformers
    python bench.py --shape bert-large --layers 24 8                   # random weights of a shape, no download

Every system encodes the same sentences, tokenising included, in turn: A B C A B C ... The figure is the median of the
repeats, which a machine that others use disturbs least, with the fastest and slowest beside it. GPUs are timed by CUDA
events, CPUs by a monotonic clock. `fraction_of_peak` compares with this machine's own matrix products, of the model's
shapes and in the same precision, measured in the same minute.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig

from distillation.recipe import OneLineParser, read_recipe
from distillation.sentences import read_sentences
from evaluate import run_directory
from model import DistilledBert, Embedder
from model.embedder import Settings
from model.files import InputError, read_json, run_command, write_json
from model.loading import best_device
from model.pooling import Pooling
from model.products import cpu_has_bf16, dtype_of, make_product_for, resolve_precision

SHAPES = {
    "minilm-l6": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
    "bert-base": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "bert-large": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
}


@dataclass
class System:
    """One thing to time: what it is called, what it runs, and its seconds so far."""

    system: str
    precision: str
    encode: Callable[[], Any]
    embedder: Embedder | None = None
    seconds: list[float] = field(default_factory=list)


# -- timing ----------------------------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a piece of work takes, on the GPU's own clock where there is one."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def time_in_turn(systems: Sequence[System], repeats: int, device: torch.device) -> None:
    """Run every system once to warm up, then all of them in turn, `repeats` times."""
    for system in systems:
        system.encode()
    for _ in range(repeats):
        for system in systems:
            system.seconds.append(seconds_of(system.encode, device))


def peak_memory_mib(work: Callable[[], Any], device: torch.device) -> float:
    """Most memory in use during a piece of work, MiB: the GPU's allocations, or this process's resident set so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # starts the kernel's record of the peak anew
    work()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# -- what the hardware allows ----------------------------------------------------------------------------------------


def encoder_flops(embedder: Embedder, lengths: np.ndarray) -> float:
    """Floating-point operations that the encoder's layers need for sentences of these lengths.

    A layer's products cost 2 operations a weight and token, its attention 4 D a pair of tokens. With cls pooling the
    last layer computes queries, keys and values for all tokens and the rest for the first only. Embeddings, norms and
    activations are left out.
    """
    config = embedder.bert.config
    D, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, pairs = float(lengths.sum()), float((lengths.astype(float) ** 2).sum())
    qkv, rest = 2 * 3 * D * D, 2 * (D * D + 2 * D * inner)
    whole = tokens * (qkv + rest) + 4 * D * pairs
    if embedder.settings.pooling is not Pooling.CLS:
        return layers * whole
    return (layers - 1) * whole + tokens * (qkv + 4 * D) + len(lengths) * rest


def peak_flops(embedder: Embedder, precision: str, device: torch.device) -> float:
    """Operations a second of this machine's matrix products in a precision: the best over the model's shapes."""
    config = embedder.bert.config
    make, dtype = make_product_for(precision, device), dtype_of(precision)
    best = 0.0
    for rows in (1024, 4096):
        for inputs, outputs in (
            (config.hidden_size, config.intermediate_size),
            (config.intermediate_size, config.hidden_size),
        ):
            product = make(torch.randn(outputs, inputs, device=device), torch.zeros(outputs, device=device))
            x_NI = torch.randn(rows, inputs, device=device, dtype=dtype)
            with torch.inference_mode():
                for _ in range(3):
                    product(x_NI)
                times = [seconds_of(lambda p=product, x=x_NI: p(x), device) for _ in range(15)]  # type: ignore[misc]
            best = max(best, 2 * rows * inputs * outputs / statistics.median(times))
    return best


def describe_device(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "torch": torch.__version__}
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    wanted = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    found = torch.cpu.get_capabilities()
    return {
        "type": "cpu",
        "name": names[0].split(":", 1)[1].strip() if names else "CPU",
        "cores": len(names),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in wanted if found.get(name)],
        "torch": torch.__version__,
    }


# -- what is timed ---------------------------------------------------------------------------------------------------


def row_of(system: System, lengths: np.ndarray, peaks: dict[str, float], device: torch.device) -> dict[str, Any]:
    """A line of bench.json's `rows`."""
    median = statistics.median(system.seconds)
    row: dict[str, Any] = {
        "system": system.system,
        "precision": system.precision,
        "layers": None,
        "sentences_per_second": len(lengths) / median,
        "slowest": len(lengths) / max(system.seconds),
        "fastest": len(lengths) / min(system.seconds),
        "tokens_per_second": float(lengths.sum()) / median,
        "tflops": None,
        "fraction_of_peak": None,
        "peak_memory_mib": peak_memory_mib(system.encode, device),
    }
    if system.embedder is not None:
        flops = encoder_flops(system.embedder, lengths)
        row["layers"] = system.embedder.bert.config.num_hidden_layers
        row["tflops"] = flops / median / 1e12
        row["fraction_of_peak"] = flops / median / peaks[system.precision]
    return row


def bench(
    teacher: Embedder, student: Embedder, sentences: list[str], precisions: Sequence[str], repeats: int, batch_size: int
) -> dict[str, Any]:
    """Time teacher and student; returns the content of bench.json."""
    device = student.device
    lengths = np.array([len(tokens) for tokens in student.tokenize(sentences)])
    rows, peaks = [], {}
    for precision in precisions:
        peaks[precision] = peak_flops(student, precision, device)
        systems = []
        for name, embedder in (("teacher", teacher), ("student", student)):
            embedder.use_precision(precision)
            systems.append(
                System(name, precision, lambda e=embedder: e.encode(sentences, batch_size=batch_size), embedder)  # type: ignore[misc]
            )
        time_in_turn(systems, repeats, device)
        rows += [row_of(system, lengths, peaks, device) for system in systems]
    first = {row["system"]: row for row in rows if row["precision"] == precisions[0]}
    return {
        "device": describe_device(device) | {"peak_tflops": {key: value / 1e12 for key, value in peaks.items()}},
        "workload": {
            "sentences": len(sentences),
            "tokens": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
            "batch_size": batch_size,
            "repeats": repeats,
            "real_token_fraction": 1.0,  # packed: no padding is ever computed
            "timed": "encode, tokenising included; median of the repeats, systems in turn",
        },
        "rows": rows,
        "student_speedup": first["student"]["sentences_per_second"] / first["teacher"]["sentences_per_second"],
        "layer_ratio": first["teacher"]["layers"] / first["student"]["layers"],
        "training": [],
    }


def random_embedder(shape: str, layers: int, device: torch.device) -> Embedder:
    """An embedder with random weights of a named shape or of a config.json, with a tokenizer of numbers as words.

    Raises:
        InputError: no such shape or file.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if shape in SHAPES:
        config = BertConfig.from_dict(SHAPES[shape])
    elif Path(shape).is_file():
        config = BertConfig.from_dict(read_json(shape))
    else:
        raise InputError(f"--shape: {shape!r} is neither one of {', '.join(SHAPES)} nor a config.json")
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    bert = DistilledBert(config)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    words |= {str(number): number for number in range(4, config.vocab_size)}
    rust = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    rust.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    settings = Settings(pooling=Pooling.CLS, max_length=config.max_position_embeddings, origin=shape)
    return Embedder(bert, tokenizer, settings).eval().to(device)


def random_sentences(count: int, mean_tokens: int, vocabulary: int, seed: int = 0) -> list[str]:
    """Sentences of numbers for `random_embedder`'s tokenizer: lengths spread around a mean, [CLS] and [SEP] counted."""
    generator = np.random.default_rng(seed)
    lengths = np.maximum(3, generator.poisson(mean_tokens, size=count)) - 2
    return [" ".join(map(str, generator.integers(4, vocabulary, size=length))) for length in lengths]


def print_table(result: dict[str, Any]) -> None:
    """The rows as text."""
    tokens = result["workload"]["tokens"]["mean"]
    print(f"{result['device']['name']}, {result['workload']['sentences']:,} sentences of {tokens:.1f} tokens")
    heads = f"{'layers':>6} {'sentences/s':>12} {'slowest..fastest':>18} {'of peak':>8} {'MiB':>6}"
    print(f"{'system':<30} {'precision':<9} {heads}")
    for row in result["rows"]:
        share = "" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.0%}"
        spread = f"{row['slowest']:.0f}..{row['fastest']:.0f}"
        print(
            f"{row['system']:<30} {row['precision']:<9} {row['layers'] or '':>6} {row['sentences_per_second']:>12.1f} "
            f"{spread:>18} {share:>8} {row['peak_memory_mib'] or 0:>6.0f}"
        )
    for row in result["training"]:
        print(f"training: {row['system']:<40} {row['sentences_per_second']:>10.1f} sentences/s")
    speedup, promise = result["student_speedup"], result["layer_ratio"]
    print(f"the student is {speedup:.2f} times as fast; its layers promise {promise:.2f}")


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="student: a directory or a Hub name")
    parser.add_argument("--teacher", metavar="T", help="directory or Hub name (default: the run's teacher)")
    parser.add_argument("--shape", help=f"random weights instead: {', '.join(SHAPES)}, or a config.json")
    parser.add_argument("--layers", nargs=2, type=int, default=[24, 8], help="with --shape: of teacher and student")
    parser.add_argument("--sentences", nargs="+", metavar="SOURCE", help="text (default: the run's held-out sentences)")
    parser.add_argument("--count", type=int, default=1000, help="sentences to encode at most (default: 1000)")
    parser.add_argument("--mean-tokens", type=int, default=16, help="with --shape: mean length (default: 16 tokens)")
    parser.add_argument("--precision", nargs="+", default=["auto"], help="auto, fp32, bf16, fp16, int8 (default: auto)")
    parser.add_argument("--batch-size", type=int, default=64, help="sentences computed at a time (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns (default: 5)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--output", type=Path, help="where to write bench.json (default: the run's directory)")
    arguments = parser.parse_args()
    if min(arguments.count, arguments.repeats, arguments.batch_size, *arguments.layers) < 1:
        raise InputError("--count, --repeats, --batch-size and --layers must be at least 1")

    device = torch.device(arguments.device) if arguments.device else best_device()
    run = run_directory(arguments.model) if arguments.model else None
    if arguments.shape:
        teacher, student = (random_embedder(arguments.shape, layers, device) for layers in arguments.layers)
        sentences = random_sentences(arguments.count, arguments.mean_tokens, student.bert.config.vocab_size)
    else:
        if not arguments.model:
            raise InputError("give MODEL, or --shape for random weights; see --help")
        teacher_name = arguments.teacher or (read_recipe(run / "recipe.toml").teacher if run is not None else None)
        if teacher_name is None:
            raise InputError(f"{arguments.model}: is not in a run's directory; name its teacher with --teacher")
        student, teacher = Embedder.load(arguments.model, device), Embedder.load(teacher_name, device)
        sentences = bench_sentences(arguments.sentences, run)[: arguments.count]
    precisions = list(dict.fromkeys(resolve_precision(name, device) for name in arguments.precision))
    if "bf16" in precisions and device.type == "cpu" and not cpu_has_bf16():
        print("note: this CPU has no bf16 instructions; expect bf16 to be many times slower than fp32", file=sys.stderr)

    result = bench(teacher, student, sentences, precisions, arguments.repeats, arguments.batch_size)
    output = arguments.output or run or Path(".")
    write_json(output / "bench.json", result)
    print_table(result)
    print(f"wrote {output / 'bench.json'}")


def bench_sentences(sources: list[str] | None, run: Path | None) -> list[str]:
    """The text to encode: what the flags name, or the sentences that the run held out.

    Raises:
        InputError: neither is there.
    """
    if sources:
        return [sentence for source in sources for sentence in read_sentences(source)]
    if run is None or not (run / "held_out.json").exists():
        raise InputError("no text to encode: give --sentences SOURCE")
    return list(read_json(run / "held_out.json"))


if __name__ == "__main__":
    run_command(main)
