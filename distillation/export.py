"""A model as ONNX, for ONNX Runtime and what builds on it: model.onnx in fp32, model_int8.onnx a quarter of its size.

    python -m distillation.export runs/minilm-3/model
    python -m distillation.export runs/minilm-3/model --router    # student and teacher as a pair; see router.py

Inputs: input_ids, attention_mask and, for BERT, token_type_ids, (batch, sequence) int64. Outputs: token_embeddings
(batch, sequence, hidden) and sentence_embedding (batch, dimensions), the latter after pooling, dense layer and
normalisation. Both files are run and compared with our own embeddings before they take their names. OpenVINO reads them
as they are (`openvino.Core().compile_model`). Needs the extra [onnx].
"""

import argparse
import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from distillation.command_line import OneLineParser, run_command
from distillation.router import export_router
from model import Embedder
from model.files import InputError, RunError, atomic_path
from model.pooling import Pooling

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FP32_TOLERANCE = 1e-4  # largest difference of a number, embeddings being near 1 in length
INT8_COSINE = 0.99  # smallest mean cosine similarity to our embeddings
SAMPLES = [
    "A cat.",
    "Two dogs run along the beach.",
    "The committee postponed its decision until the figures for the third quarter had been checked.",
    "How do I install a package without administrator rights?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "A man in a blue shirt is standing on a ladder, cleaning a window, while two children watch from below. " * 4,
    "It was the best of times, it was the worst of times. " * 100,  # beyond the maximum length
]


class PaddedEmbedder(nn.Module):
    """The same weights with transformers' own padded forward, which an exporter can follow: ours packs its batches by
    their lengths, and a graph can't depend on those."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.encoder: Any = embedder.bert.published()
        self.encoder.set_attn_implementation("eager")  # the plainest graph

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) each, to token embeddings (B, T, D) and sentence embeddings (B, dimensions)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_BTD = self.encoder(**inputs).last_hidden_state
        if self.embedder.settings.pooling is Pooling.CLS:
            return hidden_BTD, self.embedder.finish(hidden_BTD[:, 0])
        mask_BT1 = attention_mask[:, :, None].to(hidden_BTD.dtype)
        pooled_BD = (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1e-9)
        return hidden_BTD, self.embedder.finish(pooled_BD)


def padded(embedder: Embedder, sentences: list[str]) -> dict[str, np.ndarray]:
    """Sentences as the graph's inputs."""
    tokenized = embedder.tokenize(sentences)
    shape = len(tokenized), max(map(len, tokenized))
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if embedder.bert.family.segments else []))
    inputs = {name: np.zeros(shape, np.int64) for name in names}
    inputs["input_ids"][:] = embedder.bert.config.pad_token_id or 0
    for row, tokens in enumerate(tokenized):
        inputs["input_ids"][row, : len(tokens)] = tokens
        inputs["attention_mask"][row, : len(tokens)] = 1
    return inputs


def write_fp32(embedder: Embedder, path: Path) -> float:
    """Write the graph in fp32.

    Returns:
        The largest difference between its sentence embeddings and ours.

    Raises:
        RunError: it is above FP32_TOLERANCE; nothing is written then.
    """
    inputs = padded(embedder, SAMPLES[1:3])
    positions = embedder.bert.longest
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=positions)
    with quiet():
        program = torch.onnx.export(
            PaddedEmbedder(embedder).eval(),
            tuple(torch.from_numpy(value) for value in inputs.values()),
            input_names=list(inputs),
            output_names=["token_embeddings", "sentence_embedding"],
            dynamic_shapes=({0: batch, 1: sequence},) * len(inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)
        difference = float(np.abs(run_onnx(temporary, embedder) - embedder.encode(SAMPLES, prompt="")).max())
        if not difference <= FP32_TOLERANCE:
            raise RunError(f"{path}: not written, its embeddings differ from the model's by up to {difference:.1e}")
    return difference


def write_int8(embedder: Embedder, fp32_path: Path, path: Path) -> float:
    """Write the graph with weights in int8 and activations that are quantised as they come.

    Returns:
        The mean cosine similarity between its sentence embeddings and ours.

    Raises:
        RunError: it is below INT8_COSINE; nothing is written then.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_path(path) as temporary:
        with quiet():
            quantize_dynamic(
                fp32_path,
                temporary,
                op_types_to_quantize=["MatMul", "Gather"],  # products with weights, and the embedding tables
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7 bits: sums of 8-bit products overflow on CPUs without VNNI
            )
        ours = torch.as_tensor(embedder.encode(SAMPLES, prompt=""))
        cosine = float(F.cosine_similarity(torch.from_numpy(run_onnx(temporary, embedder)), ours).mean())
        if not cosine >= INT8_COSINE:
            raise RunError(
                f"{path}: not written, int8 embeddings are only {cosine:.4f} similar to the model's in cosine"
            )
    return cosine


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what exporter and quantiser say about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def run_onnx(path: Path, embedder: Embedder) -> np.ndarray:
    """Sentence embeddings of SAMPLES by ONNX Runtime, one batch for all: (n, dimensions)."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["sentence_embedding"], padded(embedder, SAMPLES))[0]


def export(model: str, output: Path | None = None) -> None:
    """Write both files, and print what they are.

    Raises:
        InputError: a package or the model is missing.
        RunError: a file would not embed as the model does.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export needs {' and '.join(missing)}: pip install 'shortstack-embeddings[onnx]'")
    if output is None and not Path(model).is_dir():
        raise InputError(f"{model}: is no directory here; say with --output where to write its ONNX files")
    embedder = Embedder.load(model, "cpu", "fp32")
    directory = output or Path(model) / "onnx"
    fp32, int8 = directory / "model.onnx", directory / "model_int8.onnx"
    difference = write_fp32(embedder, fp32)
    print(f"{fp32}: {fp32.stat().st_size / 1e6:.1f} MB, embeddings within {difference:.0e}")
    cosine = write_int8(embedder, fp32, int8)
    print(f"{int8}: {int8.stat().st_size / 1e6:.1f} MB, mean cosine similarity {cosine:.4f}")


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="directory or Hub name")
    parser.add_argument("--output", type=Path, help="directory to write (default: MODEL/onnx; router beside MODEL)")
    parser.add_argument("--router", action="store_true", help="write the pair of student and teacher; see router.py")
    parser.add_argument("--teacher", help="of the pair: directory or Hub name (default: the run's teacher)")
    arguments = parser.parse_args()
    if arguments.teacher and not arguments.router:
        raise InputError("--teacher: belongs to --router")
    if arguments.router:
        path = export_router(arguments.model, arguments.teacher, arguments.output)
        print(f"{path}: queries by the student, documents by the teacher")
    else:
        export(arguments.model, arguments.output)


if __name__ == "__main__":
    run_command(main)
