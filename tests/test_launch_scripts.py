"""Scripts within written launch files do what they say, by bash.

``epbench``, ``srun`` and ``scontrol`` only note what they are called with.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from epbench.scenario import Scenario, load_scenario
from tests.launch_files import ROOT, SCENARIO, SETUP, render


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(ROOT / SCENARIO)


def scripts(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Every script of every file, of one and of two nodes."""
    for nodes in (1, 2):
        for name, text in render(scenario, nodes=nodes, setup=SETUP).items():
            if name.endswith(".sbatch"):
                yield f"{name} {nodes}", text
            else:
                yield from ((f"{name} {nodes} {place}", script) for place, script in inside(yaml.safe_load(text)))


def inside(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    if document.get("kind") == "JobSet":
        template = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
        return [("args", template["spec"]["containers"][0]["args"][0].replace("$$(", "$("))]
    if "jobs" in document:
        return [(step.get("name", ""), step["run"])
                for job in document["jobs"].values() for step in job["steps"] if "run" in step]  # fmt: skip
    return [(name, "\n".join(job["script"])) for name, job in document.items() if "script" in job]


def script_of(scenario: Scenario, words: str, **options: Any) -> str:
    found = [
        script
        for name, text in render(scenario, **options).items()
        for place, script in ([(name, text)] if name.endswith(".sbatch") else inside(yaml.safe_load(text)))
        if words in f"{name} {place}"
    ]
    assert len(found) == 1, words
    return found[0]


def test_scripts_are_bash(scenario: Scenario, tmp_path: Path) -> None:
    """By bash itself, and by shellcheck where it is installed."""
    files = []
    for number, (_, text) in enumerate(scripts(scenario)):
        files.append(tmp_path / f"{number}.sh")
        files[-1].write_text(text)
        subprocess.run(["bash", "-n", str(files[-1])], check=True)
    assert len(files) >= 10
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is not None:
        command = [shellcheck, "--shell=bash", "--exclude=SC2154", *map(str, files)]  # $code is of the lines before
        checked = subprocess.run(command, check=False, capture_output=True, text=True)
        assert checked.stdout == ""


STUBS = {
    "epbench": """#!/bin/bash
printf '%s\\n' "epbench $*" >> "$LOG"
name="${1}_CODE"
reports=
while [ $# -gt 0 ]; do
  if [ "$1" = --reports-dir ]; then reports=$2; fi
  shift
done
if [ -n "$reports" ]; then
  mkdir -p "$reports/20261123T000000Z-made-0000"
  touch "$reports/20261123T000000Z-made-0000/"{run.json,verdict.json,comment.md,junit.xml}
fi
exit "${!name:-0}"
""",
    "srun": """#!/bin/bash
printf '%s\\n' srun >> "$LOG"
while [ $# -gt 0 ] && [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "scontrol": """#!/bin/bash
printf '%s\\n' "scontrol $*" >> "$LOG"
if [ "$1" = show ]; then echo node1; echo node2; fi
""",
    "squeue": """#!/bin/bash
printf '%s\\n' "${SLURM_STATE:-RUNNING}"
""",
    "git": """#!/bin/bash
[ "$1 ${*:3}" = "-C merge-base b45e 4ead" ] && echo "f04c of $2"
""",
}


def play(directory: Path, script: str, **variables: str) -> tuple[int, list[str]]:
    """The exit code of a script among stubs, and what it called."""
    bin_directory, log = directory / "bin", directory / "log"
    bin_directory.mkdir()
    for name, text in STUBS.items():
        (bin_directory / name).write_text(text)
        (bin_directory / name).chmod(0o755)
    known = {
        "PATH": f"{bin_directory}:/usr/bin:/bin", "LOG": str(log), "HOME": str(directory),
        "EPBENCH_SCENARIO": "s p.toml", "EPBENCH_BUDGET": "60s", "EPBENCH_SETUP": "",
        "EPBENCH_REPORTS": str(directory / "reports"),
    }  # fmt: skip
    ended = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script], check=False, cwd=directory, env=known | variables,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "unbound" not in ended.stderr, ended.stderr
    return ended.returncode, log.read_text().splitlines() if log.exists() else []


def verbs(calls: list[str]) -> list[str]:
    return [" ".join(call.split()[:2]) for call in calls]


WHOLE = ["epbench run", "epbench gate", "epbench history", "epbench report"]


@pytest.mark.parametrize(
    ("run", "gate", "code", "called"),
    [
        ("0", "0", 0, WHOLE),
        ("0", "3", 3, WHOLE),
        ("0", "4", 4, WHOLE),
        ("5", "5", 5, WHOLE),
        ("6", "0", 6, WHOLE[:1]),
        ("130", "0", 130, WHOLE[:1]),
    ],
)
def test_a_night(scenario: Scenario, tmp_path: Path, run: str, gate: str, code: int, called: list[str]) -> None:
    script = script_of(scenario, "github-nightly.yml Measure and gate")
    ended = play(tmp_path, script, run_CODE=run, gate_CODE=gate, EPBENCH_BASELINE="")
    assert (ended[0], verbs(ended[1])) == (code, called)
    assert ended[1][0].startswith("epbench run s p.toml --world 8 --budget 60s --reports-dir")


@pytest.mark.parametrize(("ab", "code"), [("0", 0), ("3", 3), ("4", 0), ("5", 5), ("6", 6)])
def test_a_pull_request_is_red_for_what_its_author_did(scenario: Scenario, tmp_path: Path, ab: str, code: int) -> None:
    script = script_of(scenario, "github-pull-request.yml Measure")
    variables = {"EPBENCH_CODE": "/src", "BASE": "b45e", "HEAD": "4ead"}
    ended, calls = play(tmp_path, script, ab_CODE=ab, **variables)
    assert ended == code
    assert " --base /src@f04c of /src --head /src@4ead --world 8 " in calls[0], "from where the branch left"
    assert (tmp_path / "reports" / "comment.md").exists(), "where the job that comments looks"


@pytest.mark.parametrize(
    ("variables", "base", "head"),
    [
        ({"CI_MERGE_REQUEST_SOURCE_BRANCH_SHA": "4ead", "HEAD": "3e6e"}, "f04c of .", "4ead"),
        ({"CI_MERGE_REQUEST_SOURCE_BRANCH_SHA": "", "HEAD": "4ead"}, "f04c of .", "4ead"),
        ({"HEAD": "x"}, "b45e", "x"),  # git knows no common commit
    ],
)
def test_a_merge_request_compares_the_branch_alone(
    scenario: Scenario, tmp_path: Path, variables: dict[str, str], base: str, head: str
) -> None:
    script = script_of(scenario, "gitlab-ci.yml epbench-merge-request")
    _, calls = play(tmp_path, script, EPBENCH_CODE="", BASE="b45e", **variables)
    assert f" --base {base} --head {head} --world 8 " in calls[1]


def test_a_job_that_was_cancelled_does_not_come_back(scenario: Scenario, tmp_path: Path) -> None:
    script = script_of(scenario, ".sbatch", kind="sbatch")
    ended, calls = play(tmp_path, script, run_CODE="130", SLURM_STATE="COMPLETING", **SLURM)
    assert (ended, verbs(calls)) == (130, ["srun", "epbench run"])


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]"}


@pytest.mark.parametrize(
    ("run", "gate", "restarts", "code", "called"),
    [
        ("0", "0", "0", 0, ["srun", *WHOLE]),
        ("5", "3", "0", 3, ["srun", *WHOLE]),
        ("6", "0", "0", 6, ["srun", "epbench run"]),
        ("130", "0", "0", 0, ["srun", "epbench run", "scontrol requeue"]),
        ("130", "0", "5", 130, ["srun", "epbench run"]),
    ],
)
def test_a_batch_job(
    scenario: Scenario, tmp_path: Path, run: str, gate: str, restarts: str, code: int, called: list[str]
) -> None:
    script = script_of(scenario, ".sbatch", kind="sbatch")
    variables = SLURM | {"run_CODE": run, "gate_CODE": gate, "SLURM_RESTART_COUNT": restarts}
    ended, calls = play(tmp_path, script, **variables)
    assert (ended, verbs(calls)) == (code, called)


def test_a_batch_job_goes_on_after_a_requeue(scenario: Scenario, tmp_path: Path) -> None:
    made = tmp_path / "reports" / "slurm-4711" / "20261123T000000Z-made-0000"
    made.mkdir(parents=True)
    (made / "run.json").touch()
    _, calls = play(tmp_path, script_of(scenario, ".sbatch", kind="sbatch"), **SLURM)
    assert calls[1].endswith(f"--resume {made}")


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ("0", "epbench run scenarios/qwen3-30b-8gpu.toml --world 8 --nodes 2 --listen node1:29711"),
        ("1", "epbench node --join node1:29711 --node-rank 1"),
    ],
)
def test_each_task_of_two_nodes_knows_its_place(scenario: Scenario, tmp_path: Path, task: str, command: str) -> None:
    script = script_of(scenario, ".sbatch", kind="sbatch", nodes=2)
    (tmp_path / "reports" / "slurm-4711" / "r").mkdir(parents=True)
    (tmp_path / "reports" / "slurm-4711" / "r" / "run.json").touch()  # node 1 alone makes none
    _, calls = play(tmp_path, script, SLURM_PROCID=task, **SLURM)
    assert any(call.startswith(command) for call in calls), calls


@pytest.mark.parametrize(
    ("index", "command"),
    [
        ("0", "epbench run s p.toml --world 8 --nodes 2 --listen set-nodes-0-0.set:29400"),
        ("1", "epbench node --join set-nodes-0-0.set:29400 --node-rank 1"),
    ],
)
def test_each_pod_of_two_knows_its_place(scenario: Scenario, tmp_path: Path, index: str, command: str) -> None:
    script = script_of(scenario, "jobset.yaml", kind="jobset", nodes=2).replace("/reports", str(tmp_path))
    variables = {"JOBSET_NAME": "set", "JOB_COMPLETION_INDEX": index, "EPBENCH_BASELINE": "b.json", "gate_CODE": "3"}
    code, calls = play(tmp_path, script, **variables)
    assert calls[0].startswith(command)
    assert code == (0 if index == "1" else 3)


def test_the_marker_of_a_comment_is_that_of_epbench(scenario: Scenario) -> None:
    from epbench.report.gate.comment import marker

    document = yaml.safe_load(render(scenario, kind="github")["qwen3-30b-8gpu.github-pull-request.yml"])
    script = document["jobs"]["comment"]["steps"][-1]["with"]["script"]
    pattern = re.search(r"!/(\^.*\$)/\.test", script)
    assert pattern is not None
    assert re.fullmatch(pattern[1], marker(json.dumps({"name": "a -- b"})))
