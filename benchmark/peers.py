"""Other tools to measure beside ours: sentence-transformers, ONNX Runtime and OpenVINO; same weights, text and threads.

Each takes part where it is installed: pip install -e '.[peers]'
"""

import contextlib
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shortstack.benchmark.timing import Encoder, encoder_flops, peak_memory_mib, training_step
from shortstack.distillation import RunError
from shortstack.distillation.data.epochs import window_batches
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.export import (
    ONNX,
    ONNX_INT8,
    OPENVINO,
    OPENVINO_INT8,
    OPENVINO_PACKAGES,
    PACKAGES,
    write_fp32,
    write_int8,
    write_openvino,
    write_openvino_int8,
)
from shortstack.distillation.training.optimizer import training_precision
from shortstack.model import Embedder
from shortstack.model.pooling import Pooling
from shortstack.model.precision import cpu_has_bf16
from shortstack.model.prefetch import overlaps, prefetch
from shortstack.serve import compile_openvino, open_onnx

INSTALL = "pip install -e '.[peers]'"
TURNS = 3  # of training; each takes many steps
WARM_UP = 10  # steps; in fp16 the first are left out, and AdamW has no state before one is taken
CALIBRATION = 200  # sentences
GPU_BATCHES = (128, 512, 2048)  # sentences that sentence-transformers encodes at a time
AHEAD = 64  # batches of ours made ahead on a GPU, as train.py does


def installed(what: str, *packages: str) -> bool:
    """Whether packages are there; says what to install where not."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f"{what} is left out, {' and '.join(missing)} not being installed: {INSTALL}")
    return not missing


# -- encoding --------------------------------------------------------------------------------------------------------


def encoders(
    model: Embedder, precisions: Sequence[str], sentences: Sequence[str], directory: Path
) -> list[tuple[str, str, Callable[[], Encoder]]]:
    """Other tools' encoders of the same model: name, precision, and what loads it.

    On a CPU the others' default, fp32, always takes part beside `precisions`. OpenVINO's int8 is calibrated on the
    first of `sentences`. ONNX and OpenVINO files go to `directory`.
    """
    name, device, max_length = model.settings.origin, model.device, model.settings.max_length
    if device.type == "cuda":
        return gpu_encoders(model, precisions)
    wanted = list(dict.fromkeys(["fp32", *precisions]))
    tools: list[tuple[str, str, Callable[[], Encoder]]] = []
    if installed("sentence-transformers", "sentence_transformers"):
        for precision in wanted:
            if precision != "int8":
                load = partial(load_sentence_transformer, name, str(device), precision, max_length)
                tools.append(("sentence-transformers", precision, load))
    if not installed("ONNX Runtime", *PACKAGES):
        return tools
    plain = Embedder.load(name, "cpu", "fp32", max_length=max_length)
    onnx = directory / ONNX
    if not wrote("ONNX Runtime", write_fp32, plain, onnx):
        return tools
    tools.append(("ONNX Runtime", "fp32", partial(load_onnx, onnx, name, max_length)))
    int8 = directory / ONNX_INT8
    if "int8" in wanted and wrote("ONNX Runtime", write_int8, plain, onnx, int8):
        tools.append(("ONNX Runtime", "int8", partial(load_onnx, int8, name, max_length)))
    if installed("OpenVINO", *OPENVINO_PACKAGES):
        fp32, int8 = directory / OPENVINO, directory / OPENVINO_INT8
        written = {"fp32": wrote("OpenVINO", write_openvino, plain, onnx, fp32)}
        written["int8"] = (
            written["fp32"]
            and "int8" in wanted
            and wrote("OpenVINO", write_openvino_int8, plain, fp32, int8, sentences[:CALIBRATION])
        )
        for precision in wanted:
            path = int8 if precision == "int8" else fp32
            if written["int8" if precision == "int8" else "fp32"]:
                tools.append(("OpenVINO", precision, partial(load_openvino, path, name, max_length, precision)))
    return tools


def gpu_encoders(model: Embedder, precisions: Sequence[str]) -> list[tuple[str, str, Callable[[], Encoder]]]:
    """sentence-transformers at each of GPU_BATCHES, since its best depends on the GPU, and by flash attention."""
    if not installed("sentence-transformers", "sentence_transformers"):
        return []
    kernels: dict[str, str | None] = {"": None}
    if importlib.util.find_spec("flash_attn") is not None:
        kernels[", flash attention"] = "flash_attention_2"
    tools: list[tuple[str, str, Callable[[], Encoder]]] = []
    name, device, max_length = model.settings.origin, str(model.device), model.settings.max_length
    for precision in precisions:
        for kernel, attention in kernels.items():
            if attention is None or precision != "fp32":
                for size in GPU_BATCHES:
                    load = partial(load_sentence_transformer, name, device, precision, max_length, attention, size)
                    tools.append((f"sentence-transformers, {size}{kernel}", precision, load))
    return tools


def wrote(tool: str, write: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a file was written; says why not."""
    try:
        write(*arguments)
    except RunError as error:
        print(f"{tool}: {error}")
        return False
    return True


def load_sentence_transformer(
    name: str, device: str, precision: str, max_length: int, attention: str | None = None, batch_size: int | None = None
) -> Encoder:
    """sentence-transformers' model; with a batch size of its own it keeps to that one."""
    from sentence_transformers import SentenceTransformer

    options = {"attn_implementation": attention} if attention else {}
    model = SentenceTransformer(name, device=device, model_kwargs=options)
    model.max_seq_length = max_length
    model = model.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))
    return model if batch_size is None else OwnBatchSize(model, batch_size)


@dataclass
class OwnBatchSize:
    """An encoder that is given its own batch size."""

    encoder: Encoder
    batch_size: int

    def encode(self, sentences: Sequence[str], *, prompt: str, batch_size: int) -> Any:
        return self.encoder.encode(sentences, prompt=prompt, batch_size=self.batch_size)


def load_onnx(path: Path, name: str, max_length: int) -> Encoder:
    graph = open_onnx(path, torch.get_num_threads())
    return GraphEncoder(graph.run, graph.inputs, name, max_length)


def load_openvino(path: Path, name: str, max_length: int, precision: str) -> Encoder:
    rest = "bf16" if precision == "bf16" or (precision == "int8" and cpu_has_bf16()) else "f32"  # of what is not int8
    settings = {"INFERENCE_PRECISION_HINT": rest, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = compile_openvino(path, settings)
    names = [value.any_name for value in compiled.inputs]
    return GraphEncoder(lambda inputs: compiled(inputs)["sentence_embedding"], names, name, max_length)


class GraphEncoder:
    """An exported model, given batches of equal length, so that it computes no padding either.

    `run` takes inputs by their `names`, (B, T) each, to embeddings (B, dimensions); `name` has the tokenizer.
    """

    def __init__(
        self, run: Callable[[dict[str, np.ndarray]], np.ndarray], names: list[str], name: str, max_length: int
    ) -> None:
        from transformers import AutoTokenizer

        self.run, self.names = run, names
        self.tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)

    def encode(self, sentences: Sequence[str], *, prompt: str, batch_size: int) -> np.ndarray:
        """(n, dimensions) fp32."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch_fast([prompt + text for text in sentences])]
        lengths = np.array([len(ids) for ids in tokens])
        batches, parts = [], []
        for length in np.unique(lengths):
            equal = np.flatnonzero(lengths == length)
            for start in range(0, len(equal), batch_size):
                batch = equal[start : start + batch_size]
                ids = np.array([tokens[index] for index in batch], dtype=np.int64)
                inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
                parts.append(self.run({name: inputs[name] for name in self.names}))
                batches.append(batch)
        embeddings = np.empty((len(tokens), parts[0].shape[1]), dtype=np.float32)
        embeddings[np.concatenate(batches)] = np.concatenate(parts)
        return embeddings


# -- training --------------------------------------------------------------------------------------------------------


def trainers(
    load: Callable[..., Embedder],
    sentences: Sequence[str],
    batch_size: int,
    steps: int,
    precisions: Sequence[str],
) -> list[dict[str, Any]]:
    """Train the student by our step and by sentence-transformers' trainer, in turn: rows for bench.json.

    Both get the same sentences, again and again, batch size and labels; making the labels is not timed. Both tokenise
    within the time: ours ahead of the loop, as a run of train.py does once, theirs batch by batch. Theirs uses the
    dropout of the model's config; on a GPU ours is timed with a dropout of 0.1 as well. A turn has `steps` steps.
    """
    student = load(precision="fp32")
    batch_size = min(batch_size, len(sentences))
    texts = list(sentences[: min(steps, len(sentences) // batch_size) * batch_size])
    labels = torch.nn.functional.normalize(torch.randn(len(texts), student.dimensions), dim=1)
    made = trainers_of(load, student, Labelled(texts, labels, batch_size), precisions)
    works: list[Callable[[int], Any]] = []

    def make_and_warm_up(make: Callable[[], Callable[[int], Any]]) -> None:
        works.append(make())
        works[-1](WARM_UP)

    memory: list[float | None] = []
    for _, _, make in made:
        if student.device.type == "cuda":
            memory.append(peak_memory_mib(partial(make_and_warm_up, make), student.device))
        else:
            make_and_warm_up(make)
            memory.append(None)
    seconds = seconds_of_turns(works, steps)
    lengths, cls = student.tokenize(texts).lengths, student.settings.pooling is Pooling.CLS
    rows = []
    for (system, precision, _), times, peak in zip(made, seconds, memory, strict=True):
        rates = [steps * batch_size / time for time in times]
        first_only = cls and system.startswith("ours")
        flops = 3 * encoder_flops(student.bert.config, lengths, first_only) / len(texts)  # backward costs twice
        row = {"system": system, "precision": precision, "layers": student.bert.config.num_hidden_layers}
        row |= {"sentences_per_second": statistics.median(rates), "slowest": min(rates), "fastest": max(rates)}
        row |= {"tflops": statistics.median(rates) * flops / 1e12, "peak_memory_mib": peak}
        rows.append(row | {"batch_size": batch_size, "steps": steps})
    return rows


class Labelled(NamedTuple):
    """What is trained on: n texts, their labels (n, dimensions), and the sentences of a step."""

    texts: list[str]
    labels: torch.Tensor
    batch_size: int


def trainers_of(
    load: Callable[..., Embedder], student: Embedder, data: Labelled, precisions: Sequence[str]
) -> list[tuple[str, str, Callable[[], Callable[[int], Any]]]]:
    """The trainers to time: name, precision, and what makes the function that takes a number of steps."""
    device = student.device
    kinds = [precision for precision in precisions if precision != "int8"] or [training_precision("auto", device)]
    made: list[tuple[str, str, Callable[[], Callable[[int], Any]]]] = []
    for kind in kinds:
        for dropout in (0.0, 0.1) if device.type == "cuda" else (0.0,):
            name = f"ours, dropout {dropout}" if dropout else "ours"
            made.append((name, kind, partial(our_training, load, data, kind, dropout)))
    if installed("sentence-transformers' trainer", "sentence_transformers", "accelerate"):
        for kind in dict.fromkeys(kinds if device.type == "cuda" else ["fp32", *kinds]):
            theirs = partial(their_training, student.settings.origin, str(device), data, kind)
            made.append(("sentence-transformers trainer", kind, theirs))
    return made


def seconds_of_turns(works: Sequence[Callable[[int], Any]], steps: int) -> list[list[float]]:
    """Take steps by every trainer in turn: the seconds of its turns, for each trainer."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(TURNS):
        for work, times in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work(steps)  # each ends by reading a number from the device, so that all is done
            times.append(time.perf_counter() - start)
    return seconds


def our_training(
    load: Callable[..., Embedder], data: Labelled, precision: str, dropout: float = 0.0
) -> Callable[[int], None]:
    """Trains for a number of steps by train.py's step."""
    student = load(precision="fp32")
    step = training_step(student, data.batch_size, precision, dropout)

    def work(steps: int) -> None:
        window = LabelledSentences(student.tokenize(data.texts), data.labels)
        order = window_batches(window.lengths, data.batch_size, np.random.default_rng(0))
        batches = (window.take(indices) for indices in itertools.islice(itertools.cycle(order), steps))
        with contextlib.closing(prefetch(batches, AHEAD if overlaps(student.device) else 0)) as ready:
            for batch in ready:
                loss = step(batch)
        float(loss)  # waits for the device

    return work


def their_training(name: str, device: str, data: Labelled, precision: str) -> Callable[[int], None]:
    """Trains for a number of steps by sentence-transformers' trainer with its MSELoss."""
    import sentence_transformers as st
    from datasets import Dataset
    from sentence_transformers.losses import MSELoss

    model = st.SentenceTransformer(name, device=device)
    loss = MSELoss(model)
    dataset = Dataset.from_dict({"sentence": data.texts, "label": data.labels.tolist()})

    def work(steps: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            arguments = st.SentenceTransformerTrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=data.batch_size,
                learning_rate=1e-5,
                bf16=precision == "bf16",
                fp16=precision == "fp16",
                use_cpu=device == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            st.SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=loss).train()

    return work
