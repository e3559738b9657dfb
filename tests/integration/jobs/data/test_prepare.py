"""From source files to shards, with real tokenizers (built here, so nothing is downloaded) and a real local Ray."""

import csv
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cluster.errors import DataError
from jobs.data.preparation.fingerprint import fingerprint
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import IGNORE_INDEX, Prepared
from jobs.data.sources.bad_records import Reason
from jobs.data.sources.dialogues import ChatSample
from jobs.data.sources.formats import ClassSample, TextSample
from jobs.data.sources.tokenize import tokenise
from jobs.model_files.tokenizer import TokenizerFiles, load_tokenizer
from jobs.spec.finetune import Spec
from tests.support.chats import CHATML

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = CHATML.replace(
    "message['content'] +", "(message['content'] if loop.last or message['role'] != 'assistant' else '...') +"
)
WORDS = (
    "a",
    "film",
    "that",
    "moves",
    "dull",
    "bright",
    "story",
    "of",
    "love",
    "war",
    "never",
    "quite",
    "lands",
    "warm",
)


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(4, 30)))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE tokenizer with ChatML, whose padding token is its end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    draw = random.Random(0)
    tokenizer.train_from_iterator([sentence(draw) for _ in range(200)], trainer)
    folder = str(tmp_path_factory.mktemp("model"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    ).save_pretrained(folder)
    return folder


def with_template(model_dir: str, folder: Path, template: str | None) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def reviews(path: Path, rows: int, seed: int = 1) -> str:
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "source"])
        for _ in range(rows):
            writer.writerow([sentence(draw), draw.randint(0, 1), "test"])
    return str(path)


def dialogues(path: Path, rows: int) -> str:
    draw = random.Random(2)
    with path.open("w") as file:
        for number in range(rows):
            turns: list[dict[str, str]] = []
            for _ in range(draw.randint(1, 3)):
                turns += [{"role": "user", "content": sentence(draw)}]
                turns += [{"role": "assistant", "content": f"{number} {sentence(draw)}"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return str(path)


def spec_of(storage: Path, train: str, data_format: str = "classification", **data: Any) -> Spec:
    classify = data_format == "classification"
    model = {"path": "m", "task": "sequence-classification" if classify else "causal-lm"}
    return Spec.model_validate(
        {
            "model": model | ({"num_labels": 2} if classify else {}),
            "data": {"train": train, "format": data_format, "seq_len": 128} | data,
            "storage_path": str(storage),
        }
    )


def quiet(line: str) -> None:
    """Nobody listens."""


def digests(root: str) -> dict[str, str]:
    files = [path for path in Path(root).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def source_root(prepared: Prepared, split: str, number: int = 0) -> str:
    """Where the source of a split is prepared."""
    folder = prepared.manifest.splits[split][number].folder
    assert folder is not None
    return str(Path(prepared.root).parent / folder.partition("/")[0])


def rows_of(prepared: Prepared, split: str) -> list[dict[str, Any]]:
    opened = prepared.split(split)
    rows: list[dict[str, Any]] = opened.read_rows(np.arange(len(opened))).to_pylist()
    return rows


@pytest.mark.parametrize("data_format", ["classification", "chat", "text"])
def test_both_engines_write_the_same_bytes(local_ray: None, tmp_path: Path, model_dir: str, data_format: str) -> None:
    for number in range(3):
        if data_format == "chat":
            dialogues(tmp_path / f"part-{number}.jsonl", 200)
        else:
            reviews(tmp_path / f"part-{number}.csv", 700, seed=number)
    train = f"{tmp_path}/part-*.{'jsonl' if data_format == 'chat' else 'csv'}"
    roots = []
    said: list[str] = []
    for engine in ("plain", "ray"):
        spec = spec_of(tmp_path / engine, train, data_format, eval_fraction=0.1)
        roots.append(prepare(spec, model_dir, engine=engine, say=said.append).root)
    assert not [line for line in said if "in the driver" in line]
    assert digests(roots[0]) == digests(roots[1])
    sources = [source_root(Prepared.open(root), "train") for root in roots]
    assert digests(sources[0]) == digests(sources[1])
    assert set(digests(sources[0])) == {
        "manifest.json",
        "bad_rows.jsonl",
        *(f"{split}/{name}" for split in ("rows", "held_out") for name in ("shard-00000.arrow", "index.arrow")),
    }


def test_every_sample_is_in_one_row_once_with_its_own_label(tmp_path: Path, model_dir: str) -> None:
    train = reviews(tmp_path / "r.csv", 300)
    prepared = prepare(spec_of(tmp_path / "out", train), model_dir, engine="plain", say=quiet)
    tokenizer = load_tokenizer(model_dir)
    with open(train, newline="") as file:
        source = list(csv.DictReader(file))
    rows = rows_of(prepared, "train")
    assert not prepared.has("eval")
    order = [row["sample_ids"][0] for row in rows]
    assert sorted(order) == list(range(300)) and order != sorted(order)
    for row in rows:
        (sample,) = row["sample_ids"]
        assert tokenizer.decode(row["input_ids"]) == source[sample]["text"]
        assert row["labels"] == [int(source[sample]["label"])] and row["lengths"] == [len(row["input_ids"])]


def test_packed_rows_are_full_and_hold_each_sample_once(tmp_path: Path, model_dir: str) -> None:
    train = reviews(tmp_path / "r.csv", 1000)
    prepared = prepare(spec_of(tmp_path / "out", train, "text"), model_dir, engine="plain", say=quiet)
    rows = rows_of(prepared, "train")
    assert sorted(sample for row in rows for sample in row["sample_ids"]) == list(range(1000))
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert tokens / (128 * len(rows)) > 0.95 and max(len(row["input_ids"]) for row in rows) <= 128
    for row in rows:
        starts = np.cumsum([0, *row["lengths"]])
        assert starts[-1] == len(row["input_ids"]) == len(row["labels"])
        first = set(starts[:-1].tolist())
        for place, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
            assert label == (IGNORE_INDEX if place in first else token)


def test_text_ends_with_eos_and_long_text_is_cut_without_loss(model_dir: str) -> None:
    tokenizer = load_tokenizer(model_dir)
    eos = tokenizer.eos_token_id
    texts = ["a film", "a film<|im_end|>", " ".join(WORDS * 12), "war"]
    results = tokenise([TextSample(text) for text in texts], tokenizer, 16)
    for text, result in zip(texts, results, strict=True):
        assert isinstance(result, list)
        joined = np.concatenate([row["input_ids"] for row in result]).tolist()
        assert joined == [*tokenizer(text.removesuffix("<|im_end|>"))["input_ids"], eos]
        assert all(2 <= len(row["input_ids"]) <= 16 and row["labels"][0] == IGNORE_INDEX for row in result)
        assert all(np.array_equal(row["labels"][1:], row["input_ids"][1:]) for row in result)


def test_cut_leaves_no_piece_without_a_target(model_dir: str) -> None:
    tokenizer = load_tokenizer(model_dir)
    for length in range(2, 40):
        (result,) = tokenise([TextSample("!" * (length - 1))], tokenizer, 8)
        sizes = [len(row["input_ids"]) for row in result] if isinstance(result, list) else []
        assert min(sizes) >= 2 and max(sizes) <= 8
    (lonely,) = tokenise([TextSample("<|im_end|>")], tokenizer, 8)
    assert isinstance(lonely, Reason)


def test_class_text_is_truncated(model_dir: str) -> None:
    (result,) = tokenise([ClassSample(" ".join(WORDS * 12), 1)], load_tokenizer(model_dir), 16)
    assert isinstance(result, list) and len(result[0]["input_ids"]) == 16 and result[0]["labels"].tolist() == [1]


DIALOGUES = [
    [("user", "is it dull"), ("assistant", "never")],
    [("system", "be warm"), ("user", "hi"), ("assistant", " bright\n"), ("user", "and"), ("assistant", "story é ☃")],
    [("user", "a"), ("assistant", "<|im_end|> is a token")],
    [("assistant", "welcome"), ("user", "hi"), ("assistant", "love")],
    [("user", "a"), ("assistant", ""), ("assistant", "again")],
]


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("turns", DIALOGUES)
def test_targets_are_the_assistants_tokens_with_their_end(
    tmp_path: Path, model_dir: str, template: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = load_tokenizer(with_template(model_dir, tmp_path / "m", template))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (result,) = tokenise([ChatSample(tuple(turns))], tokenizer, 512)
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    expected: list[tuple[str, bool]] = []
    if template == CHATML and turns[0][0] != "system":
        expected += [("<|im_start|>system\nYou help.<|im_end|>\n", False)]
    for role, content in turns:
        mine = role == "assistant"
        expected += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", mine), ("\n", False)]
    assert isinstance(result, list)
    assert result[0]["input_ids"].tolist() == ids
    assert result[0]["labels"].tolist() == targets(tokenizer, expected, ids)


def targets(tokenizer: Any, parts: list[tuple[str, bool]], ids: list[int]) -> list[int]:
    """Labels by hand: the parts tokenised one by one (special tokens keep them apart)."""
    pieces = [(tokenizer(text, add_special_tokens=False)["input_ids"], mine) for text, mine in parts]
    assert [token for tokens, _ in pieces for token in tokens] == ids
    return [token if mine else IGNORE_INDEX for tokens, mine in pieces for token in tokens]


def test_chat_that_is_cut_keeps_its_targets_or_is_set_aside(model_dir: str) -> None:
    tokenizer = load_tokenizer(model_dir)
    talk = ChatSample((("user", "hi"), ("assistant", " ".join(WORDS * 4))))
    whole, cut, short = (tokenise([talk], tokenizer, seq_len)[0] for seq_len in (512, 64, 16))
    assert isinstance(whole, list) and isinstance(cut, list)
    assert cut[0]["labels"].tolist() == whole[0]["labels"].tolist()[:64]
    assert isinstance(short, Reason) and short.text.startswith(
        "no token of the assistant is left after data.seq_len (16)"
    )


def test_template_that_rewrites_earlier_turns_is_told(tmp_path: Path, model_dir: str) -> None:
    tokenizer = load_tokenizer(with_template(model_dir, tmp_path / "m", FORGETFUL))
    one, two = tokenise([ChatSample(tuple(DIALOGUES[0])), ChatSample(tuple(DIALOGUES[1]))], tokenizer, 512)
    assert isinstance(one, list)
    assert two == Reason("the chat template renders turn 3 differently when others follow it")


def test_template_that_refuses_a_dialogue_makes_a_bad_row(tmp_path: Path, model_dir: str) -> None:
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    tokenizer = load_tokenizer(with_template(model_dir, tmp_path / "m", picky))
    (result,) = tokenise([ChatSample(tuple(DIALOGUES[1]))], tokenizer, 512)
    assert result == Reason("the chat template refuses it: no system")


def test_chat_data_needs_a_chat_template(tmp_path: Path, model_dir: str) -> None:
    bare = with_template(model_dir, tmp_path / "m", None)
    spec = spec_of(tmp_path / "out", dialogues(tmp_path / "d.jsonl", 5), "chat")
    with pytest.raises(DataError, match="no chat template"):
        prepare(spec, bare, engine="plain", say=quiet)
    given = spec.with_value("model.chat_template", CHATML)
    made = [prepare(given, bare, engine="plain", say=quiet), prepare(spec, model_dir, engine="plain", say=quiet)]
    (found,), (own,) = (one.manifest.splits["train"] for one in made)
    assert (found.tokens, found.targets) == (own.tokens, own.targets)
    other = spec.with_value("model.chat_template", FORGETFUL)
    assert len({fingerprint(one, model_dir)[0] for one in (given, other)}) == 2


def test_second_run_reuses_what_the_first_prepared(
    tmp_path: Path, model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the tokenizer, whose library imports torch."""
    said: list[str] = []
    spec = spec_of(tmp_path / "out", reviews(tmp_path / "r.csv", 100))
    first = prepare(spec, model_dir, engine="plain", say=said.append)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "r.csv", moved / "r.csv")
    again = spec_of(tmp_path / "out", (moved / "r.csv").as_posix())
    monkeypatch.delattr(TokenizerFiles, "load")
    second = prepare(again.model_copy(update={"seed": 1}), model_dir, engine="plain", say=said.append)
    assert second.root == first.root
    assert said[-1] == f"data is prepared already: {first.root}"


def test_unfinished_directory_is_prepared_again(tmp_path: Path, model_dir: str) -> None:
    spec = spec_of(tmp_path / "out", reviews(tmp_path / "r.csv", 100))
    root = source_root(prepare(spec, model_dir, engine="plain", say=quiet), "train")
    whole = digests(root)
    (Path(root) / "manifest.json").unlink()
    (Path(root) / "rows" / "shard-00000.arrow").write_bytes(b"half")
    assert source_root(prepare(spec, model_dir, engine="plain", say=quiet), "train") == root
    assert digests(root) == whole


def test_fingerprint_follows_content_and_spec(tmp_path: Path, model_dir: str) -> None:
    train = reviews(tmp_path / "r.csv", 10)
    spec = spec_of(tmp_path / "out", train)
    seen = {fingerprint(spec, model_dir)[0], fingerprint(spec_of(tmp_path / "out", train, seq_len=64), model_dir)[0]}
    seen.add(fingerprint(spec, with_template(model_dir, tmp_path / "m", MARKED))[0])
    reviews(tmp_path / "r.csv", 11)
    seen.add(fingerprint(spec, model_dir)[0])
    assert len(seen) == 4


def test_bad_rows_are_listed_and_left_out(tmp_path: Path, model_dir: str) -> None:
    train = reviews(tmp_path / "r.csv", 299)
    with open(train, "a") as file:
        file.write("only one field\n")
    prepared = prepare(spec_of(tmp_path / "out", train), model_dir, engine="plain", say=quiet)
    assert prepared.manifest.bad_rows == 1 and prepared.manifest.splits["train"][0].samples == 299
    (line,) = (Path(source_root(prepared, "train")) / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line) == {"file": train, "line": 301, "reason": "1 fields, but the header has 3"}


def test_over_one_percent_of_bad_rows_is_refused(tmp_path: Path, model_dir: str) -> None:
    train = reviews(tmp_path / "r.csv", 100)
    with open(train, "a") as file:
        file.writelines(["bad\n"] * 12)
    with pytest.raises(DataError, match=r"12 of 112 records \(10.7%\) of data.train") as caught:
        prepare(spec_of(tmp_path / "out", train), model_dir, engine="plain", say=quiet)
    assert str(caught.value).count("r.csv:") == 10
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("engine", ["plain", "ray"])
def test_one_label_that_is_no_class_is_refused(local_ray: None, tmp_path: Path, model_dir: str, engine: Any) -> None:
    train = reviews(tmp_path / "r.csv", 500)
    with open(train, "a") as file:
        file.write("fine,2,x\n")
    with pytest.raises(DataError, match=r"r\.csv:502: label '2' is outside 0 to 1"):
        prepare(spec_of(tmp_path / "out", train), model_dir, engine=engine, say=quiet)


@pytest.mark.parametrize("engine", ["plain", "ray"])
def test_damaged_file_is_refused_at_once(local_ray: None, tmp_path: Path, model_dir: str, engine: Any) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    spec = spec_of(tmp_path / "out", f"{tmp_path}/x.jsonl.gz", "text")
    with pytest.raises(DataError, match=r"x\.jsonl\.gz"):
        prepare(spec, model_dir, engine=engine, say=quiet)


def test_equal_samples_stay_on_one_side_of_the_split(tmp_path: Path, model_dir: str) -> None:
    draw = random.Random(3)
    texts = [f"{number} {sentence(draw)}" for number in range(100)] * 3
    with (tmp_path / "r.jsonl").open("w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"text": text, "label": number % 2}) + "\n")
    spec = spec_of(tmp_path / "out", f"{tmp_path}/r.jsonl", eval_fraction=0.2)
    prepared = prepare(spec, model_dir, engine="plain", say=quiet)
    train, held = ([row["sample_ids"][0] for row in rows_of(prepared, name)] for name in ("train", "eval"))
    assert sorted(train + held) == list(range(300))
    assert not {texts[n] for n in train} & {texts[n] for n in held}
    assert 30 <= len(held) <= 90


def test_eval_file_becomes_the_eval_split(tmp_path: Path, model_dir: str) -> None:
    train, held = reviews(tmp_path / "t.csv", 60), reviews(tmp_path / "e.csv", 20, seed=9)
    prepared = prepare(spec_of(tmp_path / "out", train, eval=held), model_dir, engine="plain", say=quiet)
    assert {name: split.rows for name, (split,) in prepared.manifest.splits.items()} == {"train": 60, "eval": 20}


@pytest.mark.parametrize(("data", "message"), [({"eval_fraction": 0.0001}, "leaves none for eval"), ({}, "no row of")])
def test_empty_split_is_refused(tmp_path: Path, model_dir: str, data: dict[str, Any], message: str) -> None:
    train = reviews(tmp_path / "r.csv", 20 if data else 0)
    with pytest.raises(DataError, match=message):
        prepare(spec_of(tmp_path / "out", train, **data), model_dir, engine="plain", say=quiet)
