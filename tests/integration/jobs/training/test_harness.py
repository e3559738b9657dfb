"""Tasks of lm-eval are scored in training, on two workers, as lm-eval scores them with the whole model."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import transformers

from cluster.errors import DataError, SpecError, StorageOutage
from jobs.preflight.harness_tasks import check_harness_tasks
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.spec.evaluation import LmEval
from jobs.training.loop.evaluation import _in_order
from jobs.training.loop.harness import _naming, load_tasks
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of lm-eval and its packages
COLOURS = """task: colours
dataset_path: json
dataset_kwargs: {data_files: colours.jsonl}
test_split: train
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXTS = """task: texts
dataset_path: json
dataset_kwargs: {data_files: texts.jsonl}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
RULE = {"limit": 9, "num_fewshot": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("harness")
    words = ["red", "green", "blue", "black", "white"]
    questions = [
        {"question": f"Thing {number} is", "choices": [" " + word for word in words], "answer": number * 2 % 5}
        for number in range(12)
    ]
    texts = [{"text": "a text of some words that goes on " * (2 * number + 1)} for number in range(5)]
    for name, task, rows in (("colours", COLOURS, questions), ("texts", TEXTS, texts)):
        (folder / f"{name}.yaml").write_text(task)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lost.yaml").write_text(COLOURS.replace("colours", "lost"))
    return folder


@pytest.fixture(scope="module")
def cases(folder: pathlib.Path) -> dict[str, Case]:
    """One run with rotary positions; some with few learned ones, so that texts are cut; one whose task has no data."""
    text = tiny.write_text(folder / "train.jsonl", 40)

    def case(name: str, kind: str, *tasks: str, **changes: Any) -> Case:
        rule = {"tasks": [str(folder / f"{task}.yaml") for task in tasks], **RULE}
        spec = tiny.spec_of(
            folder, tiny.save_model(folder / kind, kind), text, train__max_steps=2, train__learning_rate=1e-2,
            train__global_batch_size=4, train__per_device_train_batch_size=2, eval={"lm_eval": rule, "eval_steps": 2},
            **changes,
        )  # fmt: skip
        return case_of(folder, name, spec)

    found = [
        case("rotary", "llama", "colours", "texts"), case("learned", "gpt2", "colours", "texts"),
        case("adapter", "gpt2", "colours", "texts", method="lora"),
        case("prompt", "gpt2", "colours", "texts", method="prompt"),
    ]  # fmt: skip
    lost = Case(**{**vars(case("lost", "llama", "lost")), "may_fail": True})
    run_gang(folder, 2, [*found, lost], with_export=frozenset({"rotary", "learned"}))
    return {one.name: one for one in [*found, lost]}


def of_lm_eval(folder: pathlib.Path, model: str) -> dict[str, float]:
    """What lm-eval itself says of a whole model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    whole = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    with contextlib.chdir(folder):
        found: Any = simple_evaluate(
            HFLM(pretrained=whole, tokenizer=tokenizer, batch_size=3),
            tasks=["colours.yaml", "texts.yaml"],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            **RULE,
        )
    return {
        f"eval_lm_eval_{task}_{key.removesuffix(',none')}": value
        for task, values in found["results"].items()
        for key, value in values.items()
        if key.endswith(",none") and "stderr" not in key
    }


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_before_and_after_training_the_metrics_are_those_of_lm_eval(
    cases: dict[str, Case], folder: pathlib.Path, name: str
) -> None:
    case = cases[name]
    first = before(case)
    after = {key: case.last(key) for key in first}
    assert len(after) == 4
    assert after["eval_lm_eval_texts_bits_per_byte"] != first["eval_lm_eval_texts_bits_per_byte"]
    assert first == pytest.approx(of_lm_eval(folder, case.spec.model.path), rel=1e-5)
    assert after == pytest.approx(of_lm_eval(folder, case.paths.model), rel=1e-5)


def before(case: Case) -> dict[str, float]:
    return read_commit(case.paths, committed_steps(case.paths)[-1]).metrics_before


def test_an_adapter_begins_as_its_base_and_a_prompt_takes_positions_of_the_texts(cases: dict[str, Case]) -> None:
    base = before(cases["learned"])
    assert before(cases["adapter"]) == pytest.approx(base, rel=1e-5)
    assert before(cases["prompt"]).keys() == base.keys() and before(cases["prompt"]) != base


def test_a_task_without_data_ends_the_run_on_all_ranks_with_its_name(cases: dict[str, Case]) -> None:
    assert "eval.lm_eval" in cases["lost"].failure
    assert "lost.jsonl" in cases["lost"].failure


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("colours", "doc_to_target: answer", "doc_to_target: anser", "doc_to_target is anser, .*did you mean answer"),
        ("colours", 'doc_to_text: "{{question}}"', "doc_to_text: qestion", "doc_to_text is qestion, but .* question, "),
        ("texts", 'doc_to_target: "{{text}}"', "doc_to_target: txt", "doc_to_target is txt, but its data has no such"),
        ("colours", "doc_to_target: answer", 'doc_to_target: "{{anser}}"', "'anser' is undefined"),
        ("colours", "doc_to_target: answer", "doc_to_target: 0", None),
        ("colours", "doc_to_target: answer", "doc_to_target: other", None),
        ("colours", "doc_to_target: answer", "doc_to_target: \"{{ 'constant' }}\"", None),
        ("texts", 'doc_to_text: ""', "doc_to_text: unused", None),
    ],
)
def test_a_task_that_names_a_column_which_its_data_lacks_is_refused_when_it_is_loaded(
    folder: pathlib.Path, name: str, old: str, new: str, said: str | None
) -> None:
    content = {"colours": COLOURS, "texts": TEXTS}[name]
    assert old in content
    content = content.replace(old, new)
    if "other" in new:  # a constant answer, which all documents have among their choices
        content = content.replace('doc_to_choice: "{{choices}}"', "doc_to_choice: [this, other]")
    (folder / "changed.yaml").write_text(content)
    rule = LmEval(tasks=(str(folder / "changed.yaml"),))
    if said is None:
        assert load_tasks(rule)
    else:
        with pytest.raises(DataError, match=said):
            load_tasks(rule)


def test_tasks_that_cannot_be_scored_are_refused_before_a_run(
    cases: dict[str, Case], folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    # Reading the files of all tasks that lm-eval comes with takes half a minute on a busy machine.
    few = functools.partial(lm_eval.tasks.TaskManager, include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)
    spec = cases["rotary"].spec
    writes = folder / "writes.yaml"
    writes.write_text(COLOURS.replace("multiple_choice", "generate_until").replace("colours", "writes"))
    (folder / "base").write_text(COLOURS.replace("multiple_choice", "generate_until"))  # as lm-eval's own: no ending
    (folder / "inherits.yaml").write_text("include: base\ntask: inherits\ntag: all_kinds")
    (folder / "group.yaml").write_text("group: several\ntask: [texts, inherits]")
    bad = {"broken": "task: [", "other": "name: colours"}
    for name, content in bad.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    files = [folder / "colours.yaml", writes, *(tmp_path / f"{name}.yaml" for name in ("nothing", *bad))]
    tasks = ("colour", "writes", "texts", "several", "all_kinds", *map(str, files))
    given = spec.eval.model_copy(update={"lm_eval": LmEval(tasks=tasks)})
    with pytest.raises(SpecError) as caught:
        check_harness_tasks(spec.model_copy(update={"eval": given}))
    said = str(caught.value)
    assert "no task 'colour' (`lm-eval ls tasks` lists them); did you mean colours?" in said
    assert "writes: writes has the output type generate_until" in said
    assert "several: inherits has the output type generate_until" in said
    assert "all_kinds: inherits has the output type generate_until" in said
    assert "writes.yaml has the output type generate_until" in said
    assert "nothing.yaml is not a file" in said
    assert "broken.yaml cannot be read as a task of lm-eval" in said
    assert "other.yaml describes no task of lm-eval" in said
    assert "'texts'" not in said
    assert "colours.yaml" not in said


def test_a_hub_that_does_not_answer_is_an_outage_and_no_mistake_of_the_spec() -> None:
    said = r"arc cannot be loaded now: ConnectionError: no hub\. Try again later"
    with pytest.raises(StorageOutage, match=said), _naming("arc", "loaded"):
        raise ConnectionError("no hub")
    with pytest.raises(DataError, match="arc cannot be loaded: KeyError"), _naming("arc", "loaded"):
        raise KeyError("column")


def test_rows_without_a_target_give_no_predictions() -> None:
    none = np.zeros((0, 3)), np.zeros((0, 3))
    assert _in_order([[none], [none]]) is None
    some = _in_order([[(np.ones((1, 2)), np.ones((1, 2)))], [none]])
    assert some is not None and some.predictions.shape == (1, 2)
