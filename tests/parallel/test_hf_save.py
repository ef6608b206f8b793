"""What four ranks write is a checkpoint, for us and for transformers; what broke off is none. The example runs."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from epbench.errors import CheckpointError
from epbench.hf_config import INDEX, model_spec
from epbench.layout import Layout
from epbench.model.decoder import Decoder
from epbench.model.hf_weights import load_hf_weights
from epbench.parallel.hf_stream import save_hf_weights
from tests.checkpoints import SMALL, bits, build_on_rank, filled, published_model, read_all, write_random_bits
from tests.ranks import run_on_ranks

SHARD_BYTES = 16_000
LAYOUT = Layout(dp_shard=2, tp=2, ep=2)
PAGE = Path(__file__).parents[2] / "docs" / "weights.md"


def _same_bits(one: Path, other: Path) -> bool:
    left, right = read_all(one), read_all(other)
    return left.keys() == right.keys() and all(torch.equal(bits(left[name]), bits(right[name])) for name in left)


def _save_twice(checkpoint: Path, directory: Path) -> str | None:
    model = build_on_rank(LAYOUT, model_spec(checkpoint))
    save_hf_weights(model, directory, shard_bytes=SHARD_BYTES)
    try:
        save_hf_weights(model, directory, shard_bytes=SHARD_BYTES)
    except CheckpointError as error:
        return str(error)
    return None


def test_four_ranks_write_a_checkpoint_with_the_same_bits_and_never_over_one(tmp_path: Path) -> None:
    source, target = write_random_bits(tmp_path / "source", SMALL), tmp_path / "written" / "here"
    refusals = run_on_ranks(4, _save_twice, source, target)
    assert refusals[0] == f"{target}: holds a checkpoint already; remove it, or write elsewhere"
    assert set(refusals[1:]) == {"rank 0 cannot write the checkpoint; its message says why"}

    assert _same_bits(source, target)
    origin = {"preset": target.name, "checkpoint": str(target)}
    assert model_spec(target) == model_spec(source).model_copy(update=origin)
    files = sorted(path for path in target.glob("*.safetensors"))
    assert len(files) > 2
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    index = json.loads((target / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(whole.nbytes for whole in read_all(source).values())
    assert {target / name for name in index["weight_map"].values()} == set(files)


def test_a_place_that_cannot_be_looked_at_is_refused_before_anything_is_gathered(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be made: file name too long"):
        save_hf_weights(filled(SMALL), tmp_path / ("n" * 300), shard_bytes=SHARD_BYTES)


def test_what_broke_off_is_no_checkpoint_and_can_be_written_again(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def full_disk(tensors: Any, path: Path, **how: Any) -> None:
        if path.name.startswith("model-00002"):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **how)

    model = filled(SMALL)
    with patch("safetensors.torch.save_file", full_disk), pytest.raises(CheckpointError, match="No space left"):
        save_hf_weights(model, tmp_path, shard_bytes=SHARD_BYTES)
    assert (tmp_path / next(path.name for path in tmp_path.glob("model-00001*"))).exists()
    with pytest.raises(CheckpointError):
        load_hf_weights(Decoder(SMALL), tmp_path)

    save_hf_weights(model, tmp_path, shard_bytes=SHARD_BYTES)
    load_hf_weights(read := Decoder(SMALL), tmp_path)
    assert all(torch.equal(param, read.get_parameter(name)) for name, param in model.named_parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_what_we_write(tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen3MoeForCausalLM

    spec = SMALL.model_copy(update={"tie_word_embeddings": tied})
    theirs = published_model(tmp_path / "theirs", spec)
    ours = Decoder(spec)
    load_hf_weights(ours, tmp_path / "theirs")
    save_hf_weights(ours, tmp_path / "ours", shard_bytes=SHARD_BYTES)
    assert _same_bits(tmp_path / "ours", tmp_path / "theirs")

    back = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    expected = theirs.state_dict()
    assert back.keys() == expected.keys()
    assert [name for name in back if not torch.equal(back[name], expected[name])] == []


def _example(directory: str, checkpoint: Path, target: Path) -> tuple[int, set[torch.dtype]]:
    sys.path.insert(0, directory)
    import sync_weights  # type: ignore[import-not-found]

    model = sync_weights.load(checkpoint, "tp2-ep2", torch.device("cpu"))
    taken: dict[str, torch.dtype] = {}
    sync_weights.publish(model, lambda bucket: taken.update((name, x.dtype) for name, x in bucket), target)
    assert dist.get_world_size() == 4
    return len(taken), set(taken.values())


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    source = write_random_bits(tmp_path / "source", SMALL)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "sync_weights.py").write_text(block, encoding="utf-8")
    answers = run_on_ranks(4, _example, str(tmp_path), source, tmp_path / "target")
    assert answers == [(len(read_all(source)), {torch.bfloat16})] * 4
    assert _same_bits(source, tmp_path / "target")
