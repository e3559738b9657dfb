"""Scores tasks of lm-eval, EleutherAI's evaluation harness, with the model in training.

Rank 0 has lm-eval: it loads the tasks, makes the texts to score and computes the metrics. All ranks score the texts,
each a share, because ZeRO-3 gathers every layer from all ranks. Only tasks that compare the probabilities of given
texts can be scored: writing a text takes a forward pass of all ranks for each token, which this module does not do.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from cluster.errors import DataError, MetricFailed, StorageOutage
from cluster.text import did_you_mean
from jobs.data.order.row_order import shares
from jobs.data.prepared import IGNORE_INDEX
from jobs.model_files.tokenizer import load_tokenizer
from jobs.planning.memory import rows_within
from jobs.run.metric_names import harness_name
from jobs.spec.evaluation import SCORABLE, LmEval, is_task_file
from jobs.spec.finetune import Spec
from jobs.storage.outages import is_outage
from jobs.training.collectives import from_rank_0, on_rank_0
from jobs.training.loop.evaluation import vocabulary_of
from jobs.training.model.batch import Batch, model_logits
from jobs.training.worker_context import WorkerContext

_ALL_AT_ONCE: Final = 2**30  # rows that lm-eval hands over together

# Tokens of the longest text, unless rows of training are longer. Models have positions for more than fits into memory.
_LONGEST: Final = 2048
_FEWSHOT_SEED: Final = 1234  # lm-eval's own default

Score = tuple[float, bool]  # log-probability of the scored tokens, and whether each is the most probable one


@dataclass(frozen=True)
class Text:
    """A text whose last `scored` tokens are scored."""

    tokens: list[int]
    scored: int


@dataclass(frozen=True)
class Harness:
    """Scores the tasks of a spec. Rank 0 keeps them, loaded, from one evaluation to the next."""

    spec: Spec
    model_dir: str
    pad_token_id: int
    _tasks: dict[str, Any] = field(default_factory=dict)  # of rank 0

    def score(self, engine: torch.nn.Module, worker: WorkerContext) -> dict[str, float]:
        """Return `eval_lm_eval_<task>_<metric>` of each task. Every rank must call it and gets the same values.

        Raises:
            MetricFailed: a task cannot be loaded or scored; raised on all ranks.
            StorageOutage: the source of its data does not answer; raised on all ranks.
        """
        engine.eval()
        try:
            message: Any = self._on_rank_0(engine, worker) if worker.rank == 0 else from_rank_0(None)
            while isinstance(message, list):
                _score_shares(self, engine, worker, message)
                message = from_rank_0(None)
        finally:
            engine.train()
        if isinstance(message, Exception):
            raise message
        return dict(message)

    def _on_rank_0(
        self, engine: torch.nn.Module, worker: WorkerContext
    ) -> dict[str, float] | MetricFailed | StorageOutage:
        """Let lm-eval score all tasks, and send its texts and then the result to the other ranks."""
        failed = list[BaseException]()

        def score(texts: list[Text]) -> list[Score]:
            try:
                from_rank_0(texts)
                return _score_shares(self, engine, worker, texts)
            except BaseException as error:  # of the model: other ranks are in a collective
                failed.append(error)
                raise

        result: dict[str, float] | MetricFailed | StorageOutage
        try:
            if not self._tasks:
                self._tasks.update(load_tasks(self.spec.eval.lm_eval))
            config = getattr(engine, "module", engine).config
            prompt = self.spec.prompt.num_virtual_tokens if self.spec.method.kind == "prompt" else 0
            tokenizer = load_tokenizer(self.model_dir, self.spec.model.chat_template)
            model = _language_model(tokenizer, config, max(_LONGEST, self.spec.data.seq_len), prompt, score)
            result = _evaluate(self.spec.eval.lm_eval, self._tasks, model)
        except Exception as error:  # tasks run users' functions on data from anywhere
            if failed:
                raise failed[0] from None
            traceback.print_exception(error)  # to this rank's log
            kind = StorageOutage if isinstance(error, StorageOutage) else MetricFailed
            result = kind(f"eval.lm_eval: {error}")
        return from_rank_0(result)


def _score_shares(
    harness: Harness, engine: torch.nn.Module, worker: WorkerContext, texts: Sequence[Text]
) -> list[Score]:
    """Score the texts on all ranks. Return the scores in the order of `texts` on rank 0, and none on others."""
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number].tokens))  # rows of like length together
    longest = max((len(text.tokens) for text in texts), default=1)
    wanted = harness.spec.eval.per_device_eval_batch_size
    at_once = rows_within(wanted, 1, longest * vocabulary_of(engine))
    rounds = list(shares(len(texts), at_once, worker.world_size))
    found = list[tuple[int, Score]]()
    with torch.no_grad():
        for start, stop in rounds[worker.rank :: worker.world_size]:
            numbers = order[start:stop]
            batch = _batch([texts[number] for number in numbers], harness.pad_token_id, worker.device)
            logits = model_logits(engine, batch, "causal-lm")
            found += zip(numbers, _scores(logits, batch.targets), strict=False)  # without texts, there is one row
    return [score for _, score in sorted(pair for pairs in on_rank_0(found) or () for pair in pairs)]


def _batch(texts: Sequence[Text], pad_token_id: int, device: torch.device) -> Batch:
    """Pad the texts, whose last tokens are only targets. Without texts, return one row without targets."""
    rows = [torch.tensor(text.tokens) for text in texts or [Text([pad_token_id, pad_token_id], 0)]]
    inputs = pad_sequence([row[:-1] for row in rows], batch_first=True, padding_value=pad_token_id)
    targets = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORE_INDEX)
    for target, text in zip(targets, texts, strict=False):
        target[: len(text.tokens) - 1 - text.scored] = IGNORE_INDEX
    columns = (targets != IGNORE_INDEX).any(0).nonzero().flatten() if texts else torch.zeros(1, dtype=torch.int64)
    return Batch({"input_ids": inputs.to(device)}, targets[:, columns].to(device), columns.to(device))


def _scores(logits: torch.Tensor, targets: torch.Tensor) -> list[Score]:
    """Return the score of each row. `logits`: (rows, columns, vocabulary); `targets`: (rows, columns) int64."""
    logits = logits.float()
    lost = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    greedy = ((logits.argmax(-1) == targets) | (targets == IGNORE_INDEX)).all(-1)
    return list(zip((-lost.view_as(targets).sum(-1)).tolist(), greedy.tolist(), strict=True))


def load_tasks(rule: LmEval) -> dict[str, Any]:
    """Load the tasks and their data, as `lm_eval.tasks.TaskManager.load` returns them, by the names in the spec."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not all(map(is_task_file, rule.tasks)))
    loaded = {}
    for name in rule.tasks:
        # Relative paths in a task's file are relative to that file.
        folder = contextlib.chdir(os.path.dirname(name)) if is_task_file(name) else contextlib.nullcontext()
        with _naming(name, "loaded"), folder:
            loaded[name] = manager.load([name])
        for task in loaded[name]["tasks"].values():
            if task.OUTPUT_TYPE not in SCORABLE:
                raise DataError(
                    f"{task.task_name} has the output type {task.OUTPUT_TYPE}, which cannot be scored in training. "
                    f"Remove {name} from the tasks, and run lm-eval on the exported model"
                )
            if missing := _missing_column(task):
                raise DataError(missing)
            if rule.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=rule.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
    return loaded


def _missing_column(task: Any) -> str | None:
    """Explain that a task names a column that its data lacks; None if it names none.

    lm-eval takes a name that is no column for a constant text. With such a target, a task of choices scores 0. Names
    in templates need no check: lm-eval rejects those that a document lacks.
    """
    config, columns = task.config, getattr(task, "features", None)
    if columns is None or getattr(config, "use_prompt", None):  # a task in Python; a template of another package
        return None
    names = {}
    if task.OUTPUT_TYPE != "loglikelihood_rolling":
        names["doc_to_text"] = config.doc_to_text
    # With several inputs, or with results that the task computes, the target need not be an answer.
    if not task.multiple_input and not callable(config.process_results):
        names["doc_to_target"] = config.doc_to_target
    for key, name in names.items():
        if not isinstance(name, str) or not name.isidentifier() or name in columns:
            continue
        of_choices = key == "doc_to_target" and task.OUTPUT_TYPE == "multiple_choice"
        if of_choices and any(name in task.doc_to_choice(doc) for doc in task.eval_docs):
            continue
        return (
            f"{task.task_name}: {key} is {name}, but its data has no such column. It has {', '.join(columns)}"
            f"{did_you_mean(name, columns)}. For the constant text, write {{{{ '{name}' }}}}"
        )
    return None


@contextlib.contextmanager
def _naming(task: str, what: str) -> Iterator[None]:
    """Add the task to any error, which lm-eval's own often lack. Raises DataError, StorageOutage."""
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        if is_outage(error, local=False):
            raise StorageOutage(f"{task} cannot be {what} now: {said}. Try again later") from error
        raise DataError(
            f"{task} cannot be {what}: {said}. Correct the task or its data; the log of rank 0 has the traceback"
        ) from error


def _evaluate(rule: LmEval, tasks: dict[str, Any], model: Any) -> dict[str, float]:
    from lm_eval.evaluator import evaluate

    metrics = dict[str, float]()
    for name, loaded in tasks.items():
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)  # each evaluation draws the same examples
        with _naming(name, "scored"):
            # Not `simple_evaluate`: it seeds the random generators of the process.
            results = evaluate(
                model,
                loaded,
                limit=rule.limit,
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=rule.apply_chat_template,
                fewshot_as_multiturn=rule.apply_chat_template,
            )["results"]
        means = [one for one in loaded["groups"] if _metrics(one, results.get(one, {}))]
        # A group's mean stands for its tasks.
        covered = {task.task_name for one in means for task in loaded["groups"][one].get_all_tasks()}
        for one in [*means, *(one for one in loaded["tasks"] if one not in covered)]:
            metrics |= _metrics(one, results[one])
    return metrics


def _metrics(task: str, results: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a task's results, whose keys are `metric,filter`; standard errors are left out."""
    found = {}
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if filtered and isinstance(value, int | float) and not metric.endswith("_stderr"):
            found[harness_name(task, metric, filtered)] = float(value)
    return found


def _language_model(
    tokenizer: Any, config: Any, longest: int, prompt: int, score: Callable[[list[Text]], list[Score]]
) -> Any:
    """Return lm-eval's Hugging Face model with `score` in place of its forward pass; the rest is lm-eval's.

    Args:
        longest: most tokens of a text.
        prompt: tokens of a trained prompt, which take positions of the texts.
    """
    from lm_eval.models.huggingface import HFLM

    class InTraining(HFLM):  # type: ignore[misc]
        def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> list[Score]:
            texts = []
            for _, context, continuation in requests:
                tokens = (context + continuation)[-(self.max_length + 1) :]
                texts.append(Text(tokens, min(len(continuation), len(tokens) - 1)))
            return score(texts)

    stand_in = SimpleNamespace(config=config, device=torch.device("cpu"))  # HFLM would change a module
    model = InTraining(stand_in, "causal", tokenizer=tokenizer, batch_size=_ALL_AT_ONCE)
    model._max_length = min(model.max_length, longest) - prompt
    return model
