"""What ``epbench launch-files`` writes: the structure of each format, and values that stay values."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from epbench.cli import app
from epbench.errors import ScenarioError
from epbench.launch_files.quoting import for_github, for_kubernetes, for_shell, for_yaml, slug
from epbench.scenario import Scenario, load_scenario
from tests.launch_files import ROOT, SCENARIO, SETUP, render

EXAMPLES = ROOT / "examples" / "ci"
HOSTILE = "a 'b' \"c\" $(touch x) `touch y` ${{ secrets.TOKEN }} $HOME \\n\n- z: #\t\u202e\U0001f600\x85.toml"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(ROOT / SCENARIO)


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
