"""Other tools to measure beside ours: sentence-transformers and ONNX Runtime, with the same weights, text and threads.

Each takes part where it is installed: pip install -e '.[peers]'
"""

import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.timing import Encoder, TrainStep, encoder_flops, training_step
from distillation.data.batches import window_batches
from distillation.data.labels import LabelledSentences
from distillation.export import write_fp32, write_int8
from distillation.training.optimizer import training_precision
from model import Embedder
from model.files import RunError

INSTALL = "pip install -e '.[peers]'"
TURNS = 3  # of training; each takes many steps
WARM_UP = 3  # steps


def installed(what: str, *packages: str) -> bool:
    """Whether packages are there; says what to install where not."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f"{what} is left out, {' and '.join(missing)} not being installed: {INSTALL}")
    return not missing


# -- encoding --------------------------------------------------------------------------------------------------------


def encoders(
    model: Embedder, precisions: Sequence[str], directory: Path
) -> list[tuple[str, str, Callable[[], Encoder]]]:
    """Other tools' encoders of the same model: name, precision, and what loads it.

    Args:
        model: ours.
        precisions: those that ours is measured in; the others' default, fp32, always takes part.
        directory: for ONNX files.
    """
    name, device, max_length = model.settings.origin, model.device, model.settings.max_length
    found: list[tuple[str, str, Callable[[], Encoder]]] = []
    if installed("sentence-transformers", "sentence_transformers"):
        for precision in dict.fromkeys(["fp32", *precisions]):
            if precision != "int8":
                load = partial(load_sentence_transformer, name, str(device), precision, max_length)
                found.append(("sentence-transformers", precision, load))
    if device.type == "cpu" and installed("ONNX Runtime", "onnx", "onnxscript", "onnxruntime"):
        files = {"fp32": directory / "model.onnx", "int8": directory / "model_int8.onnx"}
        plain = Embedder.load(name, "cpu", "fp32", max_length=max_length)
        try:
            write_fp32(plain, files["fp32"])
            write_int8(plain, files["fp32"], files["int8"])
        except RunError as error:
            print(f"ONNX Runtime: {error}")
        for precision, path in files.items():
            if path.exists() and precision in ("fp32", *precisions):
                found.append(("ONNX Runtime", precision, partial(OnnxEncoder, path, name, max_length)))
    return found


def load_sentence_transformer(name: str, device: str, precision: str, max_length: int) -> Encoder:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, device=device)
    model.max_seq_length = max_length
    return model.to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))


class OnnxEncoder:
    """An exported model in ONNX Runtime, given batches of equal length, so that it computes no padding either."""

    def __init__(self, path: Path, name: str, max_length: int) -> None:
        from onnxruntime import InferenceSession, SessionOptions
        from transformers import AutoTokenizer

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)

    def encode(self, sentences: Sequence[str], *, prompt: str, batch_size: int) -> np.ndarray:
        """(n, dimensions) fp32."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch_fast([prompt + text for text in sentences])]
        lengths = np.array([len(ids) for ids in tokens])
        embeddings: list[Any] = [None] * len(tokens)
        for length in np.unique(lengths):
            equal = np.flatnonzero(lengths == length)
            for start in range(0, len(equal), batch_size):
                batch = equal[start : start + batch_size]
                ids = np.array([tokens[index] for index in batch], dtype=np.int64)
                inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
                for index, row in zip(batch, self.session.run(["sentence_embedding"], inputs)[0], strict=True):
                    embeddings[index] = row
        return np.stack(embeddings)


# -- training --------------------------------------------------------------------------------------------------------


def trainers(
    train_step: TrainStep,
    load: Callable[..., Embedder],
    sentences: Sequence[str],
    batch_size: int,
    steps: int,
    precisions: Sequence[str],
) -> list[dict[str, Any]]:
    """Train the student by our step and by sentence-transformers' trainer, in turn: rows for bench.json.

    Both get the same sentences, batch size and labels, and make the labels' numbers no part of the time. Both tokenise
    within it: ours ahead of the loop, as a run of train.py does once, theirs batch by batch.

    Args:
        train_step: train.py's.
        load: loads the student, given device and precision.
        sentences: what is trained on, again and again.
        batch_size: sentences of a step.
        steps: optimizer steps of a turn.
        precisions: those of encoding; training leaves int8 out.
    """
    student = load(precision="fp32")
    device = student.device
    texts = list(sentences[: len(sentences) // batch_size * batch_size] or sentences)
    batch_size = min(batch_size, len(texts))
    labels = torch.nn.functional.normalize(torch.randn(len(texts), student.dimensions), dim=1)
    kinds = [precision for precision in precisions if precision != "int8"] or [training_precision("auto", device)]
    works = [
        ("ours", kind, our_training(train_step, load(precision="fp32"), texts, labels, batch_size, kind))
        for kind in kinds
    ]
    if installed("sentence-transformers' trainer", "sentence_transformers", "accelerate"):
        for kind in dict.fromkeys(["fp32", *kinds]):
            work = their_training(student.settings.origin, str(device), texts, labels, batch_size, kind)
            works.append(("sentence-transformers trainer", kind, work))

    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(1 + TURNS):
        for (_, _, work), times in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work(steps if turn else WARM_UP)  # each ends by reading a number from the device, so that all is done
            if turn:
                times.append(time.perf_counter() - start)
    lengths = np.array([len(tokens) for tokens in student.tokenize(texts)])
    flops = 3 * encoder_flops(student.bert.config, lengths) / len(texts)  # forward once, backward twice
    rows = []
    for (system, precision, _), times in zip(works, seconds, strict=True):
        rates = [steps * batch_size / time for time in times]
        rate = statistics.median(rates)
        rows.append(
            {
                "system": system,
                "precision": precision,
                "layers": student.bert.config.num_hidden_layers,
                "sentences_per_second": rate,
                "slowest": min(rates),
                "fastest": max(rates),
                "tflops": rate * flops / 1e12,
                "batch_size": batch_size,
                "steps": steps,
            }
        )
    return rows


def our_training(
    train_step: TrainStep, student: Embedder, texts: list[str], labels: torch.Tensor, batch_size: int, precision: str
) -> Callable[[int], None]:
    """Trains for a number of steps by train.py's step."""
    step = training_step(student, batch_size, precision, train_step)

    def work(steps: int) -> None:
        window = LabelledSentences(student.tokenize(texts), labels)
        batches = window_batches(window.lengths, batch_size, np.random.default_rng(0))
        for batch in itertools.islice(itertools.cycle(batches), steps):
            loss = step(window.take(batch))
        float(loss)  # waits for the device

    return work


def their_training(
    name: str, device: str, texts: list[str], labels: torch.Tensor, batch_size: int, precision: str
) -> Callable[[int], None]:
    """Trains for a number of steps by sentence-transformers' trainer with its MSELoss."""
    import sentence_transformers as st
    from datasets import Dataset
    from sentence_transformers.losses import MSELoss

    model = st.SentenceTransformer(name, device=device)
    loss = MSELoss(model)
    data = Dataset.from_dict({"sentence": texts, "label": labels.tolist()})

    def work(steps: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            arguments = st.SentenceTransformerTrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                learning_rate=1e-5,
                bf16=precision == "bf16",
                fp16=precision == "fp16",
                use_cpu=device == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            st.SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()

    return work
