"""What the traces of one launch tell, read once for all of it, and one merged trace for people.

A trace that cannot be read is no reason to lose the step time: the launch keeps it, with a note that says why it
has no collectives and no breakdown.
"""

import shutil
from typing import Any

from epbench.errors import RunError
from epbench.runner.spec import LaunchSpec

__all__ = ["TRACED_TIMES", "traced"]

# Of the launch's value; the rest is of its record.
TRACED_TIMES = ("device_work_s", "device_work_sd_s", "kernel_union_s", "exposed_s", "transfers_s")


def traced(spec: LaunchSpec) -> dict[str, Any]:
    """Fields of a launch's record, and the value's (``TRACED_TIMES``); only a ``note`` if the traces cannot be used.

    Also writes ``trace.json.gz`` beside the cell's launches, of the last launch that was looked at closely, which is
    the first one that is valid. The traces of other launches are deleted once they are read.
    """
    from epbench.analysis.breakdown import device_time_of
    from epbench.analysis.collectives import clock_note, match, rows_of
    from epbench.analysis.merged import rank_name, write_merged
    from epbench.analysis.reading import read_traces

    steps = spec.measure.trace_steps
    try:
        traces = read_traces(spec.trace_directory, steps=steps)
        found = match(traces)
        device = device_time_of(traces, steps=steps, found=found)
        rows = rows_of(traces, steps=steps, found=found)
        if spec.detailed:
            names = [rank_name(trace.rank, spec.cell.layout) for trace in traces]
            write_merged(traces, spec.directory.parent / "trace.json.gz", names=names)
        else:
            shutil.rmtree(spec.trace_directory)
    except RunError as error:
        return {"note": f"no collectives: {error}"}
    return {
        "collectives": rows,
        "breakdown": device.breakdown,
        "breakdown_per_rank": list(device.per_rank),
        "kernels_s": device.kernels_s,
        "kernel_count": device.kernel_count,
        "unclassified_share": device.unclassified_share,
        "note": clock_note(traces, found),
        "device_work_s": device.device_work_s,
        "device_work_sd_s": device.device_work_sd_s,
        "kernel_union_s": device.kernel_union_s,
        "exposed_s": device.breakdown.exposed,
        "transfers_s": {f"{row.op}/{row.purpose}/{row.phase}/{row.axis}": row.transfer_s for row in rows},
    }
