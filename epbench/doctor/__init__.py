"""``epbench doctor``: can this machine measure, and what would make its numbers doubtful.

:mod:`epbench.doctor.machine` reads the machine into plain values; the checks of GPUs, software and host are
functions of those. A check that fails means that no number of this machine is worth having; a warning means that a
report would carry it; unknown means that the system does not tell. ``epbench run`` makes all but the slow ones
before it launches on GPUs.
"""

from collections.abc import Sequence
from pathlib import Path

from epbench.doctor.gpus import gpu_checks
from epbench.doctor.host import host_checks
from epbench.doctor.machine import Machine, Wanted, read_machine
from epbench.doctor.software import software_checks
from epbench.errors import UnfitMachineError
from epbench.records import MachineCheck

__all__ = ["Wanted", "check_before_run", "examine", "exit_code", "read_machine", "render_checks", "wanted_of"]

_WIDTH = 110


def examine(machine: Machine) -> list[MachineCheck]:
    """All checks of what was read, the scenario's first."""
    scenario = [] if machine.wanted is None else [_scenario(machine.wanted)]
    return [*scenario, *gpu_checks(machine), *software_checks(machine), *host_checks(machine)]


def wanted_of(name: str, cells: int, *, world_size: int, device: str, stacks: Sequence[str] = ()) -> Wanted:
    """What a scenario needs, and the device that this machine would give it."""
    from epbench.provenance import choose_device
    from epbench.stack_support import require_installed

    try:
        require_installed(stacks)
        chosen, reason = choose_device(device, world_size)
    except UnfitMachineError as error:
        return Wanted(name, cells, world_size, device=None, reason=str(error))
    return Wanted(name, cells, world_size, device=chosen, reason=reason)


def _scenario(wanted: Wanted) -> MachineCheck:
    asked = f"{wanted.name}: {wanted.cells} cells on up to {wanted.world_size} ranks"
    if wanted.device is None:
        fix = "another machine, --device cpu, or --world N"
        return MachineCheck(name="scenario", status="fail", found=f"{asked}; {wanted.reason}", fix=fix)
    return MachineCheck(name="scenario", status="ok", found=f"{asked} would run on {wanted.device} ({wanted.reason})")


def check_before_run(reports_dir: Path) -> list[MachineCheck]:
    """The checks that take no more than some tenths of a second: all but torch's import.

    Raises UnfitMachineError, with every reason and fix, when this machine cannot be measured.
    """
    checks = examine(read_machine([reports_dir], with_software=False))
    failed = [f"{check.name}: {check.found} ({check.fix})" for check in checks if check.status == "fail"]
    if failed:
        raise UnfitMachineError(f"this machine cannot be measured: {'; '.join(failed)}; see epbench doctor")
    return checks


def exit_code(checks: Sequence[MachineCheck], *, strict: bool) -> int:
    """0, or 6 where a check failed; with ``strict`` a warning is a failure. What is unknown is neither."""
    bad = {"fail", "warn"} if strict else {"fail"}
    return UnfitMachineError.exit_code if any(check.status in bad for check in checks) else 0


def render_checks(checks: Sequence[MachineCheck]) -> str:
    """A table as plain text, each fix under its finding, and a sentence that sums up."""
    import textwrap

    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        head = f"{check.status:<7}  {check.name:<{width}}  "
        text = [check.found, *([f"-> {check.fix}"] if check.fix else [])]
        wrapped = [line for part in text for line in textwrap.wrap(part, _WIDTH - len(head)) or [""]]
        lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn", "unknown", "ok")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    verdict = "not fit to measure" if counts["fail"] else "fit to measure, with doubts" if counts["warn"] else "fit"
    return "\n".join([*lines, "", f"This machine is {verdict}: {told}."])
