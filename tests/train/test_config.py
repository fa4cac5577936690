import ast
import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.errors import PoloptError, UsageError
from polopt.train import config as module
from polopt.train.config import (
    PretrainConfig,
    SampleConfig,
    TrainConfig,
    assignments,
    from_dict,
    from_json,
    read_config,
    resume_conflicts,
    to_json,
)


def test_the_defaults_are_valid_and_come_back_equal():
    assert from_json(to_json(TrainConfig())) == TrainConfig()


@given(
    rate=st.floats(min_value=0, allow_infinity=False),
    seed=st.integers(0, 2**32 - 1),
    model=st.text(min_size=1).filter(lambda s: s.strip()),
    top_p=st.none() | st.floats(min_value=0, max_value=1, exclude_min=True),
    terms=st.integers(),
)
def test_every_value_comes_back_exactly(rate, seed, model, top_p, terms):
    config = TrainConfig(
        learning_rate=rate,
        seed=seed,
        model=model,
        top_p=top_p,
        set=("clip.low=0.1",),
        task_args=(f"terms={terms}",),
    )
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("steps", "3", "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", 0, "at least 1"),
        ("seed", -1, "between 0"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", float("inf"), "finite"),
        ("temperature", 0.0, "above 0"),
        ("top_p", 1.1, "at most 1"),
        ("min_p", 1.0, "below 1"),
        ("top_k", 2.5, "a whole number or None"),
        ("group_size", 0, "at least 1"),
        ("parallel", "grid", "one of auto, jit, pmap, mesh"),
        ("algorithm", " ", "not empty"),
        ("set", ["clip.low=0.1"], "a tuple of strings"),
        ("set", ("clip.low",), "name=value"),
        ("set", ("clip.low=high",), "takes a number"),
        ("set", ("clip.low=true",), "takes a number"),
        ("task_args", ("a=1", "a=2"), "twice"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(field, value, wanted):
    with pytest.raises(UsageError) as error:
        TrainConfig(**{field: value})
    message = str(error.value)
    assert field in message
    assert wanted in message
    assert "\n" not in message


def test_data_and_settings_of_a_task_exclude_each_other():
    with pytest.raises(UsageError, match="data replaces it"):
        TrainConfig(data="problems.jsonl", task_args=("max_terms=3",))


def test_unknown_keys_are_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="'learning_rte'; did you mean 'learning_rate'"):
        from_dict({"learning_rte": 1e-3})


@pytest.mark.parametrize(("text", "wanted"), [("{", "not JSON"), ("[1]", "one JSON object")])
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, wanted):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PoloptError, match=wanted) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PoloptError, match="No such file"):
        read_config(tmp_path / "nothing.json")


def test_assignments_are_json_where_they_can_be():
    assert assignments(["a=1", "b=0.5", "c=true", "d=plain", 'e=["+"]', "f=x=y"], "task_args") == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "plain",
        "e": ["+"],
        "f": "x=y",
    }


def test_hyper_is_a_dictionary_of_numbers():
    config = TrainConfig(set=("clip.low=0.1", "kl_penalty.coefficient=0"))
    assert config.hyper == {"clip.low": 0.1, "kl_penalty.coefficient": 0}


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        ({}, "runs/grpo-chain_sum-0"),
        ({"algorithm": "some/mine.py:best", "seed": 3}, "runs/best-chain_sum-3"),
        ({"data": "a/problems.jsonl"}, "runs/grpo-problems-0"),
        ({"run": "elsewhere"}, "elsewhere"),
    ],
)
def test_the_folder_is_named_after_what_is_run(changes, folder):
    assert TrainConfig(**changes).folder == Path(folder)


def test_what_changes_the_numbers_conflicts_on_resume():
    recorded = TrainConfig()
    asked = TrainConfig(prompts=16, seed=1, reward="r.py:f", algorithm="rloo")
    conflicts = resume_conflicts(recorded, asked)
    assert [c.split()[0] for c in conflicts] == ["algorithm", "reward", "prompts", "seed"]
    assert "prompts is None in the run and 16 now" in conflicts


def test_what_only_shows_or_splits_does_not_conflict():
    asked = TrainConfig(
        run="x",
        resume=True,
        quiet=True,
        plot=False,
        devices=2,
        parallel="pmap",
        micro_batch=4,
        micro_tokens=512,
        checkpoint_every=7,
    )
    assert resume_conflicts(TrainConfig(), asked) == []


@pytest.mark.parametrize(
    ("schedule", "steps", "free"),
    [("constant", 200, True), ("constant", 20, False), ("cosine", 200, False)],
)
def test_more_steps_continue_a_run_only_if_the_schedule_ignores_them(schedule, steps, free):
    recorded = TrainConfig(schedule=schedule)
    asked = dataclasses.replace(recorded, steps=steps)
    assert (resume_conflicts(recorded, asked) == []) is free


@pytest.mark.parametrize("kind", [TrainConfig, SampleConfig, PretrainConfig])
def test_every_field_has_its_help(kind):
    tree = ast.parse(inspect.getsource(module))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__)
    pairs = zip(body.body, body.body[1:], strict=False)
    helped = {
        a.target.id
        for a, b in pairs
        if isinstance(a, ast.AnnAssign)
        and isinstance(b, ast.Expr)
        and isinstance(b.value, ast.Constant)
    }
    assert helped == {field.name for field in dataclasses.fields(kind)}


def test_the_file_holds_every_field():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(json.loads(to_json(TrainConfig()))) == fields
