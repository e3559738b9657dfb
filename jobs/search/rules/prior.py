"""The prior of `auto`: the values of its first trial. Light to import."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterable
from typing import Any, Final

from cluster.errors import SpecError, StorageError
from jobs.model_files.sizes import WIDTH, size_in
from jobs.run.paths import JobPaths, time_in_name
from jobs.search.rules.rates import CLEARLY
from jobs.search.rules.varying import field_meant
from jobs.spec.finetune import Spec, Train
from jobs.spec.load import load_spec, load_sweep
from jobs.spec.space import Range
from jobs.spec.sweep import Search, SweepSpec, default_space
from jobs.storage import files as storage
from jobs.storage.journal import Record, read_journal

RATE: Final = "train.learning_rate"
_WARMUP: Final = "train.warmup_ratio"
PROMPT_RATE: Final = 0.02  # between 0.001 and 0.5, where the best rates of prompt tuning mostly are
_USUAL_WARMUP: Final = 0.06  # of RoBERTa (arXiv 1907.11692); recipes for instructions warm up for 0.03
_MOST_LOOKED_AT = 30  # earlier sweeps


def with_prior(sweep: SweepSpec) -> tuple[SweepSpec, str | None]:
    """Fill in the prior for each field of the space, and return where the prior of the learning rate comes from.

    A sweep without a space gets the default one, around the prior. Algorithms other than auto have no prior.

    Raises:
        SpecError: the given prior lies outside the space, or names a field that is not in it.
    """
    if sweep.algorithm != "auto":
        return sweep, None
    written = {field_meant(name, "prior"): name for name in sweep.prior}
    keys = {field: f"prior.{name}" for field, name in written.items()}
    given = {field: sweep.prior[name] for field, name in written.items()}
    if RATE in given:
        rate, said = _checked_rate(given[RATE], keys[RATE]), None
    else:
        rate, said = rate_to_begin_with(sweep)
    space = dict(sweep.space) or default_space(rate)
    fields = {field_meant(name): name for name in space}
    if unknown := sorted(given.keys() - fields):
        what = f"the space has no such field: it has {', '.join(sorted(fields))}"
        raise SpecError.at(keys[unknown[0]], what)
    prior = {}
    for field, name in fields.items():
        value = rate if field == RATE else given.get(field, _value_of(sweep.base, field))
        prior[name] = nearest_in(space[name], value)
        if field in given and prior[name] != value:
            raise SpecError.at(keys[field], f"{value} is outside of space.{name}")
        if field == RATE and said and prior[name] != value:
            said = f"{said}, moved into the space"
    return sweep.model_copy(update={"space": space, "prior": prior}), said if RATE in fields else None


def check_has_use_for_prior(sweep: SweepSpec) -> None:
    """Raise SpecError if the spec gives a prior, but its algorithm has no first values."""
    if sweep.prior and sweep.algorithm != "auto":
        raise SpecError.at("prior", f"it is for algorithm: auto, but algorithm is {sweep.algorithm}: leave prior out")


def _checked_rate(value: Any, key: str) -> float:
    """Return the learning rate that a prior gives under this key of the spec. Raises SpecError."""
    if not _is_number(value) or not 0 < value <= 1:
        raise SpecError.at(key, f"must be a number above 0, at most 1, but is {value}")
    return float(value)


def nearest_in(values: Range | tuple[Any, ...], value: Any) -> Any:
    """Return the nearest value of a dimension; the first choice if the choices are not numbers."""
    if isinstance(values, tuple):
        if value in values:
            return value
        return min(values, key=lambda one: abs(one - value)) if all(map(_is_number, (value, *values))) else values[0]
    number = value if isinstance(value, int | float) else values.between
    return min(max(float(number), values.min), values.max)


def _is_within(values: Range | tuple[Any, ...], number: float) -> bool:
    """Whether a number lies between the ends of a range, or between the least and the greatest number of a list."""
    numbers = [one for one in values if _is_number(one)] if isinstance(values, tuple) else [values.min, values.max]
    return bool(numbers) and min(numbers) <= number <= max(numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value_of(base: Spec, field: str) -> Any:
    value: Any = base
    for key in field.split("."):
        value = value[int(key)] if isinstance(value, tuple) else getattr(value, key)
    return _USUAL_WARMUP if value is None and field == _WARMUP else value


def rate_to_begin_with(sweep: Search) -> tuple[float, str]:
    """Return the prior of the learning rate, and its source in words."""
    base, rate = sweep.base, sweep.base.train.learning_rate
    is_given = "learning_rate" in base.train.model_fields_set
    if is_given and rate != Train().learning_rate:  # what an earlier release has queued gives every field
        return rate, "the base"
    wanted = next((values for name, values in sweep.space.items() if field_meant(name) == RATE), None)
    if earlier := [one for one in earlier_rates(base) if wanted is None or _is_within(wanted, one)]:
        count = "an earlier sweep" if len(earlier) == 1 else f"{len(earlier)} earlier sweeps"
        return statistics.geometric_mean(earlier), f"{count} of this model"
    if is_given:
        return rate, "the base"
    if base.method.kind == "prompt":
        return PROMPT_RATE, "what is usual for prompts"
    hidden = hidden_size(base.model.path)
    is_lora = base.method.kind == "lora"
    if hidden is None:
        return (10 * rate, "ten times the default") if is_lora else (rate, "the base")
    return rate_by_size(hidden, is_lora), f"the model's width of {hidden}"


def rate_by_size(hidden_size: int, is_lora: bool = False) -> float:
    """Return 5e-5 (2000 / hidden_size)^0.43, and ten times that for LoRA.

    Source: Tinker's cookbook (2025). Its two fits for full fine-tuning, with the exponents 0.78 for Llama and 0.08 for
    Qwen, are averaged geometrically. It also found the factor of ten between LoRA and full fine-tuning.
    """
    return float(f"{(5e-4 if is_lora else 5e-5) * (2000 / hidden_size) ** 0.43:.2g}")


def hidden_size(model: str) -> int | None:
    """Return the hidden size of a model (of its text part); None if its config.json cannot be read here."""
    with contextlib.suppress(StorageError, ValueError, AttributeError):
        config = json.loads(storage.read_bytes(storage.join(model, "config.json")))
        size = size_in(config, WIDTH)
        return size if size and size > 0 else None
    return None


def earlier_rates(base: Spec) -> list[float]:
    """Return the best learning rates of earlier sweeps with the same model, task, method and storage_path.

    Sweeps in which nothing was learned are left out: their best rate is arbitrary.
    """
    with contextlib.suppress(StorageError):
        runs = [JobPaths.of(base.storage_path, name) for name in storage.list_names(base.storage_path)]
        dated = sorted((at, run.root) for run in runs if (at := time_in_name(run.name)) is not None)
        found = [_best_of(JobPaths(root), base) for _, root in dated[-_MOST_LOOKED_AT:]]
        return [best.train.learning_rate for best in found if best is not None]
    return []


def _kind_of(spec: Spec) -> tuple[str, str, str]:
    return spec.model.path, spec.model.task, spec.method.kind


def _best_of(paths: JobPaths, base: Spec) -> Spec | None:
    """Return the best spec of a sweep. Return None if `base` is another kind of job, or the sweep tells no rate.

    That is: the run is no sweep, it did not search the learning rate, or nothing was learned in it.
    """
    try:
        if not storage.exists(paths.best) or _kind_of(best := load_spec(paths.best)) != _kind_of(base):
            return None
        sweep = load_sweep(paths.spec)
        if sweep is None or (sweep.space and RATE not in map(field_meant, sweep.space)):
            return None
        return best if _has_learned(sweep, read_journal(paths.ledger)) else None
    except (StorageError, SpecError, ValueError, AttributeError):
        return None


def _has_learned(sweep: SweepSpec, ledger: Iterable[Record]) -> bool:
    """Whether a trial's score is clearly better than the base model's. True if that one is not known."""
    answers = [record["answer"] for record in ledger if "answer" in record]
    before = [answer.get("base", {}).get(sweep.judged) for answer in answers]
    after = [(answer.get("cooled") or answer.get("metrics", {})).get(sweep.judged) for answer in answers]
    base, scores = next(filter(_is_number, before), None), list(filter(_is_number, after))
    if base is None or not scores:
        return True
    gain = base - min(scores) if sweep.lower_is_better else max(scores) - base
    return bool(gain > CLEARLY * abs(base))
