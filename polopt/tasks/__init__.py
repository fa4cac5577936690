"""Tasks: where prompts and verifiable rewards come from."""

from polopt.tasks.answer import tagged_answer, whole_text
from polopt.tasks.calculator import calculator_task
from polopt.tasks.environment import Environment, Reply
from polopt.tasks.isolate import IsolatedReward, Limits
from polopt.tasks.jsonl import jsonl_task
from polopt.tasks.named import load_task
from polopt.tasks.reasoning import families, reasoning_task
from polopt.tasks.score import Scores, score_all, user_reward
from polopt.tasks.task import Abstained, Example, Parts, Reward, Task, abstain

__all__ = [
    "Abstained",
    "Environment",
    "Example",
    "IsolatedReward",
    "Limits",
    "Parts",
    "Reply",
    "Reward",
    "Scores",
    "Task",
    "abstain",
    "calculator_task",
    "families",
    "jsonl_task",
    "load_task",
    "reasoning_task",
    "score_all",
    "tagged_answer",
    "user_reward",
    "whole_text",
]
