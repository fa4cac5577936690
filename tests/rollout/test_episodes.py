"""Episodes: every token where it belongs, against a script, a forward pass and single turns."""

import dataclasses
import hashlib

import numpy as np
import pytest
from train import toy

from polopt.errors import PoloptError
from polopt.rollout.collect import Cursor, Writers
from polopt.rollout.episodes import stable_hash
from polopt.tasks.environment import Reply
from polopt.train.evaluate import evaluation
from polopt.trajectory import Refill
from polopt.types import Stop
from rollout import tally

SPELL = tally.Spelling()
TURNS = {
    0: ["e.", "."],  # one turn, closed by the model
    1: ["de=", "fghi=", "d."],  # an empty observation, one of one token, the end
    2: ["d=", "d=", "d="],  # cut by the number of turns
    3: ["de", "="],  # the turn itself was cut: never answered
    4: ["defghi", "="],
    5: ["dr=", "="],  # ended by the environment
    6: ["dq=", "="],  # by a broken tool
    7: ["deeee=", "deeee=", "d="],  # cut by max_new_tokens
}


@pytest.fixture(scope="module")
def played():
    made = tally.collector()
    script = tally.Script(made, TURNS)
    ids = np.arange(8, dtype=np.int32).reshape(4, 2)
    rows = made.draw(script, [made.task.train(i) for i in range(4)], ids)
    batch, texts = made.write(rows)
    return batch, texts, script


def test_every_token_is_where_it_was_sampled_or_shown(played):
    batch, texts, _ = played
    shown = [
        "e",
        "de=⟨⟩fghi=⟨55⟩d",
        "d=⟨22⟩d=⟨22⟩d=",
        "de",
        "defghi",
        "dr=",
        "dq=",
        "deeee=⟨⟩deeee=",
    ]
    assert texts == shown
    whole = ["e.", "de=fghi=55d.", "d=22d=22d=", "de", "defghi", "dr=", "dq=", "deeee=deeee="]
    for n, text in enumerate(whole):
        start, end = batch.prompt_length[n], batch.length[n]
        assert batch.tokens[n, :start].tolist() == SPELL.prompt("defgh"[: 1 + n // 2])
        assert batch.tokens[n, start:end].tolist() == SPELL.encode(text)
        assert not batch.tokens[n, end:].any()


def test_turns_are_numbered_and_observations_are_not_actions(played):
    batch, _, _ = played
    turns = [
        [0, 0],
        [0, 0, 0, 1, 1, 1, 1, 1, -1, -1, 2, 2],  # two turns with nothing in between stay two
        [0, 0, -1, -1, 1, 1, -1, -1, 2, 2],
        [0, 0],
        [0] * 6,
        [0, 0, 0],
        [0, 0, 0],
        [0] * 6 + [1] * 6,
    ]
    for n, expected in enumerate(turns):
        start, end = batch.prompt_length[n], batch.length[n]
        assert batch.turn[n, start:end].tolist() == expected
        assert (batch.turn[n, :start] == -1).all()
        assert (batch.turn[n, end:] == -1).all()
    np.testing.assert_array_equal(batch.action_mask, batch.turn >= 0)


def test_log_probabilities_stand_at_the_sampled_tokens(played):
    batch, _, _ = played
    place = np.arange(batch.tokens.shape[1])[None] - batch.prompt_length[:, None]
    expected = np.where(batch.action_mask, -(place + 1) / 8, 0)
    np.testing.assert_array_equal(batch.logp_sampler, expected.astype(np.float32))
    np.testing.assert_array_equal(batch.log_keep, (expected / 2).astype(np.float32))


def test_draws_go_on_counting_and_ended_rows_cost_no_shape(played):
    calls = played[2].calls  # the context of 32, less 16 and 6; less 6
    assert [prompts.shape for prompts, _, _, _ in calls] == [(4, 10), (8, 26), (8, 26)]
    assert calls[1][3].tolist() == [0, 3, 4, 0, 0, 0, 0, 6]
    assert calls[2][3].tolist() == [0, 10, 8, 0, 0, 0, 0, 0]
    assert (calls[2][1] > 0).tolist() == [False, True, True] + [False] * 5


def test_why_episodes_end(played):
    assert [Stop(s).name for s in played[0].stop] == [
        *("EOS", "EOS", "TURN_LIMIT", "LENGTH", "LENGTH", "STOP_TOKEN", "TOOL_ERROR", "LENGTH")
    ]


def test_turns_are_paid_where_they_end_and_outcomes_at_the_last_action(played):
    batch, _, _ = played
    tool = {0: {1: 0.5}, 1: {2: 1.5, 7: 2.5, 11: 0.5}, 2: {1: 1.0, 5: 1.0, 9: 1.0}, 5: {2: 1.5}}
    tool |= {6: {2: 1.5}, 7: {5: 3.0, 11: 3.0}}
    score = {0: {1: 1.0}, 1: {11: 1.0}, 3: {1: 1.0}, 4: {5: 1.0}, 7: {11: 1.0}}
    for name, paid in (("tool", tool), ("score", score)):
        expected = np.zeros(batch.tokens.shape, np.float32)
        for n, places in paid.items():
            for place, value in places.items():
                expected[n, batch.prompt_length[n] + place] = value
        np.testing.assert_array_equal(batch.reward_parts[name], expected)


def test_an_anchor_labels_the_state_before_a_turn(played):
    batch, _, _ = played
    first = [int(hashlib.sha256(str(i).encode()).hexdigest()[:8], 16) >> 1 for i in range(3)]
    states = {0: [0], 1: [0, 3, 8], 2: [1, 3, 5], 3: [1], 4: [2], 7: [3, 9]}  # index, then letters
    for n, numbers in states.items():
        for turn, number in enumerate(numbers):
            assert set(batch.columns["anchor"][n, batch.turn[n] == turn]) == {first[number % 3]}
    assert (batch.columns["anchor"][~batch.action_mask] == -1).all()
    assert 0 <= min(first) <= max(first) < 2**31
    assert stable_hash("0") == first[0]


# ---------------------------------------------------------------- real draws


@pytest.fixture(scope="module")
def drawn():
    made = tally.collector()
    examples = [made.task.train(i) for i in range(6)]
    ids = np.arange(100, 112, dtype=np.int32).reshape(6, 2)
    return made, examples, ids, made.write(made.draw(tally.sampler(made), examples, ids))[0]


def test_a_forward_pass_over_the_record_gives_the_sampler_s_log_probabilities(drawn):
    batch = drawn[3]
    assert (batch.turn.max(1) > 0).sum() > 3
    assert len(set(batch.stop.tolist())) > 2
    logp = np.asarray(tally.rescored(batch.tokens, batch.temperature))
    mask = batch.action_mask
    sampled = (batch.logp_sampler + batch.log_keep)[mask]
    np.testing.assert_allclose(sampled, logp[mask], atol=2e-5)


def test_an_episode_depends_on_its_id_not_on_the_batch(drawn):
    made, examples, ids, batch = drawn
    order = [5, 2]
    other = made.write(
        made.draw(tally.sampler(made), [examples[i] for i in order], ids[order][:, ::-1])
    )[0]
    rows = [11, 10, 5, 4]
    T = min(batch.tokens.shape[1], other.tokens.shape[1])
    for name in ("tokens", "turn", "action_mask"):
        mine, theirs = getattr(batch, name), getattr(other, name)
        np.testing.assert_array_equal(mine[rows, :T], theirs[:, :T], err_msg=name)
    np.testing.assert_array_equal(batch.stop[rows], other.stop)


def test_an_environment_that_says_nothing_changes_nothing():
    silent = tally.collector(tally.task(tally.SILENT))
    plain = tally.collector(tally.task(None))
    assert plain.stop_ids == ()
    ids = np.arange(16, dtype=np.int32).reshape(8, 2)
    examples = [silent.task.train(i) for i in range(8)]
    turns = silent.write(silent.draw(tally.sampler(silent), examples, ids))[0]
    whole = plain.write(plain.draw(tally.sampler(plain), examples, ids))[0]
    assert turns.turn.max() > 1
    np.testing.assert_array_equal(turns.length, whole.length)
    np.testing.assert_array_equal(turns.stop, whole.stop)
    for n, end in enumerate(turns.length):
        np.testing.assert_array_equal(turns.tokens[n, :end], whole.tokens[n, :end])
        np.testing.assert_array_equal(turns.action_mask[n, :end], whole.action_mask[n, :end])


def test_a_steady_rollout_compiles_nothing_and_a_cursor_is_all_it_remembers():
    def good(trajectories):  # about half of the groups
        return np.repeat(trajectories.id[::2] // 2 % 2 == 0, 2)

    made = tally.collector(refill=Refill(by=good, max_rounds=3))
    writers = Writers(policy=tally.sampler(made))
    made.collect(writers, 4, Cursor())
    with toy.compilations() as count:
        second = made.collect(writers, 4, Cursor(prompt=8, row=16))
        again = made.collect(writers, 4, Cursor(prompt=8, row=16))
    assert count() == 0
    assert second.rounds == 2
    assert second.cursor == Cursor(prompt=16, row=32)
    assert second.trajectories.columns["anchor"].shape == second.trajectories.tokens.shape
    toy.assert_same_tree(second.trajectories, again.trajectories)
    assert second.completions == again.completions


def test_an_evaluation_plays_episodes():
    made = tally.collector()
    script = tally.Script(made, {0: ["de=", "e."], 1: ["fg=", "d."], 2: ["dq="]})
    metrics, shown = evaluation(made, script, made.task.held_out, 3)
    assert (metrics["eval/accuracy"], metrics["eval/length"]) == (1 / 3, 13 / 3)
    assert [view.completion for view in shown] == ["de=⟨⟩e", "fg=⟨⟩d", "dq="]
    assert [view.stop for view in shown] == ["EOS", "EOS", "TOOL_ERROR"]
    assert shown[0].reward == 1.5 + 0.5 + 1


# ---------------------------------------------------------------- bad input


def played_with(environment, turns=("de=", "d."), **changes):
    made = tally.collector(tally.task(environment), **changes)
    script = tally.Script(made, {0: list(turns)})
    return made.draw(script, [made.task.train(3)], np.zeros((1, 1), np.int32))


def test_an_environment_that_raises_is_one_line_with_its_sample():
    def broken(state, text):
        raise ZeroDivisionError(f"no way\nto divide {text}")

    def late(state, text):
        return broken(state, text) if text == "fg=" else Reply(state=state, text="7")

    with pytest.raises(PoloptError) as error:
        played_with(dataclasses.replace(tally.ENVIRONMENT, step=late), ["de=", "fg="])
    assert str(error.value) == (
        "the environment of tally raised ZeroDivisionError in turn 1 of "
        'sample 3 ("de=7"): no way to divide fg='
    )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("text", "step gave a str, not a Reply"),
        (Reply(state=0, rewards={"tols": 1.0}), r"a reward 'tols' that is not among its parts"),
        (Reply(state=0, rewards={"tool": float("nan")}), "the reward 'tool' is nan"),
    ],
)
def test_a_reply_that_breaks_the_contract_is_one_line(reply, message):
    environment = dataclasses.replace(tally.ENVIRONMENT, step=lambda state, text: reply)
    with pytest.raises(PoloptError, match=message) as error:
        played_with(environment)
    assert "turn 0 of sample 3" in str(error.value)


def test_a_stop_that_no_token_spells_is_refused():
    environment = dataclasses.replace(tally.ENVIRONMENT, stop=("=", "</call>"))
    with pytest.raises(PoloptError, match="no token of the tokenizer spells the stop '</call>'"):
        _ = tally.collector(tally.task(environment)).stop_ids


def test_an_observation_that_does_not_fit_ends_the_episode():
    long = dataclasses.replace(
        tally.ENVIRONMENT, step=lambda state, text: Reply(state=state, text="7" * 20)
    )
    (row,) = played_with(long)
    assert row.stop == Stop.LENGTH
    assert row.extent == 3


def test_a_prompt_without_room_for_an_episode_is_one_line():
    with pytest.raises(PoloptError) as error:
        played_with(tally.ENVIRONMENT, max_length=26)
    assert str(error.value) == (
        "prompt 3 of tally has 5 tokens; the model's context of 26 less max_new_tokens=12, "
        "4 for observations and 6 for a last turn leaves 4"
    )
