"""A model as ONNX and OpenVINO files, in fp32 and int8, for sentence-transformers' backends and other tools.

    python -m distillation.export runs/minilm-3/model
    python -m distillation.export runs/minilm-3/model --router    # student and teacher as a pair; see router.py

It writes, under the names that `SentenceTransformer(MODEL, backend=...)` and transformers.js look for:

    onnx/model.onnx                               fp32
    onnx/model_qint8_avx512_vnni.onnx             int8, activations quantised as they come
    onnx/model_qint8_arm64.onnx                   the same file
    onnx/model_quantized.onnx                     the same file: what transformers.js loads for dtype "q8"
    onnx/model_quint8_avx2.onnx                   int8 with unsigned weights
    openvino/openvino_model.xml                   fp32
    openvino/openvino_model_qint8_quantized.xml   int8, calibrated on the text in the package

Inputs: input_ids, attention_mask and, for BERT, token_type_ids, (batch, sequence) int64. Outputs: last_hidden_state
(batch, sequence, hidden) and sentence_embedding (batch, dimensions), the latter after pooling, dense layer and
normalisation. Each file is run and compared with our own embeddings before it takes its name. Needs the extra [onnx],
and for OpenVINO's files [openvino]; without that they are left out. sentence-transformers itself runs them with
optimum-onnx 0.1 and optimum-intel 2.2, which are for transformers 4.
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("export")  # --help and a wrong flag end here, before the seconds that the imports below take

import contextlib
import copy
import importlib.util
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from shortstack.distillation import RunError
from shortstack.distillation.command_line import run_command
from shortstack.distillation.host import in_a_process_of_its_own
from shortstack.distillation.router import export_router
from shortstack.model import Embedder
from shortstack.model.engine.calibration import TEXT
from shortstack.model.files import InputError, atomic_path, first_line, flush_to_disk, temporary_beside
from shortstack.model.pooling import Pooling
from shortstack.serve import open_onnx, open_openvino

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPENVINO_PACKAGES = ("openvino", "nncf")
ONNX, ONNX_INT8 = "onnx/model.onnx", "onnx/model_qint8_avx512_vnni.onnx"
ONNX_UNSIGNED = "onnx/model_quint8_avx2.onnx"
ONNX_INT8_NAMES = ("onnx/model_qint8_arm64.onnx", "onnx/model_quantized.onnx")  # other names of ONNX_INT8
OPENVINO, OPENVINO_INT8 = "openvino/openvino_model.xml", "openvino/openvino_model_qint8_quantized.xml"
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
    their lengths, and a graph can't depend on those.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.encoder: Any = copy.deepcopy(embedder.bert)
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
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if embedder.bert.segments else []))
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
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_shapes=({0: batch, 1: sequence},) * len(inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)
        return check_fp32(path, run_onnx(temporary, embedder), embedder)


def write_int8(embedder: Embedder, fp32_path: Path, path: Path, signed: bool = True) -> float:
    """Write the graph with weights in int8, signed or not, and activations that are quantised as they come.

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
                weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                reduce_range=True,  # 7 bits: sums of 8-bit products overflow on CPUs without VNNI
            )
        return check_int8(path, run_onnx(temporary, embedder), embedder)


def write_openvino(embedder: Embedder, fp32_path: Path, path: Path) -> float:
    """Write an ONNX graph in fp32 as OpenVINO's, and say as `write_fp32` how near it is."""
    import openvino

    model = openvino.convert_model(fp32_path)
    with openvino_files(path) as temporary:
        openvino.save_model(model, temporary, compress_to_fp16=False)
        return check_fp32(path, run_openvino(temporary, embedder), embedder)


def write_openvino_int8(embedder: Embedder, fp32_path: Path, path: Path, sentences: Sequence[str] = ()) -> float:
    """Write OpenVINO's graph with weights and activations in int8, by NNCF, and say as `write_int8` how near it is.

    It is calibrated on the text in the package and on `sentences`.
    """
    with quiet():
        import nncf
        import openvino

        texts = [*TEXT.read_text(encoding="utf-8").splitlines(), *sentences]
        with ThreadPoolExecutor(1) as thread:  # it compiles the graph: see `compile_openvino`
            model = thread.submit(
                nncf.quantize,
                openvino.Core().read_model(fp32_path),
                nncf.Dataset([padded(embedder, [text]) for text in texts]),
                subset_size=len(texts),
                model_type=nncf.ModelType.TRANSFORMER,
            ).result()
    with openvino_files(path) as temporary:
        openvino.save_model(model, temporary, compress_to_fp16=False)
        return check_int8(path, run_openvino(temporary, embedder), embedder)


@contextlib.contextmanager
def openvino_files(path: Path) -> Iterator[Path]:
    """A temporary path for an OpenVINO graph, which takes its place, weights included, if the block ends well."""
    with temporary_beside(path, directory=True) as scratch:
        temporary = scratch / path.name
        yield temporary
        for suffix in (".bin", ".xml"):
            flush_to_disk(temporary.with_suffix(suffix))
            os.replace(temporary.with_suffix(suffix), path.with_suffix(suffix))
        flush_to_disk(path.parent)


def check_fp32(path: Path, embeddings: np.ndarray, embedder: Embedder) -> float:
    """The largest difference between a file's embeddings of SAMPLES and the model's; an error above FP32_TOLERANCE."""
    difference = float(np.abs(embeddings - embedder.encode(SAMPLES, prompt="")).max())
    if not difference <= FP32_TOLERANCE:
        raise RunError(f"{path}: not written, its embeddings differ from the model's by up to {difference:.1e}")
    return difference


def check_int8(path: Path, embeddings: np.ndarray, embedder: Embedder) -> float:
    """The mean cosine between a file's embeddings of SAMPLES and the model's; an error below INT8_COSINE."""
    ours = torch.as_tensor(embedder.encode(SAMPLES, prompt=""))
    cosine = float(F.cosine_similarity(torch.from_numpy(embeddings), ours).mean())
    if not cosine >= INT8_COSINE:
        raise RunError(f"{path}: not written, int8 embeddings are only {cosine:.4f} similar to the model's in cosine")
    return cosine


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what exporter and quantiser say about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def run_onnx(path: Path, embedder: Embedder) -> np.ndarray:
    """Sentence embeddings of SAMPLES by ONNX Runtime, one batch for all: (n, dimensions)."""
    return open_onnx(path, threads=0).run(padded(embedder, SAMPLES))


def run_openvino(path: Path, embedder: Embedder) -> np.ndarray:
    """Sentence embeddings of SAMPLES by OpenVINO, one batch for all: (n, dimensions).

    In a separate process, since OpenVINO's compiler ends the process on some processors.

    Raises:
        RunError: it did, or it refused the file.
    """
    with in_a_process_of_its_own() as process:
        try:
            return process.submit(openvino_embeddings, path, padded(embedder, SAMPLES)).result()
        except BrokenProcessPool:
            raise RunError(f"{path}: not written, OpenVINO ended its process on this CPU") from None
        except RuntimeError as error:
            raise RunError(f"{path}: not written, OpenVINO does not run it ({first_line(error)})") from None


def openvino_embeddings(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """(n, dimensions), computed in fp32 where the graph does not say int8."""
    return open_openvino(path, threads=0).run(inputs)


def export(model: str, output: Path | None = None) -> None:
    """Write the files, and print what they are.

    Raises:
        InputError: a package or the model is missing.
        RunError: a file would not embed as the model does.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export needs more packages: pip install {' '.join(missing)}")
    if output is None and not Path(model).is_dir():
        raise InputError(f"{model}: is no directory here; say with --output where to write its files")
    embedder = Embedder.load(model, "cpu", "fp32")
    directory = output or Path(model)
    fp32 = directory / ONNX
    report(fp32, f"embeddings within {write_fp32(embedder, fp32):.0e}")
    int8 = directory / ONNX_INT8
    report(int8, f"mean cosine similarity {write_int8(embedder, fp32, int8):.4f}")
    for name in ONNX_INT8_NAMES:
        with atomic_path(directory / name) as temporary:
            shutil.copy(int8, temporary)
    print(f"{' and '.join(str(directory / name) for name in ONNX_INT8_NAMES)}: the same file")
    unsigned = directory / ONNX_UNSIGNED
    report(unsigned, f"mean cosine similarity {write_int8(embedder, fp32, unsigned, signed=False):.4f}")
    missing = [name for name in OPENVINO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"OpenVINO's files are left out, they need more packages: pip install {' '.join(missing)}")
        return
    graph = directory / OPENVINO
    report(graph, f"embeddings within {write_openvino(embedder, fp32, graph):.0e}")
    int8 = directory / OPENVINO_INT8
    report(int8, f"mean cosine similarity {write_openvino_int8(embedder, graph, int8):.4f}")


def report(path: Path, nearness: str) -> None:
    """Say that a file is written, how large it is, weights beside it included, and how near to the model."""
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
    print(f"{path}: {size / 1e6:.1f} MB, {nearness}")


def main() -> None:
    arguments = parse_arguments("export")
    if arguments.teacher and not arguments.router:
        raise InputError("--teacher: belongs to --router")
    if arguments.router:
        path = export_router(arguments.model, arguments.teacher, arguments.output)
        print(f"{path}: queries by the student, documents by the teacher")
    else:
        export(arguments.model, arguments.output)


if __name__ == "__main__":
    run_command(main)
