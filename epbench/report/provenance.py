"""What a run depends on: what was asked, on which machine, with which software, and what differs from another run's."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from epbench.analysis.noise import MachineStart, machine_start, machine_starts
from epbench.records import EnvironmentRecord, RunView, Sitting
from epbench.report.text import clean, gib, join, number

__all__ = ["Difference", "environment_rows", "provenance_diff", "provenance_rows"]

Rows = tuple[tuple[str, str], ...]  # (what, text)
_NOT_SET = "not set"
_DIGEST = 12  # characters of one that are shown where two are compared


@dataclass(frozen=True)
class Difference:
    """One thing that two runs do not share, with its text in either."""

    what: str
    reference: str
    here: str


def environment_rows(view: RunView) -> Rows:
    """The machine in short: what stands under the verdict."""
    machine = view.environment
    memory = f", {gib(machine.device_memory_bytes)} GiB" if machine.device_memory_bytes else ""
    return (
        ("device", f"{machine.world_size} x {clean(machine.device_name)}{memory}"),
        ("torch", clean(machine.torch)),
        ("started", clean(view.run.started)),
        ("protocol", str(view.protocol)),
    )


def provenance_rows(view: RunView) -> Rows:
    """What is needed to run it again and to know whether two runs may be compared."""
    machine, run = view.environment, view.run
    versions = (f"{name} {clean(text)}" for name, text in _versions(machine).items() if text)
    variables = (f"{clean(name, 60)}={clean(value, 120)}" for name, value in machine.variables.items())
    return (
        ("run", clean(run.name)),
        ("command", clean(shlex.join(run.command), 1000)),
        ("scenario", f"{clean(run.scenario_path)}, digest {clean(run.scenario_digest)}"),
        ("started", clean(run.started)),
        ("device", f"{clean(machine.device_name)} ({clean(run.device_reason)})"),
        *_starts(view),
        ("versions", ", ".join(versions)),
        ("variables", ", ".join(variables) or "none that changes results"),
        ("epbench code", clean(machine.code)),
        ("environment digest", clean(machine.digest)),
        ("protocol", f"{view.protocol} (results of different protocols are never compared)"),
        ("schema", str(run.schema_version)),
        *((f"sitting {at}", _sitting(one)) for at, one in enumerate(run.sittings, start=1)),
    )


def _versions(machine: EnvironmentRecord) -> Mapping[str, str | None]:
    return {
        "torch": machine.torch,
        "CUDA": machine.cuda,
        "NCCL": machine.nccl,
        "driver": machine.driver,
        "Python": machine.python,
    }


def _starts(view: RunView) -> Iterator[tuple[str, str]]:
    """On which machines the launches ran; nothing where no launch says so."""
    launches = [launch for cell in view.cells for launch in cell.launch_values]
    part_of = machine_starts(launches)
    counts = Counter(_start(part_of[start]) for start in map(machine_start, launches) if any(start))
    if counts:
        texts = (f"{text}: {count} launch{'es' if count > 1 else ''}" for text, count in counts.items())
        yield "machine starts", "; ".join(texts)


def _start(start: MachineStart, characters: int = 8) -> str:
    """Hosts and GPUs, so many characters of each GPU's name."""
    names, gpus = start
    on = f" with {join([clean(gpu)[:characters] for gpu in gpus])}" if gpus else ""
    return f"{join([clean(name, 60) for name in names]) if names else 'a host without a name'}{on}"


def _sitting(sitting: Sitting) -> str:
    """When it began and what its time went to; one that was cut off has no such account."""
    head = f"began {clean(sitting.started, 60)}"
    if not sitting.spent_s:
        return f"{head}; what it spent is not recorded, as it was cut off or is still running"
    parts = [f"{clean(what, 60).replace('_', ' ')} {number(seconds)} s" for what, seconds in sitting.spent_s.items()]
    return f"{head}; took {number(sum(sitting.spent_s.values()))} s: {', '.join(parts)}"


def provenance_diff(view: RunView, reference: RunView) -> tuple[Difference, ...]:
    """Each thing in which two runs' protocols, scenarios and environments differ, named; empty if in nothing.

    Where launches of both name their hosts, a machine start that only one of the runs had is a difference too, the last
    one; times are none.
    """
    here, there = (dict(_compared(one)) for one in (view, reference))
    names = dict.fromkeys([*here, *there])
    pairs = ((what, there.get(what, _NOT_SET), here.get(what, _NOT_SET)) for what in names)
    asked = (Difference(what, *_told_apart(old, new)) for what, old, new in pairs if old != new)
    return (*asked, *_other_start(view, reference))


def _other_start(view: RunView, reference: RunView) -> Iterator[Difference]:
    """Nothing where the runs had the same machine starts, or the launches of one do not name theirs."""
    here, there = ([one for cell in run.cells for one in cell.launch_values] for run in (view, reference))
    part_of = machine_starts([*there, *here])
    new, old = (
        dict.fromkeys(part_of[start] for start in map(machine_start, launches) if any(start))
        for launches in (here, there)
    )
    if old and new and set(old) != set(new):
        short, whole = (
            tuple("; ".join(_start(start, characters) for start in starts) for starts in (old, new))
            for characters in (8, 200)
        )
        yield Difference("machine start", *_told_apart(*(short if short[0] != short[1] else whole)))


def _compared(view: RunView) -> Iterator[tuple[str, str]]:
    """Every compared thing by its name, with its whole text."""
    machine, run = view.environment, view.run
    yield "protocol", str(view.protocol)
    yield "schema", str(run.schema_version)
    yield "scenario", run.scenario_path
    yield "scenario digest", run.scenario_digest
    yield "device", machine.device_name
    yield "kind of device", machine.device
    yield "device memory, GiB", _NOT_SET if machine.device_memory_bytes is None else gib(machine.device_memory_bytes)
    yield "ranks", str(machine.world_size)
    yield from ((name, text or _NOT_SET) for name, text in _versions(machine).items())
    yield "epbench code", machine.code
    yield from ((f"variable {clean(name, 60)}", value) for name, value in machine.variables.items())


def _told_apart(old: str, new: str) -> tuple[str, str]:
    """Two different texts, short; whole ones where their beginnings are the same."""
    short = (clean(old, 60), clean(new, 60))
    if all(_is_digest(text) for text in (old, new)) and old[:_DIGEST] != new[:_DIGEST]:
        return old[:_DIGEST], new[:_DIGEST]
    return short if short[0] != short[1] else (clean(old, 1000), clean(new, 1000))


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
