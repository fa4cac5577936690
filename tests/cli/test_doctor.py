import json

import pytest

from polopt.cli.doctor import line, report, run
from polopt.doctor import Finding

GOOD = Finding("jax", "ok", "0.10.2")
ODD = Finding("compile cache", "warn", "off", "export X=1")
BAD = Finding("collective", "fail", "wrong\n sum", "restart")


def test_a_line_has_its_mark_and_below_it_what_to_do(capsys):
    assert report([GOOD, ODD, BAD], as_json=False) == 1
    assert capsys.readouterr().out == (
        "ok    jax               0.10.2\n"
        "warn  compile cache     off\n"
        "                        do: export X=1\n"
        "fail  collective        wrong sum\n"
        "                        do: restart\n"
    )
    assert line(GOOD).endswith("0.10.2")


@pytest.mark.parametrize(("findings", "code"), [([GOOD, ODD], 0), ([GOOD, BAD], 1)])
def test_programs_read_the_same(capsys, findings, code):
    assert report(findings, as_json=True) == code
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    assert told["checks"][0] == {"name": "jax", "mark": "ok", "found": "0.10.2", "advice": ""}


@pytest.mark.slow
def test_this_machine_is_well(capsys, tmp_path):
    assert run(["--json", "--run", str(tmp_path / "new")]) == 0
    told = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert told["devices"]["found"] == "cpu: 8 × cpu; attention by xla"
    assert told["collective"]["found"].startswith("right sum over 8 devices")
    assert told["run folder"]["mark"] in ("ok", "warn")
    assert {"python", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint"} <= set(told)
    assert list(tmp_path.iterdir()) == []
