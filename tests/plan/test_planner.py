"""Plans for this machine's CPU: what the compiler says, in words and as JSON."""

import contextlib
import dataclasses
import importlib.util
import json

import pytest

from plan.jobs import configured
from polopt.algorithms import grpo
from polopt.cli import main
from polopt.errors import PoloptError, UsageError
from polopt.plan import compile as compiling
from polopt.plan import planner, report
from polopt.plan.collectives import Collective
from polopt.plan.compile import Bytes, Program
from polopt.plan.config import PlanConfig
from polopt.plan.picture import draw, figure_of
from polopt.plan.planner import Found, make_plan
from polopt.plan.slices import Slice

GIVEN = Bytes(arguments=10**6, outputs=9 * 10**5, reused=8 * 10**5, temporary=5 * 10**6, code=10**4)
SENT = (Collective(kind="all-gather", count=12, bytes=3 * 10**6),)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan as a compiler would make it that says `GIVEN` of every program."""
    folder = tmp_path_factory.mktemp("model")
    made = make_plan(configured(folder, slice="v5e-4", micro_batch=4, compile=False), grpo())
    names = ("update", "scoring", "prefill", "decode")
    programs = [Program(name=n, seconds=1.0, bytes=GIVEN, collectives=SENT) for n in names]
    tried = (Found(micro_batch=4, fits=True), Found(micro_batch=8, fits=True))
    return dataclasses.replace(made, programs=tuple(programs), tried=tried)


def test_the_text_has_every_part(plan):
    said = report.text(plan)
    for part in ("v5e-4: 4 chips", "mesh fsdp=4", "\nfits\n", "optimiser", "temporary",
                 "largest micro-batch known to fit: 8", "all-gather", "TFLOP"):  # fmt: skip
        assert part in said
    assert "would fit" not in said


def test_json_is_plain_and_its_parts_agree(plan):
    made = json.loads(json.dumps(report.as_json(plan)))
    assert made["fits"] is True
    assert made["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}
    for name, parts in report.parts_of(plan).items():
        assert sum(parts.values()) == made["programs"][name]["needed"]


def test_the_picture_is_drawn(plan, tmp_path):
    assert draw(plan, tmp_path / "new" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_room_for_all_that_is_said_in_it(plan):
    figure = figure_of(plan)
    figure.canvas.draw()
    said = [*figure.legends, *figure.axes[0].texts, figure.axes[0].title]
    for box in (artist.get_window_extent() for artist in said):
        assert figure.bbox.contains(*box.min), box
        assert figure.bbox.contains(*box.max), box
    totals = [text.get_text() for text in figure.axes[0].texts]
    assert totals == ["0.01"] * 4  # GIVEN is 6.11 MB


# ---------------------------------------------------------------- what does not fit


def shrink(monkeypatch, size):
    monkeypatch.setattr(Slice, "memory", property(lambda self: size))


def test_settings_that_fit_are_looked_for(monkeypatch, tmp_path):
    config = configured(tmp_path, slice="cpu-2", compile=False)
    room = make_plan(config, grpo())
    shrink(monkeypatch, (room.held.total + room.estimated) * 2 // 3)
    found = make_plan(config, grpo())
    assert not found.fits
    for advice in found.advice:
        again = make_plan(advice.config, grpo())
        assert again.fits, advice.config.flags()
    assert any(advice.config.micro_batch < 16 for advice in found.advice)
    assert "does not fit, by an estimate" in report.text(found)
    assert found.advice[0].config.flags() in report.text(found)


def test_where_nothing_fits_it_says_so(monkeypatch, tmp_path):
    shrink(monkeypatch, 1000)
    found = make_plan(configured(tmp_path, slice="cpu-2", compile=False), grpo())
    assert found.advice == ()
    assert "nothing that was looked at would fit" in report.text(found)


class Refusing:
    """A lowered program that its compiler refuses."""

    def __init__(self, words):
        self.words = words

    def compile(self, compiler_options):
        raise compiling.jax.errors.JaxRuntimeError(self.words)


def test_a_refusal_for_memory_is_an_answer_and_another_one_an_error():
    words = "Ran out of memory in memory space hbm.\nUsed 20G of 15.75G hbm.\n\nMore"
    refused = compiling.compile_program("update", lambda: Refusing(words))
    assert refused.bytes is None
    assert refused.refusal.endswith("memory space hbm. Used 20G of 15.75G hbm.")
    with pytest.raises(PoloptError, match="the compiler failed on the update: INTERNAL: oh") as e:
        compiling.compile_program("update", lambda: Refusing("INTERNAL: oh\nno"))
    assert "\n" not in str(e.value)


def test_micro_batches_are_searched_from_a_guess(monkeypatch, plan):
    """Of 1, 2, 4, 8, 16 rows only up to 2 fit: two programs say so, if the guess is near."""
    asked = []

    def lower(job, form, micro_batch):
        asked.append(micro_batch)

    def compiled(name, lower, options):
        lower()
        size = dataclasses.replace(plan.programs[0].bytes, temporary=asked[-1] * 10**12)
        return dataclasses.replace(plan.programs[0], bytes=size)

    monkeypatch.setattr(planner.steps, "lower_update", lower)
    monkeypatch.setattr(planner, "compile_program", compiled)
    form = type("Form", (), {"parts": 2})
    ask = planner.Ask({}, contextlib.nullcontext)

    def search(guess, most):
        first = planner.Found(micro_batch=16, fits=False)
        args = plan.job, form, 3 * 10**12, first, guess, most, ask
        return [(found.micro_batch, found.fits) for found in planner._search(*args)]

    # From where the estimate has its edge, until a neighbour says otherwise.
    assert search(4, 4) == [(4, False), (2, True)]
    assert search(2, 4) == [(2, True), (4, False)]
    assert search(0, 4) == [(1, True), (2, True), (4, False)]
    assert search(16, 1) == [(8, False)]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slice": "cpu-16"}, "asks for 16 devices, and JAX has 8 .*device_count=16"),
        ({"mesh": ("fsdp=3",)}, "fsdp=3 does not make 8 devices"),
        ({"mesh": ("sequence=8",)}, "deal the key heads to 8 devices"),
        ({"prompt_length": 60}, "prompts of 64 and completions of 32 tokens.*the 64"),
        ({"group_size": 1}, "needs groups of at least 2"),
    ],
)
def test_what_makes_no_plan_is_refused_in_one_line(tmp_path, settings, message):
    with pytest.raises(PoloptError, match=message) as error:
        make_plan(configured(tmp_path, **settings), grpo())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": -1}, "search must be at least 0"),
        ({"prompt_length": 0}, "prompt_length must be at least 1"),
        ({"picture": "plan.jpg"}, "picture must be a file that ends in .png"),
        ({"quantise": "int8"}, "give --lora-rank too"),
    ],
)
def test_a_configuration_is_checked(settings, message):
    with pytest.raises(UsageError, match=message):
        PlanConfig(**settings)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", "--model", "base", "--slice", "v5e-4", "--max-new-tokens", "64",
                 "--prompt-length", "64"]) == 1  # fmt: skip
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert 'pip install "polopt[tpu]"' in err


def test_without_a_compiler_the_command_counts(capsys, tmp_path):
    picture = tmp_path / "plan.png"
    said = main(["plan", "--model", "base", "--slice", "v5e-4", "--max-new-tokens", "64",
                 "--prompt-length", "64", "--no-compile", "--json", "--picture",
                 str(picture)])  # fmt: skip
    made = json.loads(capsys.readouterr().out)
    assert (said, made["fits"], made["compiled"]) == (0, True, False)
    assert made["seconds_at_least"]["update"]["bound"] in ("compute", "memory")
    assert picture.exists()
