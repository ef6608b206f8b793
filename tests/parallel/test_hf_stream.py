"""Files -> shards -> files, bit for bit, on one rank and on four; what is read, what is held, who can consume it.

The weights are random bits, NaNs with payloads, infinities and -0.0 among them: a sum of floats on the way, or a
wrong shard, cannot pass.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from epbench.hf_config import model_spec
from epbench.layout import Layout
from epbench.model.decoder import Decoder
from epbench.model.hf_names import hf_order
from epbench.model.hf_weights import load_hf_weights
from epbench.parallel.hf_stream import Bucket, stream_hf_weights
from tests.checkpoints import SMALL, bits, build_on_rank, filled, read_all, write_random_bits
from tests.ranks import run_on_ranks

BUCKET_BYTES = 16_000  # the embedding has 12288
LAYOUTS = {
    "dp4": Layout(dp_shard=4),
    "dp4-ep4, no FSDP of experts": Layout(dp_shard=4, ep=4),
    "dp2-tp2-ep2": Layout(dp_shard=2, tp=2, ep=2),
    "dp2-tp2-etp2": Layout(dp_shard=2, tp=2, etp=2),
    "dp2-tp2-ep2-etp2": Layout(dp_shard=2, tp=2, ep=2, etp=2),
    "rep2-dp2-ep2": Layout(dp_replicate=2, dp_shard=2, ep=2),
    "rep2-tp2, pieces held four times": Layout(dp_replicate=2, tp=2),
    "cp2-tp2-ep2": Layout(cp=2, tp=2, ep=2),
}
WIDE_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}  # fewer than efsdp x ep: FSDP cuts their width


class Trip(NamedTuple):
    """What one rank saw on the way from files to shards to whole tensors."""

    read_bytes: int
    held_bytes: int
    names: list[str]
    wrong: list[str]
    largest_bucket: int


def _counting(read: list[int]) -> Callable[..., Any]:
    """``safe_open`` that gives slices only, and notes the bytes of each."""
    from safetensors import safe_open

    class Slice:
        def __init__(self, part: Any) -> None:
            self.get_shape, self.get_dtype, self._part = part.get_shape, part.get_dtype, part

        def __getitem__(self, index: Any) -> Tensor:
            piece: Tensor = self._part[index]
            read.append(piece.nbytes)
            return piece

    class File:
        def __init__(self, path: Path, framework: str) -> None:
            self._file: Any = safe_open(path, framework=framework)
            self.keys = self._file.keys

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *_: object) -> None: ...

        def get_slice(self, name: str) -> Slice:
            return Slice(self._file.get_slice(name))

    return File


def _trip(layout: Layout, directory: Path) -> Trip:
    """Reads a checkpoint into a layout and compares the stream with the files."""
    read: list[int] = []
    with patch("epbench.model.hf_weights.safe_open", _counting(read)):
        model = build_on_rank(layout, model_spec(directory))
    held = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    files, names, wrong, largest = read_all(directory), [], [], 0
    for bucket in stream_hf_weights(model, BUCKET_BYTES):
        names += [name for name, _ in bucket]
        wrong += [name for name, whole in bucket if not torch.equal(bits(whole), bits(files[name]))]
        largest = max(largest, sum(whole.nbytes for _, whole in bucket))
    return Trip(sum(read), sum(part.nbytes for part in held), names, wrong, largest)


def _trips(directories: dict[str, Path]) -> dict[str, Trip]:
    trips = {name: _trip(layout, directories["small"]) for name, layout in LAYOUTS.items()}
    trips["experts cut on their width"] = _trip(Layout(dp_shard=4, ep=2), directories["wide"])
    trips["tied embeddings"] = _trip(Layout(dp_shard=4, ep=2), directories["tied"])
    return trips


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sizes: dict[str, dict[str, Any]] = {"small": {}, "wide": WIDE_EXPERTS, "tied": {"tie_word_embeddings": True}}
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: write_random_bits(root / name, SMALL.model_copy(update=each)) for name, each in sizes.items()}


def test_every_layout_gives_the_files_back_and_reads_only_what_it_keeps(directories: dict[str, Path]) -> None:
    ranks: list[dict[str, Trip]] = run_on_ranks(4, _trips, directories)
    assert len(ranks[0]) == len(LAYOUTS) + 2
    for case in ranks[0]:
        files = read_all(
            directories[{"tied embeddings": "tied", "experts cut on their width": "wide"}.get(case, "small")]
        )
        trips = [rank[case] for rank in ranks]
        for trip in trips:
            assert trip.wrong == [], f"{case}: other bits in {trip.wrong}"
            assert trip.names == sorted(files, key=hf_order), case
            assert trip.read_bytes == trip.held_bytes, f"{case}: read {trip.read_bytes}, kept {trip.held_bytes}"
            assert trip.largest_bucket <= BUCKET_BYTES, case
        total = sum(whole.nbytes for whole in files.values())
        assert max(trip.read_bytes for trip in trips) < 0.75 * total, f"{case}: nobody reads it all"


def test_one_rank_without_a_process_group_gives_the_files_back(directories: dict[str, Path]) -> None:
    model = Decoder(SMALL)
    load_hf_weights(model, directories["small"])
    files = read_all(directories["small"])
    streamed = dict(pair for bucket in stream_hf_weights(model, BUCKET_BYTES) for pair in bucket)
    assert streamed.keys() == files.keys()
    assert all(torch.equal(bits(whole), bits(files[name])) for name, whole in streamed.items())


def test_a_tensor_larger_than_a_bucket_is_refused_by_name_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight has 12288 bytes, which no bucket of 12287"):
        stream_hf_weights(Decoder(SMALL), 12_287)
    assert list(stream_hf_weights(Decoder(SMALL).requires_grad_(False), 12_288))


def test_streamed_weights_are_cast_where_asked() -> None:
    model = filled(SMALL)
    narrow = dict(pair for bucket in stream_hf_weights(model, 6_144, dtype=torch.bfloat16) for pair in bucket)
    assert torch.equal(narrow["lm_head.weight"], model.head.weight.bfloat16())
    down = "model.layers.1.mlp.experts.11.down_proj.weight"
    assert torch.equal(narrow[down], model.get_parameter("layers.1.moe.experts.w2")[11].bfloat16())


def test_correction_biases_and_shared_experts_are_streamed_too() -> None:
    """A consumer without the biases routes otherwise; they stay fp32, whose steps bf16 would swallow."""
    model = filled(SMALL.model_copy(update={"router_bias_update_rate": 1e-3, "n_shared_experts": 1}))
    bias = model.get_buffer("layers.1.moe.router.e_score_correction_bias").normal_()
    pairs = [pair for bucket in stream_hf_weights(model, BUCKET_BYTES, dtype=torch.bfloat16) for pair in bucket]
    streamed = dict(pairs)
    assert torch.equal(streamed["model.layers.1.mlp.gate.e_score_correction_bias"], bias)
    shared = model.get_parameter("layers.1.moe.shared_experts.up_proj.weight")
    assert torch.equal(streamed["model.layers.1.mlp.shared_experts.up_proj.weight"], shared.bfloat16())
    assert len(streamed) == len(pairs)


# ---------------------------------------------------------------- memory


def _risen(take: Callable[[Iterator[Bucket]], object], model: Decoder, directory: str) -> int:
    """How far this rank's allocated memory rose above its start while a stream was taken."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take(stream_hf_weights(model, BUCKET_BYTES))
    path = Path(directory) / f"memory-{dist.get_rank()}.json"
    profiler.export_chrome_trace(str(path))
    return _peak_over_start(json.loads(path.read_bytes())["traceEvents"])


def _peak_over_start(trace: list[dict[str, Any]]) -> int:
    """Bytes, from the profiler's running total, which knows of a block that another thread freed by its next event."""
    memory = [event for event in trace if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    memory.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    totals: list[int] = [event["args"]["Total Allocated"] for event in memory]
    start: int = totals[0] - memory[0]["args"]["Bytes"]
    return max(totals) - start


def _one_after_the_other(stream: Iterator[Bucket]) -> None:
    for bucket in stream:
        assert bucket


def _peaks(checkpoint: Path, directory: str) -> tuple[int, int]:
    model = build_on_rank(LAYOUTS["dp2-tp2-ep2"], model_spec(checkpoint))
    return _risen(_one_after_the_other, model, directory), _risen(list, model, directory)


def test_a_stream_holds_two_buckets_at_most(directories: dict[str, Path], tmp_path: Path) -> None:
    """The consumer's and the next one; a consumer that keeps all holds all, and is seen to."""
    total = sum(whole.nbytes for whole in read_all(directories["small"]).values())
    for peak, kept in run_on_ranks(4, _peaks, directories["small"], str(tmp_path)):
        assert BUCKET_BYTES < peak <= 2 * BUCKET_BYTES, f"{peak / BUCKET_BYTES:.2f} buckets"
        assert kept >= total, "the measure sees memory that is kept"


# ---------------------------------------------------------------- a consumer


def _consume(pipe: Connection, directory: Path) -> None:
    """A process of its own: takes (name, shape, bytes) until None, answers with what differs from the files."""
    files, wrong, seen = read_all(directory), [], set()
    while (message := pipe.recv()) is not None:
        name, shape, content = message
        expected = bits(files[name])
        got = torch.frombuffer(bytearray(content), dtype=expected.dtype).view(shape)
        seen.add(name)
        wrong += [] if torch.equal(got, expected) else [name]
    pipe.send((wrong, sorted(files.keys() - seen)))


def _send(checkpoint: Path, pipe: Connection) -> None:
    model = build_on_rank(LAYOUTS["dp2-tp2-ep2-etp2"], model_spec(checkpoint))
    for bucket in stream_hf_weights(model, BUCKET_BYTES):
        if dist.get_rank() == 0:
            for name, whole in bucket:
                pipe.send((name, tuple(whole.shape), bits(whole).numpy().tobytes()))
    if dist.get_rank() == 0:
        pipe.send(None)


def test_streamed_weights_reach_a_consumer_process_bit_for_bit(directories: dict[str, Path]) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    consumer = context.Process(target=_consume, args=(theirs, directories["small"]), daemon=True)
    consumer.start()
    try:
        run_on_ranks(4, _send, directories["small"], ours)
        assert ours.poll(60), "the consumer does not answer"
        assert ours.recv() == ([], [])
    finally:
        consumer.kill()
        consumer.join()
