"""Plans for this machine's CPU: what the compiler says, in words and as JSON."""

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
from polopt.plan.config import PlanConfig
from polopt.plan.picture import draw
from polopt.plan.planner import make_plan
from polopt.plan.slices import Slice


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return make_plan(configured(folder, slice="cpu-2", micro_batch=4), grpo())


def test_every_program_of_a_step_is_compiled(plan):
    assert [program.name for program in plan.programs] == ["update", "scoring", "prefill", "decode"]
    assert plan.fits
    for program in plan.programs:
        assert program.refusal is None
        assert program.bytes.temporary > 0
        assert plan.needed(program) > plan.held.total
    update = plan.programs[0]
    assert {"all-gather", "all-reduce"} <= {sent.kind for sent in update.collectives}


def test_what_an_update_takes_is_what_the_run_holds_and_a_batch(plan):
    update = plan.programs[0].bytes
    taken = plan.held.parameters + plan.held.optimiser  # the reference is scored before it
    job = plan.job
    cells = job.rows * (job.prompt + job.completion)
    assert taken <= update.arguments <= taken + 4 * cells * 20
    assert update.reused == pytest.approx(taken, rel=0.01)  # the state is written in place


def test_the_largest_micro_batch_is_searched(plan):
    tried = [found.micro_batch for found in plan.tried]
    assert plan.largest == 16 == max(tried)  # all rows of a device
    assert tried[0] == plan.micro_batch == 4


def test_the_text_has_every_part(plan):
    said = report.text(plan)
    for part in ("cpu-2: 2 CPU devices", "mesh fsdp=2", "\nfits\n", "optimiser", "temporary",
                 "largest micro-batch known to fit: 16", "all-gather", "TFLOP"):  # fmt: skip
        assert part in said
    assert "would fit" not in said


def test_json_is_plain_and_its_parts_agree(plan):
    made = json.loads(json.dumps(report.as_json(plan)))
    assert made["fits"] is True
    assert made["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 1}
    for name, parts in report.parts_of(plan).items():
        assert sum(parts.values()) == made["programs"][name]["needed"]


def test_the_picture_is_drawn(plan, tmp_path):
    assert draw(plan, tmp_path / "new" / "plan.png").read_bytes().startswith(b"\x89PNG")


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

    def compile(self):
        raise compiling.jax.errors.JaxRuntimeError(self.words)


def test_a_refusal_for_memory_is_an_answer_and_another_one_an_error():
    words = "Ran out of memory in memory space hbm.\nUsed 20G of 15.75G hbm.\n\nMore"
    refused = compiling.compile_program("update", lambda: Refusing(words))
    assert refused.bytes is None
    assert refused.refusal.endswith("memory space hbm. Used 20G of 15.75G hbm.")
    with pytest.raises(PoloptError, match="the compiler failed on the update: INTERNAL: oh") as e:
        compiling.compile_program("update", lambda: Refusing("INTERNAL: oh\nno"))
    assert "\n" not in str(e.value)


def test_micro_batches_are_bisected(monkeypatch, plan):
    """Of 1, 2, 4, 8, 16 rows only up to 2 fit: two more programs say so."""
    asked = []

    def lower(job, form, micro_batch):
        asked.append(micro_batch)

    def compiled(name, lower):
        lower()
        size = dataclasses.replace(plan.programs[0].bytes, temporary=asked[-1] * 10**12)
        return dataclasses.replace(plan.programs[0], bytes=size)

    monkeypatch.setattr(planner.steps, "lower_update", lower)
    monkeypatch.setattr(planner, "compile_program", compiled)
    form = type("Form", (), {"parts": 2})
    first = planner.Found(micro_batch=16, fits=False)
    tried = list(planner._search(plan.job, form, 3 * 10**12, first, 4, lambda text: None))
    assert [(found.micro_batch, found.fits) for found in tried] == [
        (2, True),
        (8, False),
        (4, False),
    ]
    assert len(list(planner._search(plan.job, form, 3 * 10**12, first, 1, print))) == 1


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
