"""What supervised fine-tuning learns from: rows of token ids, and which of them are learned.

Rows come from a file of conversations, or from a task's own solutions. Prompts are those that
`polopt train` and `polopt eval` put to the model, token for token; what is learned ends with the
token that ends a completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polopt.errors import PoloptError, UsageError
from polopt.models.tokenizer import Tokenizer
from polopt.tasks import Abstained, Task, jsonl_task, load_task
from polopt.tasks.json_lines import check_text, objects, read_lines
from polopt.tasks.task import ANSWER, WORKED
from polopt.train.sft_config import SftConfig

PROBLEMS = 500  # rows made of a task without end, unless the configuration says otherwise
_STREAM = 1 << 30  # apart from the training streams of runs, whose seeds are small
_ROLES = ("system", "user", "assistant", "tool")


class Demonstration(NamedTuple):
    """One row."""

    tokens: list[int]
    learned: list[bool]  # tokens that an assistant writes, its end of turn included


def task_to_learn(config: SftConfig) -> Task | None:
    """The task whose solutions are learned; None if `config.data` has what is learned.

    Raises:
      UsageError: neither a task nor a file.
      PoloptError: as `load_task` and `jsonl_task`.
    """
    if config.data is None:
        if config.task is None:
            raise UsageError("give rows to learn from: --data rows.jsonl, or --task chain_sum")
        return load_task(
            config.task,
            task_args=config.task_args,
            held_out=config.held_out,
            seed=_STREAM + config.seed,
        )
    _, first = objects(read_lines(config.data), config.data)[0]
    answers = "answer" in first and not {"messages", "completion"} & set(first)
    return jsonl_task(config.data, seed=config.seed) if answers else None


def demonstrations(
    config: SftConfig, task: Task | None, tokenizer: Tokenizer
) -> list[Demonstration]:
    """The rows of a run, in the order of their source.

    Raises:
      PoloptError: a line that is no row, named by file and number; a task without such solutions,
        or one that its own reward does not find right; a conversation, and no chat template.
    """
    if task is not None:
        return _solved(config, task, tokenizer)
    assert config.data is not None
    return [
        _row(value, where, tokenizer)
        for where, value in objects(read_lines(config.data), config.data)
    ]


def _solved(config: SftConfig, task: Task, tokenizer: Tokenizer) -> list[Demonstration]:
    form = config.solution or (WORKED if WORKED in task.solutions else ANSWER)
    if form not in task.solutions:
        known = ", ".join(task.solutions) or "none: give conversations of your own (--data)"
        raise PoloptError(f"{task.name} has no solutions of the form {form!r}; it has {known}")
    count = config.problems or task.size or PROBLEMS
    if task.size is not None and count > task.size:
        raise PoloptError(f"problems={count}, but {task.name} has {task.size}")
    rows = []
    for problem in (task.train(i) for i in range(count)):
        text = task.solutions[form](problem)
        verdict = task.reward(text, problem)
        if isinstance(verdict, Abstained) or sum(verdict.values()) < 1:
            raise PoloptError(
                f"{task.name}: its reward does not find its own solution of problem "
                f"{problem.index} right ({text[:80]!r}); give conversations of your own (--data)"
            )
        rows.append(_answered(problem.prompt, text, tokenizer))
    return rows


def _answered(prompt: str, completion: str, tokenizer: Tokenizer) -> Demonstration:
    """A prompt as a model is asked it, and a completion as it would write it."""
    if tokenizer.chat_template is not None:
        said = [*tokenizer.asked(prompt), {"role": "assistant", "content": completion}]
        return Demonstration(*tokenizer.chat_turns(said))
    before = tokenizer.prompt(prompt)
    after = [*tokenizer.encode(completion), tokenizer.eos_ids[0]]
    return Demonstration(before + after, [False] * len(before) + [True] * len(after))


def _row(value: Mapping[str, Any], where: str, tokenizer: Tokenizer) -> Demonstration:
    for name, item in value.items():
        check_text(item, name, where)
    try:
        if "messages" in value:
            row = Demonstration(*tokenizer.chat_turns(_messages(value["messages"], tokenizer)))
        else:
            row = _answered(_text(value, "prompt"), _text(value, "completion"), tokenizer)
    except PoloptError as error:
        raise PoloptError(f"{where}: {error}") from error
    if not any(row.learned):
        raise PoloptError(f"{where}: nothing to learn: no message of an assistant")
    return row


def _messages(messages: Any, tokenizer: Tokenizer) -> Sequence[Mapping[str, Any]]:
    if tokenizer.chat_template is None:
        raise PoloptError(
            "conversations need a model with a chat template: give prompt and completion instead"
        )
    if not isinstance(messages, list) or not messages:
        raise PoloptError("'messages' must be a list of {role, content} objects, at least one")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PoloptError(f"message {number} is no object with a role ({', '.join(_ROLES)})")
    if messages[0]["role"] == "user" and tokenizer.system:
        opening = tokenizer.asked(str(messages[0].get("content", "")))
        return [*opening, *messages[1:]]
    return messages


def _text(value: Mapping[str, Any], name: str) -> str:
    if name not in value:
        raise PoloptError(
            f"no field {name!r}; it has {', '.join(value) or 'none'}: give messages, or prompt "
            "and completion"
        )
    if not isinstance(value[name], str) or not value[name].strip():
        raise PoloptError(f"{name!r} must be text that is not blank")
    return value[name]
