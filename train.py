"""Distil a sentence embedder: keep some of a teacher's layers, and train them to give the teacher's embeddings.

    python train.py                                   # the embedded default: recipes/minilm-3.toml
    python train.py recipes/mxbai-large-8.toml        # the reference run; wants a GPU and the Hub
    python train.py RECIPE --layers 0,5 --learning-rate 5e-4 --name two-layers
    python train.py RECIPE --resume                   # resume after a stop
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
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from shortstack.distillation.command_line import (
    OneLineParser,
    add_recipe_flags,
    end_at_once,
    recipe_from_arguments,
    run_command,
)
from shortstack.distillation.data.batches import smallest_batch
from shortstack.distillation.data.corpus import Corpus, open_corpus
from shortstack.distillation.data.labels import LabelledSentences, Labels, label_corpus, window_sizes
from shortstack.distillation.data.passages import cutter_of
from shortstack.distillation.evaluation.sets import RetrievalSet, StsPairs, read_retrieval, read_sts
from shortstack.distillation.host import overlaps, prefetch, release_freed_memory
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe, metric_key, recipe_text, teacher_overrides
from shortstack.distillation.run import Run
from shortstack.distillation.student.dimensions import project_teacher
from shortstack.distillation.student.layer_search import search_layers
from shortstack.distillation.student.layers import choose_layers
from shortstack.distillation.student.vocabulary import check_vocabulary, cut_vocabulary, is_cut_of, retokenizer
from shortstack.distillation.student.width import check_width, important_units, keep_units
from shortstack.distillation.training.checkpoint import Checkpoints, Progress
from shortstack.distillation.training.meter import Meter
from shortstack.distillation.training.optimizer import (
    StudentOptimizer,
    encoding_precision,
    training_precision,
)
from shortstack.distillation.training.step import train_step
from shortstack.evaluate import evaluate, evaluate_quickly, table
from shortstack.model import Embedder
from shortstack.model.files import InputError, write_json, write_text

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "minilm-3.toml"
# What may differ when a run is resumed: nothing that decides which steps are taken.
FREE_TO_CHANGE = (
    "device", "output", "labels", "tokens_per_batch", "log_every", "save_every", "max_skipped_steps", "timeout", "name",
)  # fmt: skip


def learning_rate_at(step: int, total: int, recipe: Recipe) -> float:
    """Linear warmup from 0 to the peak, then linear decay to 0; steps count from 0."""
    warmup = math.ceil(recipe.warmup_ratio * total)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (total - step) / max(1, total - warmup)


# -- the loop --------------------------------------------------------------------------------------------------------


def train(
    student: Embedder,
    labels: Labels,
    sts: list[StsPairs],
    retrieval: list[RetrievalSet],
    recipe: Recipe,
    ranks: Ranks,
    run: Run,
) -> Progress:
    """Train the student; its best weights are loaded when this returns.

    Raises:
        RunError: stopped by a signal, or by too many gradients in a row that are not finite.
    """
    steps_per_epoch = labels.steps_per_epoch(recipe.batch_size)
    total = steps_per_epoch * recipe.epochs
    held_out = labels.evaluation()
    student.bert.dropout = recipe.dropout
    student.train()
    optimizer = StudentOptimizer(student, recipe, ranks)
    checkpoints = Checkpoints(run.directory, student, optimizer, fingerprint(recipe, labels, total), ranks)
    progress = checkpoints.resume(total) if run.resume else Progress()
    run.cut_log(progress.step or -1)  # a run that starts anew measures the untrained student anew
    network = student if ranks.world == 1 else in_parallel(student)
    evaluate_now = partial(measure, student, held_out, sts, retrieval, progress, recipe, ranks, run)

    if progress.best_step < 0:  # the untrained student: what training has to improve on
        checkpoints.keep_best(progress, evaluate_now())
    meter = Meter(ranks, (progress.loss_sum, progress.losses))
    # As many batches are made ahead as a shard holds: while they are trained on, the next window of labels is read.
    ahead = labels.batches_of_a_shard(recipe.batch_size) if overlaps(ranks.device) else 0
    batches = prefetch(batches_from(labels, recipe, progress.step), ahead)
    bar = tqdm(total=total, initial=progress.step, unit=" steps", disable=not ranks.is_main)
    with run.taking_steps(), bar, contextlib.closing(batches):
        for batch in batches:
            optimizer.learning_rate = learning_rate_at(progress.step, total, recipe)
            seed_dropout(recipe, progress.step, ranks)
            loss = train_step(network, optimizer, batch, recipe, ranks)
            meter.count(batch, loss)
            progress.step += 1
            bar.update()

            if progress.is_due(recipe.log_every, total):
                figures = log_steps(progress, steps_per_epoch, optimizer, meter, run)
                bar.set_postfix_str(f"loss {figures['loss']:.2e}, {figures['sentences_per_second']:.0f} sentences/s")
            with meter.paused():
                if progress.is_due(recipe.evaluate_every, total):
                    checkpoints.keep_best(progress, evaluate_now())
                if progress.is_due(recipe.save_every, total):
                    checkpoints.save(progress, meter)
            end_early(progress, total, checkpoints, meter, recipe, ranks, run)
    checkpoints.load_best()
    student.eval()
    return progress


def log_steps(
    progress: Progress, steps_per_epoch: int, optimizer: StudentOptimizer, meter: Meter, run: Run
) -> dict[str, float]:
    """Log the steps since the last line. Here, and not in each step, the device is waited for."""
    progress.skipped, progress.skipped_in_a_row = optimizer.skips.tolist()
    figures = {"learning_rate": optimizer.learning_rate, "grad_norm": float(optimizer.grad_norm), **meter.read()}
    figures |= {"epoch": progress.step / steps_per_epoch, "skipped_steps": progress.skipped}
    run.log({"step": progress.step, **figures})
    release_freed_memory()
    return figures


def end_early(
    progress: Progress, total: int, checkpoints: Checkpoints, meter: Meter, recipe: Recipe, ranks: Ranks, run: Run
) -> None:
    """End the run, with what is needed to resume it, where it should not go on.

    Raises:
        RunError: a signal came, or too many gradients in a row are not finite.
    """
    if progress.skipped_in_a_row >= recipe.max_skipped_steps:
        run.end(
            f"{progress.skipped_in_a_row} steps in a row had a gradient that is not finite; the best weights "
            f"(step {progress.best_step}) are in {checkpoints.best}; lower --learning-rate or give --precision fp32"
        )
    if run.stop_wanted(progress.step):
        checkpoints.save(progress, meter)
        ranks.wait_for_all()  # a rank that ended would make torchrun end the one that still saves
        run.end(f"stopped after step {progress.step} of {total}, which is saved; go on with: {run.again}")


def in_parallel(student: Embedder) -> DistributedDataParallel:
    """The student on one of several ranks. It has no buffers that would be sent in each step."""
    return DistributedDataParallel(student, gradient_as_bucket_view=True)


def batches_from(labels: Labels, recipe: Recipe, step: int) -> Iterator[LabelledSentences]:
    """The batches of the run after its first `step`."""
    first_epoch, skip = divmod(step, labels.steps_per_epoch(recipe.batch_size))
    for epoch in range(first_epoch, recipe.epochs):
        yield from labels.epoch(recipe.batch_size, recipe.seed, epoch, skip if epoch == first_epoch else 0)


def seed_dropout(recipe: Recipe, step: int, ranks: Ranks) -> None:
    """Draw dropout from the step's own seed, so that a resumed run drops the same."""
    if recipe.dropout > 0:
        torch.manual_seed(recipe.seed + 1_000_003 * (step * ranks.world + ranks.rank))


def measure(
    student: Embedder,
    held_out: LabelledSentences,
    sts: list[StsPairs],
    retrieval: list[RetrievalSet],
    progress: Progress,
    recipe: Recipe,
    ranks: Ranks,
    run: Run,
) -> float:
    """Evaluate the student and log the figures; returns the one that the best step is chosen by."""
    student.eval().use_precision(encoding_precision(recipe.precision, ranks.device))
    figures = flat(evaluate_quickly(student, held_out, sts, ranks, retrieval))
    student.train()
    run.log({"step": progress.step, **figures})
    return figures[recipe.metric_for_best_model]


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
    precision = training_precision(recipe.precision, ranks.device)
    sts = [read_sts(name, source) for name, source in recipe.sts.items()]
    retrieval = [read_retrieval(name, source) for name, source in recipe.retrieval.items()]
    teacher = Embedder.load(
        recipe.teacher, ranks.device, encoding_precision(precision, ranks.device), **teacher_overrides(recipe)
    )
    teacher.tokens_per_batch = recipe.tokens_per_batch or None
    for note in teacher.settings.notes:
        say(ranks, f"note: {note}")
    start = load_start(recipe, teacher) if recipe.start_from else teacher
    choose = partial(choose_layers, recipe.layers, start.bert.config.num_hidden_layers, whose=whose_layers(recipe))
    choose(search=lambda count: list(range(count)))  # a wrong list ends here, at once
    corpus = open_corpus(recipe, cutter_of(teacher), ranks)

    def search(count: int) -> list[int]:
        return ranks.from_main("layers", lambda: search_layers(start, sample_of(corpus, start), count))

    layers = choose(search=search)
    check_batches(recipe, len(corpus), ranks)
    if recipe.vocabulary:
        check_vocabulary(teacher, recipe.vocabulary)
    check_width(teacher, recipe.intermediate_size)
    if recipe.dimensions:
        ranks.copy_from_main(project_teacher(teacher, sample_of(corpus, teacher), recipe.dimensions))
    resolved = dataclasses.replace(recipe, precision=precision, layers=layers)
    run.begin()  # nothing that a recipe can say wrong is left to be found

    labels = label_corpus(teacher, corpus, resolved, ranks)
    student = start.keep_layers(layers)
    if resolved.intermediate_size:
        size, loss = resolved.intermediate_size, resolved.loss
        units = ranks.from_main("units", lambda: important_units(student, labels.read([0]), size, loss))
        keep_units(student, units)
    cut: dict[str, Any] = {}
    if resolved.vocabulary:
        student, cut = cut_vocabulary(student, labels.pieces, resolved.vocabulary)
    if student.bert.config.vocab_size != teacher.bert.config.vocab_size:
        labels.retokenize = retokenizer(teacher, student, corpus, resolved.shard_size)
    student.tokens_per_batch = teacher.tokens_per_batch
    describe_run(resolved, teacher, student, corpus, labels, cut, ranks, run)
    progress = train(student, labels, sts, retrieval, resolved, ranks, run)
    if ranks.is_main:
        student.calibrate(student.with_prompts(corpus.evaluation(), corpus.evaluation_roles()))
        student.save(run.directory / "model")
        finish(student, teacher, labels, corpus, sts, retrieval, progress, resolved, run)


def describe_run(
    recipe: Recipe,
    teacher: Embedder,
    student: Embedder,
    corpus: Corpus,
    labels: Labels,
    cut: dict[str, Any],
    ranks: Ranks,
    run: Run,
) -> None:
    """Say what the run is made of, and write it into the run's directory.

    Args:
        cut: what `cut_vocabulary` says of the smaller vocabulary; {} for the teacher's own.
    """
    if not ranks.is_main:
        return
    say(ranks, f"teacher {recipe.teacher}: {teacher.bert.config.num_hidden_layers} layers, {count(teacher)}")
    layers = f"layers {', '.join(map(str, recipe.layers))} of {whose_layers(recipe)}"
    if recipe.intermediate_size:
        layers += f", of width {recipe.intermediate_size:,}"
    say(ranks, f"student: {layers}, {count(student)}")
    if cut:
        share, saved = f"{cut['share_of_tokens']:.2%}", f"{cut['megabytes_saved']:.1f}"
        say(ranks, f"{cut['pieces']:,} of {cut['of']:,} pieces kept, {share} of the text's tokens: {saved} MB less")
    say(ranks, f"{len(corpus):,} sentences of {labels.tokens['mean']:.1f} tokens, in {recipe.precision}")
    write_text(run.directory / "recipe.toml", recipe_text(recipe))
    held_out = {"sentences": corpus.evaluation(), "roles": corpus.evaluation_roles()}
    write_json(run.directory / "held_out.json", held_out)
    statistics = {"size": len(corpus), "evaluation_size": corpus.evaluation_size, "tokens": labels.tokens}
    samples = {"samples": corpus.sentences(0, min(3, len(corpus))), "sources": corpus.counts}
    write_json(run.directory / "data.json", statistics | samples | ({"vocabulary": cut} if cut else {}))


def check_batches(recipe: Recipe, sentences: int, ranks: Ranks) -> None:
    """Make sure that every rank has a sentence in every micro-batch.

    Raises:
        InputError: a batch is smaller than ranks x accumulation.
    """
    windows = window_sizes(sentences, recipe.shard_size * recipe.window_shards)
    least = min(smallest_batch(size, recipe.batch_size) for size in windows)
    parts = ranks.world * recipe.gradient_accumulation
    if least < parts:
        raise InputError(
            f"batch_size: a batch of {least} sentences can't be split over {ranks.world} ranks and "
            f"{recipe.gradient_accumulation} micro-batches; change --batch-size, --gradient-accumulation or "
            "--max-sentences"
        )


def finish(
    student: Embedder,
    teacher: Embedder,
    labels: Labels,
    corpus: Corpus,
    sts: list[StsPairs],
    retrieval: list[RetrievalSet],
    progress: Progress,
    recipe: Recipe,
    run: Run,
) -> None:
    """Judge the student, look whether the labels still are what the teacher says, and print it all."""
    student.use_precision(teacher.precision)
    held_out, roles = corpus.evaluation(), corpus.evaluation_roles()
    figures, pairs = evaluate(student, teacher, sts, held_out, retrieval, roles)
    sample = labels.evaluation()
    again = torch.as_tensor(teacher.encode(teacher.with_prompts(held_out[:100], roles[:100]), prompt=""))
    warnings = []
    difference = float((again - sample.labels[:100].float()).norm() / again.norm())
    # bf16 is 0.01 from fp32, and may round anew where a batch holds other sentences; another prompt makes it 0.7.
    if difference > 0.1:
        warnings.append(f"labels on disk differ from the teacher's embeddings by {difference:.0%} of their length")
    if progress.best_step == 0:
        warnings.append("training did not improve on the untrained student: try another learning rate or more text")
    # fp16 finds its scale by overflows: at most 16 at first, and one each time that it tries a larger scale.
    ordinary = 16 + progress.step // 2000 if recipe.precision == "fp16" else 0
    if progress.skipped > ordinary:
        warnings.append(f"{progress.skipped} steps were skipped because their gradient was not finite")
    figures["sanity"] = figures.get("sanity", {}) | {"labels_relative_difference": difference, "warnings": warnings}
    figures["best_step"] = progress.best_step
    write_json(run.directory / "evaluation.json", figures)
    write_json(run.directory / "evaluation_pairs.json", pairs)
    print(table(figures))
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"student of step {progress.best_step}: {run.directory / 'model'}")


def whose_layers(recipe: Recipe) -> str:
    """Whose layers the student starts from, in words."""
    return recipe.start_from or "the teacher"


def load_start(recipe: Recipe, teacher: Embedder) -> Embedder:
    """The student that `start_from` names, in fp32, which must live in the teacher's own space.

    Raises:
        InputError: no such model, or one of other dimensions, or whose tokenizer is no cut of the teacher's.
    """
    student = Embedder.load(recipe.start_from, teacher.device, "fp32", max_length=teacher.settings.max_length)
    if student.dimensions != (recipe.dimensions or teacher.dimensions):
        raise InputError(
            f"start_from: {recipe.start_from} has {student.dimensions} dimensions, the labels have "
            f"{recipe.dimensions or teacher.dimensions}; name a student of this teacher"
        )
    if not is_cut_of(student, teacher):
        raise InputError(
            f"start_from: {recipe.start_from} has another tokenizer than the teacher; name its own student"
        )
    return student


def sample_of(corpus: Corpus, teacher: Embedder, size: int = 16_384) -> list[str]:
    """Training sentences at random, prompts before them: the corpus is shuffled, so its first ones."""
    rows = 0, min(size, len(corpus))
    return teacher.with_prompts(corpus.sentences(*rows), corpus.roles(*rows))


def count(embedder: Embedder) -> str:
    """Parameters that take part in an embedding, in words."""
    return f"{sum(p.numel() for name, p in embedder.named_parameters() if 'pooler' not in name) / 1e6:.1f} M parameters"


def say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=str(DEFAULT_RECIPE), help="recipe file (default: minilm-3.toml)")
    parser.add_argument("--resume", action="store_true", help="resume from the run's last checkpoint, if there is one")
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
