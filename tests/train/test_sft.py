"""Supervised fine-tuning: its rows, its loss against an independent one, its runs."""

import dataclasses
import json
import signal

import jax
import numpy as np
import optax
import pytest
from models import chats
from models.test_chat import tokenizer_of

from polopt.compose import objective
from polopt.errors import PoloptError, UsageError
from polopt.models import DecoderConfig, LanguageModel, base, huggingface
from polopt.models.score import score
from polopt.tasks import load_task
from polopt.train.config import read_config
from polopt.train.demonstrations import Demonstration, demonstrations, task_to_learn
from polopt.train.policy import Policy, instructed, load_policy
from polopt.train.sft import Batches, packed, sft, supervised, widths
from polopt.train.sft_config import SftConfig, read_run
from train import toy

TOKENIZER = base.load()[2]
CHATTING = tokenizer_of("smollm2")
MODEL = LanguageModel(
    DecoderConfig(
        vocab_size=544,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=16,
        max_length=160,
    )
)
ROWS = [
    {"prompt": f"What is {i} + {i * i}?", "completion": "It is " + "very " * (i % 4) + str(i)}
    for i in range(10)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder, **changes):
    settings = {"batch": 4, "epochs": 1, "learning_rate": 3e-2, "warmup": 1, "plot": False}
    return SftConfig(**{**settings, "run": str(folder), **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of a tiny model that chats, and a file of rows."""
    folder = tmp_path_factory.mktemp("sft")
    params = MODEL.init(jax.random.key(0))
    huggingface.save(folder / "model", MODEL, params, CHATTING)
    return {"model": str(folder / "model"), "data": write(folder / "rows.jsonl", ROWS)}


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """An undisturbed run of two epochs."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    settings = config(folder, epochs=2, system="Be brief.", **world)
    return settings, sft(settings)


# ---------------------------------------------------------------- rows


def of_task(tokenizer, **changes):
    settings = SftConfig(**{"task": "chain_sum", "problems": 40, "held_out": 64, **changes})
    task = task_to_learn(settings)
    policy = Policy(model=MODEL, params=None, tokenizer=tokenizer)
    tokenizer = instructed(policy, settings.system, task.instruction).tokenizer
    return task, tokenizer, demonstrations(settings, task, tokenizer)


def read(row, tokenizer):
    """(what is put to the model, what it learns to write), spelled."""
    first = row.learned.index(True)
    assert all(row.learned[first : first + sum(row.learned)])  # one piece
    learned = row.tokens[first : first + sum(row.learned)]
    return tokenizer.decode(row.tokens[:first], control=True), tokenizer.decode(
        learned, control=True
    )


@pytest.mark.parametrize("solution", [None, "worked", "answer"])
def test_a_tasks_solutions_are_learned_as_the_task_is_asked(solution):
    task, tokenizer, rows = of_task(TOKENIZER, solution=solution)
    outside = {problem.prompt for problem in load_task(held_out=64).held_out}
    shown = set()
    for i, row in enumerate(rows):
        problem = task.train(i)
        asked, said = read(row, tokenizer)
        assert asked == f"<bos>{problem.prompt}\n"
        assert row.tokens[: row.learned.index(True)] == tokenizer.prompt(problem.prompt)
        text = said.removesuffix("<eos>")
        assert said == f"{text}<eos>"
        assert task.reward(text, problem) == {"score": 1.0}
        assert (text == f"<answer>{problem.answer}</answer>") == (solution == "answer")
        shown.add(problem.prompt)
    assert not shown & outside


def test_models_with_a_template_are_told_the_form_and_learn_to_end_their_turn():
    task, tokenizer, rows = of_task(CHATTING, solution="answer")
    problem = task.train(0)
    asked, said = read(rows[0], tokenizer)
    assert asked == (
        f"<|im_start|>system\n{task.instruction}<|im_end|>\n"
        f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert said == f"<answer>{problem.answer}</answer><|im_end|>"
    assert "<answer>" in task.instruction


def test_the_system_message_is_the_users_where_there_is_one():
    _, tokenizer, rows = of_task(CHATTING, system="Be brief.")
    assert read(rows[0], tokenizer)[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    _, tokenizer, rows = of_task(CHATTING, system="")  # then the template has its own say
    assert "You are a helpful AI assistant named SmolLM" in read(rows[0], tokenizer)[0]
    gemma = tokenizer_of("gemma")  # refuses system messages
    _, tokenizer, rows = of_task(gemma, system="Be brief.")
    assert "<start_of_turn>user\nBe brief.\n\n" in read(rows[0], tokenizer)[0]
    with pytest.raises(UsageError, match="system: the model has no chat template"):
        of_task(TOKENIZER, system="Be brief.")


def test_all_turns_of_an_assistant_are_learned(tmp_path):
    said = chats.CONVERSATIONS["trained"]
    settings = SftConfig(data=write(tmp_path / "c.jsonl", [{"messages": said}]))
    assert task_to_learn(settings) is None
    (row,) = demonstrations(settings, None, CHATTING)
    assert (row.tokens, row.learned) == CHATTING.chat_turns(said)
    learned = [t for t, mine in zip(row.tokens, row.learned, strict=True) if mine]
    assert CHATTING.decode(learned, control=True) == "1<|im_end|>3<|im_end|>43<|im_end|>"
    told = dataclasses.replace(CHATTING, system="Add.")
    (row,) = demonstrations(settings, None, told)
    assert row.tokens == CHATTING.chat([{"role": "system", "content": "Add."}, *said])


def test_a_file_of_answers_is_a_task_with_its_own_held_out_prompts(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(60)]
    settings = SftConfig(data=write(tmp_path / "a.jsonl", rows))
    task = task_to_learn(settings)
    held = {problem.prompt for problem in load_task(data=settings.data).held_out}
    shown = {read(row, TOKENIZER) for row in demonstrations(settings, task, TOKENIZER)}
    assert held
    assert shown == {
        (f"<bos>{i}?\n", f"<answer>{i}</answer><eos>") for i in range(60) if f"{i}?" not in held
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ("[1]", "rows.jsonl:2: a JSON list, not an object"),
        ('{"text": "x"}', "rows.jsonl:2: no field 'prompt'; it has text: give messages, or"),
        ('{"prompt": "x"}', "rows.jsonl:2: no field 'completion'"),
        ('{"prompt": "x", "completion": " "}', "rows.jsonl:2: 'completion' must be text"),
        ('{"prompt": "x", "completion": "\\ud800"}', "rows.jsonl:2: 'completion' is not valid"),
        ('{"messages": []}', "rows.jsonl:2: 'messages' must be a list"),
        ('{"messages": [{"content": "x"}]}', "rows.jsonl:2: message 0 is no object with a role"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "rows.jsonl:2: nothing to learn"),
        ('{"messages": [{"role": "user", "content": 3}]}', "rows.jsonl:2: the chat template"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(PoloptError, match=words) as error:
        demonstrations(SftConfig(data=str(path)), None, CHATTING)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give rows to learn from"),
        ({"task": "gcd", "solution": "worked"}, "gcd has no solutions .*'worked'; it has answer"),
        ({"task": "calculator"}, "calculator has no solutions"),
        ({"data": "nothing.jsonl"}, "nothing.jsonl: cannot read"),
    ],
)
def test_what_cannot_be_learned_is_refused(settings, words):
    asked = SftConfig(held_out=8, **settings)
    with pytest.raises(PoloptError, match=words):
        demonstrations(asked, task_to_learn(asked), TOKENIZER)


def test_a_line_ends_where_a_line_feed_is(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a\u2028b", "completion": "c\x85d"}\n', encoding="utf-8")
    (row,) = demonstrations(SftConfig(data=str(path)), None, TOKENIZER)
    assert read(row, TOKENIZER) == ("<bos>a\u2028b\n", "c\x85d<eos>")


def test_conversations_need_a_template(tmp_path):
    data = write(tmp_path / "c.jsonl", [{"messages": chats.CONVERSATIONS["answered"]}])
    with pytest.raises(PoloptError, match=r"c.jsonl:1: .*chat template"):
        demonstrations(SftConfig(data=data), None, TOKENIZER)


# ---------------------------------------------------------------- batches


def made_rows(lengths):
    return [Demonstration([7] * n, [False] * (n - 2) + [True] * 2) for n in lengths]


def test_an_epoch_shows_every_row_once_in_few_shapes():
    lengths = np.random.default_rng(0).integers(5, 90, 77)
    batches = Batches(made_rows(lengths), SftConfig(batch=8, data="x"))
    for epoch in range(2):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        made = [batches.at(step) for step in steps]
        shown = np.concatenate([batch.length[batch.length > 0] for batch in made])
        assert sorted(shown) == sorted(lengths)
        assert {batch.tokens.shape for batch in made} <= {(8, w) for w in batches.widths}
    assert len(batches.widths) <= 3
    orders = [[tuple(batches.at(s).length) for s in range(e * 10, e * 10 + 10)] for e in (0, 1)]
    assert orders[0] != orders[1]
    room = sum(batch.tokens.size for batch in made)
    assert shown.sum() / room > 0.6  # in one width for all: 0.5


def test_widths_hold_all_rows():
    assert widths(np.array([3])).tolist() == [8]
    assert widths(np.arange(1, 100))[-1] >= 99


# ---------------------------------------------------------------- the loss, and runs


def test_the_loss_is_the_mean_of_what_is_learned(world):
    """Against optax's cross-entropy on whole logits, with its gradient."""
    settings = SftConfig(**world)
    rows = demonstrations(settings, None, CHATTING)[:3]
    params = MODEL.init(jax.random.key(1))
    batch = packed(rows, 4, 112)

    def expected(params):
        logits = MODEL.logits(params, MODEL.hidden(params, batch.tokens))[:, :-1]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:])
        mask = np.zeros((4, 112))
        for n, row in enumerate(rows):
            mask[n, : len(row.tokens)] = row.learned
        return (nll * mask[:, 1:]).sum() / mask.sum()

    def ours(params):
        return objective(supervised())(score({"policy": (MODEL, params)}, batch), batch)[0]

    value, gradient = jax.jit(jax.value_and_grad(ours))(params)
    right, wanted = jax.jit(jax.value_and_grad(expected))(params)
    assert float(value) == pytest.approx(float(right), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["supervised/loss"] for line in lines]


def test_a_run_learns_its_rows_and_is_a_model_afterwards(straight):
    settings, summary = straight
    found = losses(settings.folder)
    assert len(found) == summary.steps == 6
    assert found[0] == pytest.approx(np.log(544), abs=0.2)  # as good as uniform
    assert found[-1] < 0.9 * found[0]
    policy = load_policy(settings.run)
    assert policy.tokenizer.system == "Be brief."  # what trains it further asks in the same way
    assert instructed(policy, None, form="Think.") is policy
    assert instructed(policy, "", form="Think.").tokenizer.system == ""
    start = load_policy(settings.model)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(policy.params), jax.tree.leaves(start.params), strict=True)
    )
    recorded = read_run(settings.folder)
    assert isinstance(recorded, SftConfig)
    longest = max(len(CHATTING.encode(row["completion"])) for row in ROWS)
    assert recorded.max_new_tokens == longest + 1  # and the end
    with pytest.raises(UsageError, match="'command'"):
        read_config(settings.folder)


class Interrupt:
    """A sink that asks the run to stop in a step."""

    def __init__(self, step):
        self._step = step

    def step(self, step, metrics):
        if step == self._step:
            signal.raise_signal(signal.SIGTERM)

    def __getattr__(self, event):
        return lambda *args: None


@pytest.mark.slow
def test_a_stopped_run_is_usable_and_goes_on_bit_for_bit(world, straight, tmp_path):
    whole, _ = straight
    settings = dataclasses.replace(whole, run=str(tmp_path / "run"))
    summary = sft(settings, sinks=[Interrupt(2)])
    assert (summary.stopped, summary.steps) == ("SIGTERM", 2)
    load_policy(settings.run)
    with pytest.raises(PoloptError, match="already holds a run"):
        sft(settings)
    with pytest.raises(PoloptError, match="epochs is 2 in the run and 3 now"):
        sft(dataclasses.replace(settings, resume=True, epochs=3))
    sft(dataclasses.replace(settings, resume=True))
    assert losses(settings.folder) == losses(whole.folder)
    toy.assert_same_tree(load_policy(settings.run).params, load_policy(whole.run).params)


@pytest.mark.slow
def test_adapters_alone_are_trained_and_merged(world, straight, tmp_path):
    settings = config(tmp_path / "run", lora_rank=2, micro_batch=2, system="Be brief.", **world)
    sft(settings)
    start, end = load_policy(settings.model), load_policy(settings.run)
    assert np.array_equal(start.params["embed"]["embedding"], end.params["embed"]["embedding"])
    before, after = (jax.tree.leaves(p.params["layers"]["0"]["mlp"]) for p in (start, end))
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert losses(settings.folder)[0] == pytest.approx(losses(straight[0].folder)[0], rel=1e-5)


def test_a_row_longer_than_the_context_is_refused(world, tmp_path):
    data = write(tmp_path / "long.jsonl", [{"prompt": "1" * 200, "completion": "b"}])
    with pytest.raises(PoloptError, match=r"row 1 of .* has \d+ tokens; the model's context"):
        sft(config(tmp_path / "run", **{**world, "data": data}))
