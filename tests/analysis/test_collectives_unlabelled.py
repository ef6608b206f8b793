"""Collectives of hand-made traces that have no label of ours, and traces that cannot be used."""

from pathlib import Path

import pytest

from epbench.analysis.collectives import collective_rows
from epbench.errors import RunError
from tests.analysis.handmade import US, Trace, label, only_row, write

# ---------------------------------------------------------------- gloo, unlabelled


def test_fsdp_operators_on_gloo_are_read_by_their_shapes(tmp_path: Path) -> None:
    traces = []
    for rank, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        late = 5 * (rank > 1)
        trace = Trace(rank, world_size=4).group("mesh_efsdp", *sorted((rank, other))).step(0, 200)
        trace.annotate("FSDP::post_backward_reduce (layers.0.mlp.experts)", 10, 90)
        trace.operator("_reduce_scatter_base_", 15, 20, [[256], [512], []]).gloo("all_reduce", 20 + late, 60)
        traces.append(trace)
    row = only_row(tmp_path, *traces)
    assert (row.op, row.purpose, row.phase, row.axis) == ("reduce_scatter", "fsdp", "backward", "efsdp")
    assert row.bytes == 2048
    assert row.transfer_s == pytest.approx(35 * US)
    assert row.wait_s == pytest.approx(5 * US)


def test_a_gather_over_the_world_needs_no_named_group(tmp_path: Path) -> None:
    traces = [
        Trace(rank)
        .step(0, 100)
        .annotate("FSDP::all_gather (layers.0)", 5, 60)
        .operator("_allgather_base_", 10, 12, [[1024], [512], []])
        .gloo("all_gather", 20 + 10 * rank, 50)
        for rank in (0, 1)
    ]
    row = only_row(tmp_path, *traces)
    assert (row.phase, row.axis, row.bytes) == ("forward", "fsdp", 4096)
    assert row.transfer_s == pytest.approx(20 * US)


def test_a_gradient_that_dtensor_redistributes_is_not_fsdps(tmp_path: Path) -> None:
    traces = [
        Trace(rank)
        .step(0, 100)
        .annotate("FSDP::post_backward_reshard (layers.0)", 5, 60)
        .operator("allreduce_", 10, 12, [[[64]], []], dtype="TensorList")
        .gloo("all_reduce", 20, 50, dtype="float")
        for rank in (0, 1)
    ]
    row = only_row(tmp_path, *traces)
    assert (row.purpose, row.phase, row.axis) == ("other", "backward", "unknown")
    assert row.bytes == 256


def test_an_operator_inside_a_label_is_not_counted_again(tmp_path: Path) -> None:
    traces = [
        Trace(rank)
        .step(0, 100)
        .annotate(label(), 5, 60)
        .operator("alltoall_base_", 10, 12, [[250], [250]])
        .gloo("all_to_all", 15, 50)
        for rank in (0, 1)
    ]
    assert only_row(tmp_path, *traces).purpose == "dispatch"


def test_a_transfer_in_flight_is_not_taken_for_the_labelled_one(tmp_path: Path) -> None:
    """FSDP2's prefetched gather runs while the stack's all-to-all does."""
    traces = [
        Trace(rank)
        .step(0, 100)
        .annotate("FSDP::all_gather (layers.1)", 0, 4)
        .operator("_allgather_base_", 1, 2, [[1024], [512], []])
        .annotate(label(), 5, 60)
        .gloo("all_gather", 6, 40)
        .gloo("all_to_all", 45, 55, tid=301)
        for rank in (0, 1)
    ]
    rows = {row.op: row for row in collective_rows(write(tmp_path, *traces), steps=1)}
    assert rows["all_gather"].transfer_s == pytest.approx(34 * US)
    assert rows["all_to_all"].transfer_s == pytest.approx(10 * US)


def test_without_a_known_group_the_shortest_duration_is_the_bound(tmp_path: Path) -> None:
    traces = [
        Trace(rank).step(0, 100).operator("allreduce_", 10, 12, [[[8], [8]]]).gloo("all_reduce", 20 - rank, 50)
        for rank in (0, 1)
    ]
    row = only_row(tmp_path, *traces)
    assert (row.purpose, row.axis, row.busbw_bytes_per_s) == ("other", "unknown", None)
    assert row.transfer_s == pytest.approx(30 * US)


# ---------------------------------------------------------------- what cannot be used is said


def test_no_trace_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trace"):
        collective_rows(tmp_path, steps=1)


def test_a_missing_rank(tmp_path: Path) -> None:
    write(tmp_path, *(Trace(rank, world_size=4).step(0, 9) for rank in (0, 3)))
    with pytest.raises(RunError, match="rank 1, 2"):
        collective_rows(tmp_path, steps=1)


def test_a_trace_without_its_steps(tmp_path: Path) -> None:
    write(tmp_path, Trace(0).step(0, 9), Trace(1))
    with pytest.raises(RunError, match="rank 1 holds 0 steps, not 1"):
        collective_rows(tmp_path, steps=1)


def test_ranks_that_did_not_make_the_same_calls(tmp_path: Path) -> None:
    write(
        tmp_path,
        Trace(0).step(0, 99).annotate(label(), 1, 2).annotate(label(), 3, 4),
        Trace(1).step(0, 99).annotate(label(), 1, 2),
    )
    with pytest.raises(RunError, match=r"dispatch .* rank 0 made 2 calls and rank 1 1"):
        collective_rows(tmp_path, steps=1)


def test_a_group_of_which_a_rank_is_silent(tmp_path: Path) -> None:
    write(tmp_path, Trace(0).step(0, 99).annotate(label(), 1, 2), Trace(1).step(0, 99))
    with pytest.raises(RunError, match="1 of 2 ranks"):
        collective_rows(tmp_path, steps=1)


@pytest.mark.parametrize("content", [b"", b"not gzip", b"\x1f\x8b\x08"])
def test_a_torn_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rank-0.json.gz").write_bytes(content)
    with pytest.raises(RunError, match="not a readable trace"):
        collective_rows(tmp_path, steps=1)


def test_a_label_that_makes_no_sense(tmp_path: Path) -> None:
    write(tmp_path, Trace(0, world_size=1).step(0, 9).annotate("comm:<script>", 1, 2))
    with pytest.raises(RunError, match="makes no sense"):
        collective_rows(tmp_path, steps=1)


def test_a_step_without_collectives_has_no_rows(tmp_path: Path) -> None:
    assert collective_rows(write(tmp_path, Trace(0, world_size=1).step(0, 9)), steps=1) == []
