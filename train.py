"""Distil a sentence embedder: keep some of a teacher's layers, and train them to give the teacher's embeddings.

    python train.py                                   # the embedded default: recipes/minilm-3.toml
    python train.py recipes/mxbai-large-8.toml        # the reference run; wants a GPU and the Hub
    python train.py RECIPE --layers 0,5 --learning-rate 5e-4 --name two-layers
    python train.py RECIPE --resume                   # go on after a stop
    torchrun --nproc-per-node 8 train.py RECIPE       # the same steps on eight GPUs

The teacher embeds every sentence once and its embeddings are kept on disk as labels. The student starts from copies of
the teacher's layers, and each step moves its embeddings of a batch of sentences towards the labels. What it keeps is
measured on sentences and STS pairs that it has not seen.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from distillation.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from distillation.command_line import OneLineParser, add_recipe_flags, end_at_once, recipe_from_arguments, run_command
from distillation.data.batches import rank_share
from distillation.data.corpus import Corpus, build_corpus
from distillation.data.labels import LabelledSentences, Labels, label_corpus
from distillation.data.sentences import StsPairs, read_sts
from distillation.layer_search import search_layers
from distillation.losses import LOSSES
from distillation.memory import release_freed_memory
from distillation.projection import project_teacher
from distillation.ranks import Ranks
from distillation.recipe import Recipe, metric_key, recipe_text, teacher_overrides
from distillation.rows import BatchRows
from distillation.run import Run
from evaluate import evaluate, evaluate_quickly, table
from model import Embedder, PackedTokens
from model.files import InputError, errors_about, locked, remove_leftovers, write_json, write_text
from model.layers import choose_layers
from model.products import dtype_of, resolve_precision

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "minilm-3.toml"
LOG_EVERY = 10  # steps
# What may differ when a run is taken up again: nothing that decides which steps are taken.
FREE_TO_CHANGE = ("device", "output", "labels", "save_every", "max_skipped_steps", "timeout", "name")


# -- one step --------------------------------------------------------------------------------------------------------


def learning_rate_at(step: int, total: int, recipe: Recipe) -> float:
    """Linear warmup from 0 to the peak, then linear decay to 0; steps count from 0."""
    warmup = math.ceil(recipe.warmup_ratio * total)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (total - step) / max(1, total - warmup)


def train_step(
    student: Embedder | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    window: LabelledSentences,
    batch: np.ndarray,
    recipe: Recipe,
    ranks: Ranks,
) -> tuple[torch.Tensor, float]:
    """Move the student's embeddings of one batch towards the teacher's.

    Args:
        student: an Embedder in training mode, bare or in DistributedDataParallel.
        optimizer, scaler: AdamW, and the gradient scaler that only fp16 uses.
        window: the sentences and labels in memory.
        batch: places in the window of the whole batch's sentences, all ranks together, shortest first.

    Returns:
        This rank's part of the batch's mean loss, and the gradient's L2 norm, which is not finite where the step had
        to be left out.
    """
    embedder: Embedder = student.module if isinstance(student, DistributedDataParallel) else student
    compute_type = dtype_of(recipe.precision)
    rows = BatchRows(embedder.bert.embeddings.word_embeddings.weight, [window.tokens[place] for place in batch])
    share = rank_share(batch, ranks.rank, ranks.world)
    total_loss = torch.zeros((), device=ranks.device)
    for piece_number in range(recipe.gradient_accumulation):
        piece = rank_share(share, piece_number, recipe.gradient_accumulation)
        counts = len(piece) > 0
        piece = piece if counts else batch[:1]  # every rank must take part in every exchange; this one weighs nothing

        sentences = [window.tokens[place] for place in piece]
        tokens = PackedTokens.pack(sentences, ranks.device)
        tokens.word_vectors = rows.of(sentences)
        labels_Bd = window.labels[torch.from_numpy(piece)].to(ranks.device, torch.float32)

        is_last = piece_number == recipe.gradient_accumulation - 1
        later = student.no_sync() if isinstance(student, DistributedDataParallel) and not is_last else None
        with later or contextlib.nullcontext():  # ranks exchange gradients once a step
            with torch.autocast(ranks.device.type, compute_type, enabled=compute_type != torch.float32):
                embeddings_Bd = student(tokens)
            losses_B = LOSSES[recipe.loss](embeddings_Bd.float(), labels_Bd)
            # Ranks' gradients are averaged, so each rank's sum is divided by the batch and multiplied by their number.
            loss = losses_B.sum() * (counts * ranks.world / len(batch))
            scaler.scale(loss).backward()
        total_loss += loss.detach() / ranks.world
    rows.average_over(ranks)

    scaler.unscale_(optimizer)
    rows.unscale(scaler.get_scale())
    parameters = [p for group in optimizer.param_groups for p in group["params"]] + [rows.vectors]
    grad_norm = float(nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm or math.inf))
    if math.isfinite(grad_norm):
        optimizer.step()
        rows.step(optimizer)
    optimizer.zero_grad()
    if scaler.is_enabled():
        scaler.update(None if math.isfinite(grad_norm) else scaler.get_scale() / 2)
    return total_loss, grad_norm


# -- the loop --------------------------------------------------------------------------------------------------------


def train(student: Embedder, labels: Labels, sts: list[StsPairs], recipe: Recipe, ranks: Ranks, run: Run) -> Progress:
    """Train the student; its best weights are loaded when this returns.

    Raises:
        RunError: stopped by a signal, or by too many gradients in a row that are not finite.
    """
    steps_per_epoch = labels.steps_per_epoch(recipe.batch_size)
    total = steps_per_epoch * recipe.epochs
    held_out = labels.evaluation()

    # The word embeddings are trained a batch's rows at a time, beside the optimizer; see distillation/rows.py.
    student.bert.embeddings.word_embeddings.requires_grad_(False)
    student.bert.dropout = recipe.dropout
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.precision == "fp16")
    progress = Progress()
    settings = fingerprint(recipe, labels, total)
    if run.has_checkpoint():
        progress = load_checkpoint(run.last, student, optimizer, scaler, settings)
        say(ranks, f"going on after step {progress.step} of {total}")
        if not run.best_is_whole():
            progress.best_step, progress.best_metric = -1, -math.inf
    run.cut_log(progress.step or -1)  # a run that starts anew measures the untrained student anew
    wrapped = student if ranks.world == 1 else DistributedDataParallel(student)

    def measure() -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        student.eval().use_precision(recipe.precision)
        figures = flat(evaluate_quickly(student, held_out, sts, ranks))
        student.train()
        run.log({"step": progress.step, **figures})
        figure = figures[recipe.metric_for_best_model]
        if progress.best_step < 0 or math.isnan(progress.best_metric) or figure > progress.best_metric:
            progress.best_metric, progress.best_step = figure, progress.step
            if ranks.is_main:
                save_weights(run.best, student)

    def save() -> None:
        if ranks.is_main:
            save_checkpoint(run.last, student, optimizer, progress, scaler, settings)

    student.train()
    if progress.best_step < 0:
        measure()  # the untrained student: what training has to improve on
    idle: list[float] = []
    seen, since = 0, time.perf_counter()
    run.in_steps = True
    with tqdm(total=total, initial=progress.step, unit=" steps", disable=not ranks.is_main) as bar:
        for window, batch in batches_from(labels, recipe, progress.step, steps_per_epoch):
            rate = learning_rate_at(progress.step, total, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if recipe.dropout > 0:  # drawn anew from the step's own seed, so that a resumed run drops the same
                torch.manual_seed(recipe.seed + 1_000_003 * (progress.step * ranks.world + ranks.rank))
            loss, grad_norm = train_step(wrapped, optimizer, scaler, window, batch, recipe, ranks)
            progress.count_step(math.isfinite(grad_norm))
            seen += len(batch)
            idle.append(idle_share(window, batch, ranks.world))

            if progress.step % LOG_EVERY == 0 or progress.step == total:
                speed = seen / (time.perf_counter() - since)
                line = {
                    "step": progress.step,
                    "epoch": progress.step / steps_per_epoch,
                    "loss": float(ranks.sum(loss)),
                    "learning_rate": rate,
                    "grad_norm": grad_norm,
                    "sentences_per_second": speed,
                    "skipped_steps": progress.skipped,
                    "idle_share": float(np.mean(idle)),
                }
                run.log(line)
                release_freed_memory()
                bar.set_postfix_str(f"loss {line['loss']:.2e}, rate {rate:.1e}, {speed:.0f} sentences/s")
                idle.clear()
                seen, since = 0, time.perf_counter()
            bar.update()
            if progress.step % recipe.evaluate_every == 0 or progress.step == total:
                measure()
                since = time.perf_counter()
            if progress.step % recipe.save_every == 0 or progress.step == total:
                save()
            if progress.skipped_in_a_row >= recipe.max_skipped_steps:
                run.end(
                    f"{progress.skipped_in_a_row} steps in a row had a gradient that is not finite; the best weights "
                    f"(step {progress.best_step}) are in {run.best}; lower --learning-rate or give --precision fp32"
                )
            if run.stop_wanted(progress.step):
                save()
                ranks.wait_for_all()  # a rank that ended would make torchrun end the one that still saves
                run.end(f"stopped after step {progress.step} of {total}, which is saved; go on with: {run.again}")
    run.in_steps = False
    load_weights(run.best, student)
    student.eval()
    return progress


def batches_from(
    labels: Labels, recipe: Recipe, step: int, steps_per_epoch: int
) -> Iterator[tuple[LabelledSentences, np.ndarray]]:
    """The batches of the run after its first `step`."""
    first_epoch, skip = divmod(step, steps_per_epoch)
    for epoch in range(first_epoch, recipe.epochs):
        yield from labels.epoch(recipe.batch_size, recipe.seed, epoch, skip if epoch == first_epoch else 0)


def idle_share(window: LabelledSentences, batch: np.ndarray, world: int) -> float:
    """The share of the ranks' time spent waiting for the one with the most tokens."""
    tokens = [sum(len(window.tokens[place]) for place in rank_share(batch, rank, world)) for rank in range(world)]
    return 1 - sum(tokens) / (world * max(tokens))


def flat(figures: dict[str, Any]) -> dict[str, float]:
    """{"sts-dev": {"spearman_cosine": f}, ...} to {"sts_dev_spearman_cosine": f, ...}."""
    result: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            result |= {metric_key(name, kind): figure for kind, figure in value.items()}
        else:
            result[name] = value
    return result


def fingerprint(recipe: Recipe, labels: Labels, total: int) -> str:
    """Tells runs apart that would take other steps."""
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in FREE_TO_CHANGE}
    text = json.dumps([settings, labels.fingerprint, total], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# -- the run ---------------------------------------------------------------------------------------------------------


def distil(recipe: Recipe, ranks: Ranks, run: Run) -> None:
    """Everything from the recipe to the model directory."""
    recipe.precision = resolve_precision(recipe.precision, ranks.device)
    sts = [read_sts(name, source) for name, source in recipe.sts.items()]
    teacher = Embedder.load(recipe.teacher, ranks.device, recipe.precision, **teacher_overrides(recipe))
    recipe.layers = choose_layers(
        recipe.layers,
        teacher.bert.config.num_hidden_layers,
        search=lambda count: search_layers(teacher, sample_of(build_or_wait(recipe, ranks)), count),
    )
    for note in teacher.settings.notes:
        say(ranks, f"note: {note}")
    if recipe.batch_size < ranks.world * recipe.gradient_accumulation:
        raise InputError(f"batch_size: {recipe.batch_size} sentences can't be split over {ranks.world} ranks and "
                         f"{recipe.gradient_accumulation} pieces")  # fmt: skip

    corpus = build_or_wait(recipe, ranks)
    if recipe.dimensions:
        project_teacher(teacher, sample_of(corpus), recipe.dimensions)
    labels_directory = Path(recipe.labels) if recipe.labels else None
    labels = label_corpus(
        teacher, corpus, labels_directory, Path(recipe.output) / "labels", recipe.label_precision, ranks
    )
    student = teacher.keep_layers(recipe.layers)
    say(ranks, f"teacher {recipe.teacher}: {teacher.bert.config.num_hidden_layers} layers, {count(teacher)}")
    say(ranks, f"student: layers {', '.join(map(str, recipe.layers))}, {count(student)}")
    say(ranks, f"{len(corpus):,} sentences of {labels.tokens['mean']:.1f} tokens, in {recipe.precision}")
    if ranks.is_main:
        write_text(run.directory / "recipe.toml", recipe_text(recipe))
        write_json(run.directory / "held_out.json", corpus.evaluation())
        statistics = {"size": len(corpus), "evaluation_size": corpus.evaluation_size, "tokens": labels.tokens}
        samples = {"samples": sample_of(corpus, 3), "sources": corpus.counts}
        write_json(run.directory / "data.json", statistics | samples)

    progress = train(student, labels, sts, recipe, ranks, run)
    if ranks.is_main:
        student.save(run.directory / "model")
        finish(student, teacher, labels, corpus, sts, progress, run)


def finish(
    student: Embedder,
    teacher: Embedder,
    labels: Labels,
    corpus: Corpus,
    sts: list[StsPairs],
    progress: Progress,
    run: Run,
) -> None:
    """Judge the student, look whether the labels still are what the teacher says, and print it all."""
    student.use_precision(teacher.precision)
    figures, pairs = evaluate(student, teacher, sts, corpus.evaluation())
    sample = labels.evaluation()
    again = torch.as_tensor(teacher.encode(corpus.evaluation()[:100], prompt=""))
    warnings = []
    difference = float((again - sample.labels[:100].float()).abs().max())
    if difference > 1e-2 * float(again.abs().max()):
        warnings.append(f"labels on disk differ from the teacher's embeddings by up to {difference:.3f}")
    if progress.best_step == 0:
        warnings.append("training did not improve on the untrained student: try another learning rate or more text")
    if progress.skipped:
        warnings.append(f"{progress.skipped} steps were skipped because their gradient was not finite")
    figures["sanity"] = figures.get("sanity", {}) | {"labels_max_difference": difference, "warnings": warnings}
    figures["best_step"] = progress.best_step
    write_json(run.directory / "evaluation.json", figures)
    write_json(run.directory / "evaluation_pairs.json", pairs)
    print(table(figures))
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"student of step {progress.best_step}: {run.directory / 'model'}")


def build_or_wait(recipe: Recipe, ranks: Ranks) -> Corpus:
    """The corpus, built by rank 0 and then opened by all; another run that is building it is waited for."""
    limits = (recipe.max_sentences or None, recipe.evaluation_sentences, recipe.seed, recipe.sampling)
    key = hashlib.sha256(repr((recipe.sentences, limits)).encode()).hexdigest()[:16]
    directory = Path(recipe.output) / "corpus" / key
    if ranks.is_main:
        with locked(directory.with_name(f".{key}.lock")), errors_about(directory, directory):
            remove_leftovers(directory)
            build_corpus(directory, recipe.sentences, *limits)
    ranks.wait_for_main("corpus")
    return build_corpus(directory, recipe.sentences, *limits)


def sample_of(corpus: Corpus, size: int = 16_384) -> list[str]:
    """Training sentences at random: the corpus is shuffled, so its first ones."""
    return corpus.sentences(0, min(size, len(corpus)))


def count(embedder: Embedder) -> str:
    """Parameters that take part in an embedding, in words."""
    return f"{sum(p.numel() for name, p in embedder.named_parameters() if 'pooler' not in name) / 1e6:.1f} M parameters"


def say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=str(DEFAULT_RECIPE), help="recipe file (default: minilm-3.toml)")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if there is one")
    add_recipe_flags(parser)
    arguments = parser.parse_args()
    recipe = recipe_from_arguments(arguments, arguments.recipe)
    ranks = Ranks.start(recipe.device, recipe.timeout)
    with ranks.failing_together(end_at_once):
        run = Run(recipe, ranks, arguments.resume)
        with run.held():
            distil(recipe, ranks, run)
        ranks.stop()


if __name__ == "__main__":
    run_command(main)
