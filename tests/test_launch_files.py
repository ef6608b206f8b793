"""What ``epbench launch-files`` writes: the format's structure, scripts that do what they say, and values that stay so.

Scripts are run by bash with ``epbench``, ``srun`` and ``scontrol`` that only note what they are called with.
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
from typer.testing import CliRunner

from epbench.cli import app
from epbench.errors import ScenarioError
from epbench.launch_files.files import LaunchFileOptions, render_launch_files
from epbench.launch_files.quoting import for_github, for_kubernetes, for_shell, for_yaml, slug
from epbench.scenario import Scenario, load_scenario

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "ci"
SCENARIO = "scenarios/qwen3-30b-8gpu.toml"
SETUP = "make .venv/.ready && . .venv/bin/activate"  # a checkout has no .venv
HOSTILE = "a 'b' \"c\" $(touch x) `touch y` ${{ secrets.TOKEN }} $HOME \\n\n- z: #\t\u202e\U0001f600\x85.toml"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(ROOT / SCENARIO)


def render(scenario: Scenario, path: str = SCENARIO, **options: Any) -> dict[str, str]:
    return render_launch_files(scenario, Path(path), LaunchFileOptions(**options))


@pytest.fixture(scope="module")
def hostile(scenario: Scenario) -> dict[str, Any]:
    """Documents of a scenario whose values are hostile, read; the sbatch file as text."""
    texts = render(scenario, HOSTILE, baseline=HOSTILE, setup=HOSTILE, code=HOSTILE)
    assert len(texts) == 5
    return {name.partition(".")[2]: read(name, text) for name, text in texts.items()}


def read(name: str, text: str) -> Any:
    assert text.isascii()
    return text if name.endswith(".sbatch") else yaml.safe_load(text)


# ---------------------------------------------------------------- examples


@pytest.mark.parametrize(
    ("directory", "options"),
    [
        (EXAMPLES, ["--setup", SETUP]),
        (EXAMPLES / "two-nodes", ["--nodes", "2", "--world", "16", "--setup", SETUP]),
    ],
)
def test_examples_are_what_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: Path, options: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["launch-files", SCENARIO, "--output", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


# ---------------------------------------------------------------- structure


def test_jobset(scenario: Scenario) -> None:
    text = render(scenario, kind="jobset", nodes=2, gpus_per_node=8, budget_s=3600)["qwen3-30b-8gpu.jobset.yaml"]
    document = yaml.safe_load(text)
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["metadata"] == {"generateName": "epbench-qwen3-30b-8gpu-"}
    (job,) = document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 5400)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Gi"}
    assert "persistentVolumeClaim" in volumes[mounts["/reports"]]
    assert f"{job['name']}-0-0" in container["args"][0], "the head's pod, by its name in the headless service"
    assert document["spec"]["network"]["enableDNSHostnames"] is True


@pytest.mark.parametrize("name", ["github-nightly.yml", "github-pull-request.yml"])
def test_workflows(scenario: Scenario, name: str) -> None:
    document = yaml.safe_load(render(scenario, kind="github", runner="h100")[f"qwen3-30b-8gpu.{name}"])
    assert document["permissions"] in ({}, {"contents": "read"})
    assert slug(scenario.name) in document["concurrency"]["group"], "or one scenario's job ends that of another"
    granted = {right for job in document["jobs"].values() for right in job.get("permissions", {}).items()}
    assert granted <= {("contents", "read"), ("pull-requests", "write")}
    for job in document["jobs"].values():
        writes = "write" in job.get("permissions", {}).values()
        assert writes != ("h100" in job["runs-on"]), "the machine that runs a pull request's code may not write"
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", one) for one in uses)
    triggers = document[True]  # "on" is a boolean of YAML 1.1
    assert set(triggers) == ({"schedule", "workflow_dispatch"} if "nightly" in name else {"pull_request"})


def test_gitlab(scenario: Scenario) -> None:
    document = yaml.safe_load(render(scenario, kind="gitlab")["qwen3-30b-8gpu.gitlab-ci.yml"])
    common = document[".epbench-qwen3-30b-8gpu"]
    assert common["artifacts"]["reports"]["junit"] == "epbench-reports/*/junit.xml", "each test once"
    assert common["resource_group"] == "epbench-gpu"
    nightly, merge = (document[f"epbench-{name}-qwen3-30b-8gpu"] for name in ("nightly", "merge-request"))
    assert "allow_failure" not in nightly
    assert merge["allow_failure"] == {"exit_codes": [4]}


def test_doctor_is_asked_of_as_many_ranks_as_run(scenario: Scenario) -> None:
    """A CI's machine may have fewer GPUs than the scenario's file says: --world of this command."""
    asked = [line.split("epbench doctor ")[1] for text in render(scenario).values() for line in text.splitlines()
             if "epbench doctor " in line]  # fmt: skip
    assert len(asked) == 4
    assert all(line.startswith('"$EPBENCH_SCENARIO" --world 8') for line in asked)


def test_sbatch_asks_for_what_the_scenario_needs(scenario: Scenario) -> None:
    text = render(scenario, kind="sbatch", nodes=4, budget_s=5400)["qwen3-30b-8gpu.sbatch"]
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
    assert asked["nodes"] == "4"
    assert asked["gpus-per-node"] == "2"
    assert asked["time"] == "02:00:00"
    assert asked["signal"] == "B:TERM@120"
    assert "--nodes 4 --listen" in text


def test_a_scenario_of_the_cpu_asks_for_no_gpu() -> None:
    texts = render(load_scenario(ROOT / "scenarios" / "quick.toml", device="cpu"), "scenarios/quick.toml")
    for name in ("quick.sbatch", "quick.jobset.yaml"):
        assert "gpu" not in texts[name]


# ---------------------------------------------------------------- hostile values


def test_hostile_values_stay_values_in_workflows(hostile: dict[str, Any]) -> None:
    (nightly,) = hostile["github-nightly.yml"]["jobs"].values()
    pull = hostile["github-pull-request.yml"]["jobs"]["measure"]
    for environment, names in ((nightly, "SCENARIO BASELINE SETUP"), (pull, "SCENARIO SETUP CODE")):
        for name in names.split():
            value = environment["env"][f"EPBENCH_{name}"]
            assert value.replace("${{ '${{' }}", "").count("${{") == 0, "GitHub would evaluate it"
            assert value.replace("${{ '${{' }}", "${{") == HOSTILE


def test_hostile_values_stay_values_in_a_jobset(hostile: dict[str, Any]) -> None:
    (job,) = hostile["jobset.yaml"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    for name in ("SCENARIO", "BASELINE", "SETUP"):
        assert values[f"EPBENCH_{name}"].replace("$$(", "$(") == HOSTILE
        assert not re.search(r"(?<!\$)\$\(", values[f"EPBENCH_{name}"])


def test_hostile_values_stay_values_in_gitlab(hostile: dict[str, Any]) -> None:
    jobs = hostile["gitlab-ci.yml"]
    values = {name: value for job in jobs.values() for name, value in job.get("variables", {}).items()}
    for name in ("SCENARIO", "BASELINE", "SETUP", "CODE"):
        assert values[f"EPBENCH_{name}"] == {"value": HOSTILE, "expand": False}


def test_hostile_values_stay_values_in_a_shell(hostile: dict[str, Any], tmp_path: Path) -> None:
    lines = re.search(r"^export EPBENCH_SCENARIO=.*?(?=^# a directory)", hostile["sbatch"], re.DOTALL | re.MULTILINE)
    assert lines is not None
    script = f'{lines[0]}\nprintf \'%s\\0\' "$EPBENCH_SCENARIO" "$EPBENCH_BASELINE" "$EPBENCH_SETUP"'
    printed = subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True).stdout.decode()
    assert printed.split("\0") == [HOSTILE, HOSTILE, HOSTILE, ""]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3_30b", "qwen3-30b"),
        ("../../etc/passwd", "etc-passwd"),
        ("\u202e\n$(x)", "x"),
        ("***", "scenario"),
        ("A" * 100, "a" * 30),
    ],
)
def test_a_slug_is_a_name_everywhere(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_quoting_by_hand() -> None:
    assert for_shell("a'b") == "'a'\"'\"'b'"
    assert for_shell("a'\n\xe9") == r"$'a\x27\x0a\xc3\xa9'"
    assert for_yaml('a"\\\n\x85\u202e\U0001f600') == r'"a\x22\x5c\x0a\x85\u202e\U0001f600"'
    assert for_github("${{ x }}") == "\"${{ '${{' }} x }}\""
    assert for_kubernetes("$(x) $y") == '"$$(x) $y"'


# ---------------------------------------------------------------- what a person types


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kind", "jenkins"], "--kind must be sbatch, jobset, github, gitlab or all, got 'jenkins'"),
        (["--kind", "github", "--nodes", "2"], "a job of github has one machine: --nodes 2 needs sbatch or jobset"),
        (["--nodes", "3"], "3 nodes cannot share 8 ranks equally: give --world N"),
        (["--gpus-per-node", "4"], "8 ranks a node need as many GPUs, got --gpus-per-node 4: give --nodes N"),
        (["--image", "a b"], "--image holds letters, digits and . : / @ _ - only, got 'a b'"),
        (["--runner", "x\n- y"], "--runner holds letters, digits and . : / @ _ - only, got 'x\\n- y'"),
        (["--setup", "a\0b"], "--setup is no text: 'a\\x00b'"),
        (["--budget", "soon"], "a time is a positive number and s, m or h"),
        (["--output", "/proc/none"], "cannot write"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["launch-files", SCENARIO, "--output", "/nowhere/at/all/x", *options])
    assert result.exit_code in (2, 6)
    assert sentence in result.output
    assert not Path("/nowhere").exists()


def test_edits_are_not_overwritten_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = ["launch-files", SCENARIO, "--output", str(tmp_path), "--kind", "sbatch"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, command).exit_code == 0, "the same again changes nothing"
    (file,) = tmp_path.iterdir()
    file.write_text("edited")
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, file.read_text()) == (2, "edited")
    assert "--force overwrites" in refused.output
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    assert file.read_text() != "edited"


def test_a_path_that_is_no_text_is_refused(scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match="the scenario's path is no text"):
        render(scenario, "\udcff.toml")


# ---------------------------------------------------------------- scripts


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
