"""``epbench gate``: finds what is compared, judges it, and writes the verdict for people, CIs and forges."""

from dataclasses import dataclass
from pathlib import Path

from epbench.ab_records import FILE as AB_FILE
from epbench.baselines.file import SUFFIX, baseline_path
from epbench.errors import RunError, ScenarioError
from epbench.gate_records import Verdict
from epbench.report.gate.comment import comment_markdown
from epbench.report.gate.judging import gate_ab, gate_baseline, gate_runs
from epbench.report.gate.junit import junit_xml
from epbench.report.gate.step_summary import append_summary, summary_markdown
from epbench.report.gate.words import ATTENTION, CHANGES, parse_fail_on
from epbench.store import RunDirectory, open_run, write_record
from epbench.wording import place, shown
from epbench.writing import replace_file, write_aside, writing

__all__ = ["Gated", "gate", "write_outputs"]


@dataclass(frozen=True)
class Gated:
    """A verdict, the directory that its files are in, and what a person types next."""

    verdict: Verdict
    path: Path
    next_command: str


def gate(run: str, *, baseline: str | None, output: Path | None, fail_on: str) -> Gated:
    """Judge a run, or the arms of an A/B, and write the files.

    Raises ScenarioError for options that cannot be meant, RunError for what cannot be read, NotComparableError, and
    StorageError if a file cannot be written.
    """
    words = parse_fail_on(fail_on)
    if _is_ab(run):
        if baseline is not None:
            raise ScenarioError("an A/B has its own base: give no --baseline with it")
        head, verdict = Path(run), gate_ab(Path(run), fail_on=words)
        further = f"epbench report {head / 'base'} {head / 'head'} --compare"
    else:
        found = open_run(run)
        head, verdict = found.path, _against(found, baseline, words)
        is_bad = verdict.exit_code != 0 or any(cell.word in ATTENTION for cell in verdict.cells)
        is_better = any(cell.word in CHANGES for cell in verdict.cells)
        accept = f"epbench baseline accept {head}{' --reset' * is_better}"
        further = f"epbench report {head}" if is_bad else accept
    path = output or head
    write_outputs(verdict, path)
    return Gated(verdict, path, further)


def _is_ab(run: str) -> bool:
    try:
        return (Path(run) / AB_FILE).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _against(run: RunDirectory, baseline: str | None, words: frozenset[str]) -> Verdict:
    head = run.path
    if baseline is None:
        file = baseline_path(run.record)
        if not file.is_file():
            raise ScenarioError(
                f"there is no baseline at '{place(file)}': give --baseline FILE or RUN, or make one with: "
                f"epbench baseline accept {head}"
            )
        return gate_baseline(head, file, fail_on=words)
    if _is_baseline(baseline):
        return gate_baseline(head, Path(baseline), fail_on=words)
    base = open_run(baseline).path
    if base.resolve() == head.resolve():
        raise RunError("a run is compared with itself: give another run, or a baseline file")
    return gate_runs(head, base, fail_on=words)


def _is_baseline(name: str) -> bool:
    try:
        return name.endswith(SUFFIX) or Path(name).is_file()
    except (OSError, ValueError):
        return False


def write_outputs(verdict: Verdict, path: Path) -> None:
    """Write ``verdict.json``, ``junit.xml``, ``summary.md`` and ``comment.md``, and the summary of a CI's step.

    Raises ScenarioError if ``path`` is no directory, StorageError if a file cannot be written.
    """
    with writing(path):
        is_file = path.exists() and not path.is_dir()
    if is_file:
        raise ScenarioError(f"--output names a directory to write into, and {shown(str(path))} is a file")
    write_record(path / "verdict.json", verdict)
    replace_file(path / "junit.xml", junit_xml(verdict))
    for name, text in (("summary.md", summary_markdown(verdict)), ("comment.md", comment_markdown(verdict))):
        replace_file(path / name, text.encode("utf-8", "replace"))
    full = append_summary(verdict)
    if full:
        write_aside(f"warning: {full}")
