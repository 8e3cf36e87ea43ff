"""Distil a sentence embedder: copy some of a teacher's layers and train them to give the teacher's embeddings.

    python train.py                                   # the default: recipes/minilm-3.toml
    python train.py recipes/mxbai-large-8.toml        # the reference run; needs a GPU and the Hub
    python train.py RECIPE --layers 0,5 --learning-rate 5e-4 --name two-layers
    python train.py RECIPE --resume                   # resume after a stop
    torchrun --nproc-per-node 8 train.py RECIPE       # the same steps on eight GPUs

The teacher embeds every sentence once and its embeddings are kept on disk as labels. The student starts from copies of
the teacher's layers, and each step moves its embeddings of a batch of sentences towards the labels. What it keeps is
measured on sentences and STS pairs that it has not seen.
"""

from shortstack.distillation.flags import answer_first, parse_arguments

if __name__ == "__main__":
    answer_first("train")  # --help and a wrong flag end here, before the seconds that the imports below take

import contextlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from shortstack.distillation.command_line import (
    end_at_once,
    recipe_from_arguments,
    run_command,
)
from shortstack.distillation.curves import Callback
from shortstack.distillation.data.corpus import Corpus, open_corpus
from shortstack.distillation.data.epochs import Epochs, check_batches
from shortstack.distillation.data.labels import LabelledSentences, Labels, label_corpus
from shortstack.distillation.data.passages import cutter_of
from shortstack.distillation.data.vectors import TeacherVectors
from shortstack.distillation.evaluation.judge import Judge
from shortstack.distillation.evaluation.own import NAME, own_documents, verdict, write_retrieval
from shortstack.distillation.evaluation.results import Results, write_results
from shortstack.distillation.evaluation.sets import RetrievalSet, StsPairs, read_retrieval, read_sts
from shortstack.distillation.evaluation.table import table
from shortstack.distillation.host import release_freed_memory
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe, metric_key, recipe_text, teacher_overrides
from shortstack.distillation.run import Run, what_decides
from shortstack.distillation.student.layers import note_on_layers
from shortstack.distillation.student.plan import Plan, make_student, plan_student
from shortstack.distillation.training.checkpoint import Checkpoints, Progress, fingerprint
from shortstack.distillation.training.expected import say_expected_time
from shortstack.distillation.training.flat_optimizer import optimizer_for
from shortstack.distillation.training.graph import GraphedStep, graphed_step, why_not_graphed
from shortstack.distillation.training.meter import Meter
from shortstack.distillation.training.optimizer import StudentOptimizer, encoding_precision, training_precision
from shortstack.distillation.training.step import train_step
from shortstack.model import Embedder
from shortstack.model.files import write_json, write_text
from shortstack.model.prefetch import overlaps, prefetch
from shortstack.model.progress import progress_bar

# -- the run ---------------------------------------------------------------------------------------------------------


def distil(run: Run) -> None:
    """Everything from the recipe to the model directory.

    Raises:
        InputError: anything wrong with the recipe, before the run's directory is touched.
    """
    recipe, ranks = run.recipe, run.ranks
    sets = read_sets(recipe)
    vectors = TeacherVectors.read(recipe.teacher_vectors, Path(recipe.output)) if recipe.teacher_vectors else None
    teacher = load_teacher(run)
    plan = plan_student(recipe, teacher, vectors)
    corpus = open_corpus(recipe, cutter_of(teacher), ranks, vectors)
    ranks.agree("corpus", {"text": corpus.fingerprint})
    check_batches(recipe, len(corpus), ranks)
    plan = plan.settled(corpus, ranks)
    run.begin(plan.recipe)
    say_expected_time(plan, corpus, run)

    labels = label_corpus(teacher, corpus, run.recipe, ranks)
    ranks.agree("labels", {"teacher": labels.fingerprint})
    student, labels = make_student(plan, labels, corpus, ranks)
    training = begin_training(student, labels, run)  # a checkpoint of other settings is refused here
    judge = make_judge(sets, plan, corpus, run)
    describe_run(plan, student, labels, corpus, run)
    train(training, labels.evaluation(), judge, run)
    if ranks.is_main:
        results = finish(student, plan, labels, judge, run)
        hand_over(results, sanity_of(training.progress, labels, run), run)


Sets = tuple[list[StsPairs], list[RetrievalSet]]


def read_sets(recipe: Recipe) -> Sets:
    """The STS and the retrieval sets that the recipe names."""
    sts = [read_sts(name, source) for name, source in recipe.sts.items()]
    return sts, [read_retrieval(name, source) for name, source in recipe.retrieval.items()]


def load_teacher(run: Run) -> Embedder:
    """The recipe's teacher, in the precision that the run labels and evaluates in.

    With `teacher_vectors`, where the teacher itself is not at hand: the encoder that the student starts from.
    """
    recipe, device = run.recipe, run.ranks.device
    precision = encoding_precision(recipe.precision, device)
    name = recipe.start_from if recipe.teacher_vectors else recipe.teacher
    teacher = Embedder.load(name, device, precision, **teacher_overrides(recipe))
    if recipe.teacher_vectors:  # the vectors are those of the texts without a prompt
        teacher.settings.prompts, teacher.settings.default_prompt_name = {}, None
    teacher.tokens_per_batch = recipe.tokens_per_batch or None
    for note in filter(None, [note_on_layers(recipe.layers), *teacher.settings.notes]):
        run.say(f"note: {note}")
    return teacher


def make_judge(sets: Sets, plan: Plan, corpus: Corpus, run: Run) -> Judge:
    """What the student is judged by; the teacher's side of it, and the start's, are measured here."""
    own = own_set(corpus, plan.teacher, run)
    judge = Judge(*sets, corpus.evaluation(), run.ranks, Path(run.recipe.output) / "labels", own)
    if run.recipe.start_from:
        judge.hear_start(plan.start, plan.teacher)
    run.ranks.wait_for_main("own documents")  # which alone reads and embeds them
    if plan.vectors is None:
        judge.hear(plan.teacher)
    return judge


def own_set(corpus: Corpus, teacher: Embedder, run: Run) -> RetrievalSet | None:
    """On rank 0 of a run on a user's own documents: the set to judge search on them by, kept in the run's directory."""
    if corpus.own is None or not run.ranks.is_main:
        return None
    data, what = own_documents(corpus, cutter_of(teacher), run.recipe.seed)
    run.say(what)
    if data is not None:
        write_retrieval(data, run.directory / NAME)
    return data


def describe_run(plan: Plan, student: Embedder, labels: Labels, corpus: Corpus, run: Run) -> None:
    """Print what the run is made of, and write it into the run's directory."""
    if not run.ranks.is_main:
        return
    recipe, history = run.recipe, student.settings.history
    if plan.vectors is not None:
        run.say(f"teacher: {len(plan.vectors.vectors):,} vectors of {plan.vectors.dimensions} dimensions")
    else:
        layers = plan.teacher.bert.config.num_hidden_layers
        run.say(f"teacher {recipe.teacher}: {layers} layers, {size_of(plan.teacher)}")
    numbers = ", ".join(map(str, plan.layers)) or "none"
    width = f", of width {recipe.intermediate_size:,}" if recipe.intermediate_size else ""
    run.say(f"student: layers {numbers} of {recipe.start_from or 'the teacher'}{width}, {size_of(student)}")
    if recipe.vocabulary:
        cut = history["vocabulary"]
        share, saved = f"{cut['share_of_tokens']:.2%}", f"{cut['megabytes_saved']:.1f}"
        run.say(f"{cut['pieces']:,} of {cut['of']:,} pieces kept, {share} of the text's tokens: {saved} MB less")
    run.say(f"{len(corpus):,} sentences of {labels.tokens['mean']:.1f} tokens, in {recipe.precision}")
    write_text(run.directory / "recipe.toml", recipe_text(recipe))
    write_json(run.directory / "held_out.json", corpus.evaluation()._asdict())
    statistics = {"size": len(corpus), "evaluation_size": corpus.evaluation_size, "tokens": labels.tokens}
    samples = {"samples": corpus.training(0, min(3, len(corpus))).sentences, "sources": corpus.counts}
    made = {key: history[key] for key in ("teacher_layers", "vocabulary") if key in history}
    write_json(run.directory / "data.json", statistics | samples | made)


def size_of(embedder: Embedder) -> str:
    """The number of parameters that an embedding depends on, in words."""
    return f"{sum(p.numel() for name, p in embedder.named_parameters() if 'pooler' not in name) / 1e6:.1f} M parameters"


def finish(student: Embedder, plan: Plan, labels: Labels, judge: Judge, run: Run) -> Results:
    """Save the trained student and measure it in the teacher's precision."""
    student.calibrate(student.with_prompts(*judge.held_out))
    student.save(run.directory / "model")
    student.use_precision(plan.teacher.precision)
    if plan.vectors is not None:
        return judge.by_labels(student, labels.evaluation())
    return judge.fully(student, plan.teacher)


def sanity_of(progress: Progress, labels: Labels, run: Run) -> dict[str, Any]:
    """What to know about the training beside the student's figures: the best step, and warnings."""
    warnings = []
    if progress.best_step == 0:
        warnings.append("training did not improve on the untrained student: try another learning rate or more text")
    # fp16 finds its loss scale by overflows: at most 16 at first, then one for every larger scale that it tries.
    ordinary = 16 + progress.step // 2000 if run.recipe.precision == "fp16" else 0
    if progress.skipped > ordinary:
        warnings.append(f"{progress.skipped} steps were skipped because their gradient was not finite")
    sanity = {"labels_relative_difference": labels.difference, "warnings": warnings}
    return {"sanity": sanity, "best_step": progress.best_step}


def hand_over(results: Results, findings: dict[str, Any], run: Run) -> None:
    """Write the figures of the judge, with the `findings` of `sanity_of` among them, and print them."""
    figures, pairs = results
    figures |= findings | {"sanity": figures.get("sanity", {}) | findings["sanity"]}
    write_results(run.directory, (figures, pairs))
    print(table(figures))
    for warning in findings["sanity"]["warnings"]:
        print(f"warning: {warning}")
    print(f"student of step {findings['best_step']}: {run.directory / 'model'}")
    if line := verdict(figures):
        print(line)


# -- the loop --------------------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """A student in training: its data, its optimizer, and how far it has come."""

    student: Embedder
    epochs: Epochs
    optimizer: StudentOptimizer
    checkpoints: Checkpoints
    progress: Progress


def begin_training(student: Embedder, labels: Labels, run: Run) -> Training:
    """The student before its first step, or where the run is resumed as its last checkpoint has it.

    Raises:
        InputError: the checkpoint is damaged, or of other settings, text or teacher.
    """
    recipe = run.recipe
    epochs = Epochs.of(labels, recipe)
    student.bert.dropout = recipe.dropout
    student.train()
    optimizer = optimizer_for(student, recipe, run.ranks)
    checkpoints = Checkpoints(student, optimizer, fingerprint(recipe, labels, epochs.steps), run)
    progress = checkpoints.resume(epochs.steps) if run.resume else Progress(total=epochs.steps)
    return Training(student, epochs, optimizer, checkpoints, progress)


def train(training: Training, held_out: LabelledSentences, judge: Judge, run: Run) -> None:
    """Train the student; its best weights are loaded when this returns.

    Raises:
        RunError: stopped by a signal, or by too many gradients in a row that are not finite.
    """
    student, epochs, optimizer, checkpoints, progress = training
    recipe, ranks, total = run.recipe, run.ranks, epochs.steps
    run.cut_log(progress.step or -1)  # a run that starts over measures the untrained student again
    network = student if ranks.world == 1 else in_parallel(student)
    graphed = record_steps(student, optimizer, run)

    if progress.best_step < 0:  # the untrained student: what training has to improve on
        checkpoints.keep_best(progress, measure(student, held_out, judge, progress, run))
    meter = Meter(ranks, (progress.loss_sum, progress.losses))
    # As many batches are made ahead as a shard holds: while they are trained on, the next window of labels is read.
    ahead = epochs.steps_per_shard if overlaps(ranks.device) else 0
    batches = prefetch(epochs.batches(progress.step), ahead)
    bar = progress_bar(total, " steps", initial=progress.step, disable=not ranks.is_main)
    with run.taking_steps(), bar, contextlib.closing(batches):
        for batch in batches:
            optimizer.learning_rate = learning_rate_at(progress.step, total, recipe)
            seed_dropout(recipe, progress.step, ranks)
            loss = graphed(batch) if graphed else train_step(network, optimizer, batch, recipe, ranks)
            meter.count(batch, loss)
            progress.step += 1
            bar.update()

            if progress.is_due(recipe.log_every):
                figures = log_steps(progress, epochs.steps_per_epoch, optimizer, meter, run)
                rate = f"{figures['sentences_per_second']:.0f} sentences/s"
                bar.set_postfix_str(f"loss {figures['loss']:.2e}, {rate}", refresh=False)
                refuse_nan(progress, checkpoints, run)
            with meter.paused():
                if progress.is_due(recipe.evaluate_every):
                    checkpoints.keep_best(progress, measure(student, held_out, judge, progress, run))
                if progress.is_due(recipe.save_every):
                    checkpoints.save(progress, meter)
            end_if_stopped(progress, checkpoints, meter, run)
    checkpoints.load_best()
    student.eval()


def record_steps(student: Embedder, optimizer: StudentOptimizer, run: Run) -> GraphedStep | None:
    """Takes the steps of `train_step` as CUDA graphs; None where that is not possible, and on a GPU a note says why."""
    graphed = graphed_step(student, optimizer, run.recipe, run.ranks)
    if graphed is None and run.ranks.device.type == "cuda":
        reason = why_not_graphed(student, run.recipe, run.ranks)
        run.say(f"note: steps are launched one operation at a time, not as a CUDA graph: {reason}")
    return graphed


def learning_rate_at(step: int, total: int, recipe: Recipe) -> float:
    """Linear warmup from 0 to the peak, then linear decay to 0; steps count from 0."""
    warmup = math.ceil(recipe.warmup_ratio * total)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (total - step) / max(1, total - warmup)


def log_steps(
    progress: Progress, steps_per_epoch: int, optimizer: StudentOptimizer, meter: Meter, run: Run
) -> dict[str, float]:
    """Log the steps since the last line. Only here, not in every step, does the host wait for the device."""
    progress.skipped, progress.skipped_in_a_row = optimizer.skips.tolist()
    figures = {"learning_rate": optimizer.learning_rate, "grad_norm": float(optimizer.grad_norm), **meter.read()}
    figures |= {"epoch": progress.step / steps_per_epoch, "skipped_steps": progress.skipped}
    run.log({"step": progress.step, **figures})
    release_freed_memory()
    return figures


def refuse_nan(progress: Progress, checkpoints: Checkpoints, run: Run) -> None:
    """Raise RunError if too many gradients in a row were not finite, as the last line of the log counts them."""
    if progress.skipped_in_a_row >= run.recipe.max_skipped_steps:
        run.end(
            f"{progress.skipped_in_a_row} steps in a row had a gradient that is not finite; the best weights "
            f"(step {progress.best_step}) are in {checkpoints.best}; lower --learning-rate or give --precision fp32"
        )


def end_if_stopped(progress: Progress, checkpoints: Checkpoints, meter: Meter, run: Run) -> None:
    """End the run, with all that is needed to resume it, if it was asked to stop.

    Raises:
        RunError: a signal came.
    """
    if run.stop_wanted(progress.step):
        checkpoints.save(progress, meter)
        run.ranks.wait_for_all()  # if a rank ended now, torchrun would end the one that is still saving
        run.end(f"stopped after step {progress.step} of {progress.total}, which is saved; go on with: {run.again}")


def in_parallel(student: Embedder) -> DistributedDataParallel:
    """The student on one of several ranks. Its buffers are position numbers, the same everywhere.

    The table of word vectors is not among what DDP sums: training/rows.py sums the rows that a batch uses.
    """
    with warnings.catch_warnings():  # torch 2.13 has a new name for the argument, which 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(student, broadcast_buffers=False, gradient_as_bucket_view=True)


def seed_dropout(recipe: Recipe, step: int, ranks: Ranks) -> None:
    """Seed dropout by the step and rank, so that a resumed run drops the same numbers."""
    if recipe.dropout > 0:
        torch.manual_seed(recipe.seed + 1_000_003 * (step * ranks.world + ranks.rank))


def measure(student: Embedder, held_out: LabelledSentences, judge: Judge, progress: Progress, run: Run) -> float:
    """Evaluate the student and log the figures; returns the one that the best step is chosen by."""
    student.eval().use_precision(encoding_precision(run.recipe.precision, run.ranks.device))
    figures = flat(judge.quickly(student, held_out))
    student.train()
    run.log({"step": progress.step, **figures})
    return figures[run.recipe.metric_for_best_model]


def flat(figures: dict[str, Any]) -> dict[str, float]:
    """{"sts-dev": {"spearman_cosine": f}, ...} to {"sts_dev_spearman_cosine": f, ...}."""
    result: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            result |= {metric_key(name, kind): figure for kind, figure in value.items()}
        else:
            result[name] = value
    return result


# -- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    arguments = parse_arguments("train")
    run_recipe(recipe_from_arguments(arguments, arguments.recipe, arguments.resume), arguments.resume)


def run_recipe(recipe: Recipe, resume: bool = False, callbacks: Sequence[Callback] = ()) -> None:
    """Run a checked recipe, alone or as one of torchrun's processes; `callbacks` get every line of the log."""
    ranks = Ranks.start(recipe.device, recipe.timeout)
    with ranks.failing_together(end_at_once):
        ranks.agree("settings", what_decides(recipe))
        recipe.precision = training_precision(recipe.precision, ranks.device)
        run = Run(recipe, ranks, resume, callbacks)
        with run.held():
            distil(run)
        ranks.stop()


if __name__ == "__main__":
    run_command(main)
