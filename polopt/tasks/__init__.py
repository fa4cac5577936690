"""Tasks: where prompts and verifiable rewards come from."""

from polopt.tasks.answer import tagged_answer, whole_text
from polopt.tasks.isolate import IsolatedReward, Limits
from polopt.tasks.jsonl import jsonl_task
from polopt.tasks.named import load_task
from polopt.tasks.reasoning import families, reasoning_task
from polopt.tasks.score import Scores, score_all, user_reward
from polopt.tasks.task import Abstained, Example, Parts, Reward, Task, abstain

__all__ = [
    "Abstained",
    "Example",
    "IsolatedReward",
    "Limits",
    "Parts",
    "Reward",
    "Scores",
    "Task",
    "abstain",
    "families",
    "jsonl_task",
    "load_task",
    "reasoning_task",
    "score_all",
    "tagged_answer",
    "user_reward",
    "whole_text",
]
