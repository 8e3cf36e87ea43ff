"""Speed as curves: over layers, sentence length and batch size; labelling and training over the size of the corpus."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from shortstack.benchmark.random_models import random_sentences
from shortstack.benchmark.timing import (
    TrainStep,
    describe_device,
    encoder_flops,
    memory_after,
    seconds_of,
    training_step,
)
from shortstack.distillation.data.corpus import build_corpus
from shortstack.distillation.data.labels import label_corpus
from shortstack.distillation.host import in_a_process_of_its_own, release_freed_memory
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.distillation.training.optimizer import training_precision
from shortstack.model import Embedder
from shortstack.model.files import atomic_path, write_json
from shortstack.model.pooling import Pooling

LENGTHS = (8, 16, 32, 64, 128, 256, 512)  # tokens a sentence
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
USUAL_LENGTH, USUAL_BATCH = 16, 64  # what stays as it is while something else varies
HELD_OUT = 100  # sentences
TURNS = 3
SECONDS = 0.5  # about how long a turn takes

Load = Callable[..., Embedder]  # given a precision


def sweep(
    teacher: Load, student: Load, train_step: TrainStep, precision: str, corpus_sizes: list[int], output: Path
) -> None:
    """Measure everything; writes sweep.json and sweep.png.

    Args:
        teacher, student: load them.
        train_step: train.py's.
        precision: of encoding.
        corpus_sizes: sentences of the corpora to label and train on for an epoch; none to leave that out.
        output: directory to write to.
    """
    embedder = teacher(precision=precision)
    layers = embedder.bert.config.num_hidden_layers
    longest = embedder.bert.longest
    result = {
        "device": describe_device(embedder.device),
        "precision": precision,
        "teacher_layers": layers,
        "layers": [
            {"layers": count} | rate_of(embedder.keep_layers(range(count)).use_precision(precision))
            for count in sorted({round(1 + (layers - 1) * part / 7) for part in range(8)})
        ],
        "tokens": [{"tokens": length} | rate_of(embedder, length) for length in LENGTHS if length <= longest],
        "batch_size": [{"batch_size": size} | rate_of(embedder, batch_size=size) for size in BATCH_SIZES],
        "corpus": [corpus_cost(teacher, student, train_step, precision, size) for size in corpus_sizes],
    }
    write_json(output / "sweep.json", result)
    draw(result, output / "sweep.png")
    print(f"wrote {output / 'sweep.png'} and {output / 'sweep.json'}")


def rate_of(embedder: Embedder, length: int = USUAL_LENGTH, batch_size: int = USUAL_BATCH) -> dict[str, float]:
    """Speed of encoding random tokens in batches of equal length, tokenising left out."""
    generator = np.random.default_rng(0)
    vocabulary = embedder.bert.config.vocab_size

    def encode(count: int) -> float:
        tokens = list(generator.integers(vocabulary, size=(count, length), dtype=np.int32))
        return seconds_of(lambda: [None for _ in embedder.encode_tokens(tokens, batch_size)], embedder.device)

    encode(batch_size)
    count = batch_size * max(1, round(SECONDS / encode(batch_size)))
    seconds = statistics.median(encode(count) for _ in range(TURNS))
    first_token_only = embedder.settings.pooling is Pooling.CLS
    flops = encoder_flops(embedder.bert.config, np.full(count, length), first_token_only)
    return {
        "sentences_per_second": count / seconds,
        "tokens_per_second": count * length / seconds,
        "tflops": flops / seconds / 1e12,
    }


# -- the cost of a corpus --------------------------------------------------------------------------------------------


def corpus_cost(teacher: Load, student: Load, train_step: TrainStep, precision: str, size: int) -> dict[str, Any]:
    """Label a corpus of random sentences and train on it for an epoch, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text.txt"
        embedder = teacher(precision="fp32")
        with text.open("w", encoding="utf-8") as file:
            for start in range(0, size + HELD_OUT, 10_000):
                count = min(10_000, size + HELD_OUT - start)
                file.write("\n".join(random_sentences(embedder, count, USUAL_LENGTH, seed=start)) + "\n")
        with in_a_process_of_its_own() as process:
            return process.submit(label_and_train, teacher, student, train_step, precision, text).result()


def label_and_train(teacher: Load, student: Load, train_step: TrainStep, precision: str, text: Path) -> dict[str, Any]:
    """The seconds that labelling and training take, and this process's peak memory."""
    labeller = teacher(precision=precision)
    ranks = Ranks(0, 1, labeller.device)
    start = time.perf_counter()
    corpus = build_corpus(text.parent / "corpus", [str(text)], None, HELD_OUT, seed=0)
    built = time.perf_counter()
    labels = label_corpus(labeller, corpus, Recipe(output=str(text.parent)), ranks)
    labelled = time.perf_counter()
    training = precision if precision != "int8" else training_precision("auto", ranks.device)
    step = training_step(student(precision="fp32"), USUAL_BATCH, training, train_step)
    for number, batch in enumerate(labels.epoch(USUAL_BATCH, seed=0, epoch=0), start=1):
        loss = step(batch)
        if number % Recipe.log_every == 0:  # as often as a run of train.py does
            release_freed_memory()
    float(loss)  # waits for the device
    return {
        "sentences": len(corpus),
        "building_seconds": built - start,
        "labelling_seconds": labelled - built,
        "training_seconds": time.perf_counter() - labelled,
        "peak_memory_mib": memory_after(lambda: None, ranks.device),
    }


# -- the picture -----------------------------------------------------------------------------------------------------


def draw(result: dict[str, Any], path: Path) -> None:
    """Four panels; the dashed lines are what would be ideal."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((over_layers, over_tokens), (over_batch, over_corpus)) = plt.subplots(2, 2, figsize=(12, 8.5))

    layers, rates = column(result["layers"], "layers"), column(result["layers"], "sentences_per_second")
    over_layers.plot(layers, rates, "o-", label="measured")
    over_layers.plot(layers, rates[-1] * layers[-1] / layers, "--", color="grey", label="in proportion to the layers")
    over_layers.set(xlabel="layers", ylabel="sentences a second", title="Layers")
    over_layers.legend()

    tokens = column(result["tokens"], "tokens")
    over_tokens.plot(tokens, column(result["tokens"], "tokens_per_second"), "o-")
    over_tokens.set_xscale("log", base=2)
    over_tokens.set(xlabel="tokens a sentence", ylabel="tokens a second", title="Sentence length", ylim=(0, None))

    sizes = column(result["batch_size"], "batch_size")
    over_batch.plot(sizes, column(result["batch_size"], "sentences_per_second"), "o-")
    over_batch.set_xscale("log", base=2)
    over_batch.set(xlabel="sentences a batch", ylabel="sentences a second", title="Batch size", ylim=(0, None))

    over_corpus.set(xlabel="sentences of the corpus", ylabel="seconds", title="Corpus size")
    if result["corpus"]:
        sentences = column(result["corpus"], "sentences")
        for kind in ("labelling", "training"):
            over_corpus.loglog(sentences, column(result["corpus"], f"{kind}_seconds"), "o-", label=kind)
        of_memory = over_corpus.twinx()
        of_memory.plot(sentences, column(result["corpus"], "peak_memory_mib"), "s:", color="grey", label="memory")
        of_memory.set(ylabel="peak memory, MiB", ylim=(0, None))
        over_corpus.legend(loc="upper left")
        of_memory.legend(loc="lower right")
    else:
        over_corpus.text(0.5, 0.5, "not measured: give --corpus-sizes", ha="center", transform=over_corpus.transAxes)

    figure.suptitle(f"{result['device']['name']}, {result['precision']}, teacher of {result['teacher_layers']} layers")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=float)
