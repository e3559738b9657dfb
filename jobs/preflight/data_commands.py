"""What the commands `fleetune data ...` do with a spec. Light to import: heavy libraries are imported when needed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from cluster.errors import DataError, FleetuneError, SpecError
from cluster.ray.connection import connected
from cluster.settings import set_default
from jobs.console import redirected_output
from jobs.preflight.validate import check_formats, enter_working_dir
from jobs.run.find import with_model_of_run
from jobs.run.outcome import event
from jobs.run.paths import prepared_root
from jobs.run.progress import Progress
from jobs.spec.finetune import Spec
from jobs.storage import files as storage

if TYPE_CHECKING:
    from jobs.data.prepared import Prepared
    from jobs.data.quality.preview import ShownRow
    from jobs.data.quality.report import DataReport

# Up to this size, one process with the tokenizer's threads takes about as long as a Ray of this machine.
SMALL_BYTES = 64 * 2**20

Say = Callable[[str], None]


def prepare_data(spec: Spec, address: str | None, progress: Progress) -> Prepared:
    """Prepare the data of a spec, on the cluster at `address` or on this machine, or find it prepared.

    Raises:
        InputError: the spec, the data or the storage is unsuitable.
    """
    _check_functions(spec)
    with _working(spec, address, progress) as (engine, model_dir, say):
        from jobs.data.order.stream import step_plan
        from jobs.data.preparation.prepare import prepare

        prepared = prepare(spec, model_dir, engine=engine, say=say)
        if spec.data.mixed:  # only the number of rows shows whether max_epochs leaves enough of them
            step_plan(spec, prepared.split("train"))
        return prepared


def check_data(spec: Spec, address: str | None, progress: Progress) -> DataReport:
    """Check all samples. Problems of the samples are in the report. Raises InputError, as `prepare_data` does."""
    _check_functions(spec)
    with _working(spec, address, progress) as (engine, model_dir, say):
        from jobs.data.quality.check import check

        return check(spec, model_dir, engine=engine, say=say)


def show_data(spec: Spec, count: int, split: Literal["train", "eval"], start: int, warn: Say) -> list[ShownRow]:
    """Return `count` rows from number `start` on, of the prepared data if it exists, else of the first samples."""
    _check_functions(spec)
    with _quietly():
        from jobs.data.quality.preview import shown_rows

        return shown_rows(spec, _model_dir(spec), count, split, start, warn)


def generate_text(
    spec: Spec, to: str, samples: int, max_tokens: int, temperature: float, progress: Progress
) -> tuple[int, str]:
    """Let the spec's base model write a file of texts, or find it written.

    Returns:
        The number of samples that were drawn now, and the absolute path of the file.

    Raises:
        InputError: the spec, the model or the file is unsuitable.
    """
    if spec.model.task != "causal-lm":
        raise SpecError(f"model.task is {spec.model.task}: only a language model (causal-lm) writes text")

    def say(text: str) -> None:
        progress.event(event("phase", text, phase="generate"))

    to = os.path.abspath(to) if not storage.is_url(to) else to
    with _quietly():
        from jobs.data.sources.generated import Settings, check_target, generate, model_digest
        from jobs.model_files.directory import check_model_files, local_model_dir, longest_text

        check_target(to)
        say("reading the model's files for their hash")
        model_dir = local_model_dir(with_model_of_run(spec).model.path)
        most = longest_text(model_dir)
        if most is not None and max_tokens > most:
            raise DataError(f"the model in {model_dir} has {most} positions: use --max-tokens {most} or less")
        check_model_files(model_dir, spec)
        settings = Settings(
            model=model_digest(model_dir),
            samples=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=spec.seed,
        )
        return generate(model_dir, to, settings, say), to


def _check_functions(spec: Spec) -> None:
    enter_working_dir(spec)
    check_formats(spec)


@contextlib.contextmanager
def _working(spec: Spec, address: str | None, progress: Progress) -> Iterator[tuple[Literal["plain", "ray"], str, Say]]:
    """Yield an engine that is ready, the model's directory, and a function that reports progress."""

    def say(text: str) -> None:
        progress.event(event("phase", text, phase="prepare"))

    storage.check_writable(prepared_root(spec.storage_path, ""))
    with _quietly():
        say("loading the tokenizer")
        model_dir = _model_dir(spec)
        if address is None and _size(spec) <= SMALL_BYTES:
            yield "plain", model_dir, say
            return
        say("connecting to Ray")
        with connected(address, None):
            yield "ray", model_dir, say


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Redirect the output of libraries to a file, which is named if an unexpected error is raised."""
    set_default("DS_ACCELERATOR", "cpu")
    with tempfile.NamedTemporaryFile(prefix="fleetune-data-", suffix=".log", delete=False) as file:
        log = file.name
    expected = True
    try:
        with redirected_output(log):
            yield
    except Exception as error:
        expected = isinstance(error, FleetuneError)
        if not expected:
            error.add_note(f"the output of the libraries is in {log}")
        raise
    finally:
        if expected:
            os.unlink(log)


def _model_dir(spec: Spec) -> str:
    """Return a directory with the tokenizer. Weights are not needed, because data may be prepared where none are."""
    from jobs.model_files.directory import tokenizer_dir

    return tokenizer_dir(with_model_of_run(spec).model.path, spec.needs_own_template)


def _size(spec: Spec) -> int:
    """Return the bytes of all source files. Raises DataError."""
    from jobs.data.sources.patterns import expand

    sources = [source for _, source in spec.sources]
    return sum(storage.size(file) for source in sources for file in expand(source.path))
