"""Batches: next tokens as labels, documents that end, and token files read in order, or refused in a sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epbench.cells import Cell, TrainSpec
from epbench.errors import ScenarioError
from epbench.layout import Layout
from epbench.packing import cumulative_lengths, document_lengths
from epbench.runner.verify import shrink
from epbench.scenario import load_scenario
from epbench.stacks.data import batches

CPU = torch.device("cpu")
STEPS, ROWS, SEQ_LEN = 3, 2, 64


def _cell(layout: str = "dp1", **train: object) -> Cell:
    settings = {"seq_len": SEQ_LEN, "global_batch_size": ROWS, **train}
    layouts = {"dp1": Layout(), "cp2-dp2": Layout(cp=2, dp_shard=2)}
    return Cell(layout=layouts[layout], train=TrainSpec().model_copy(update=settings))


def _token_file(directory: Path, tokens: Any) -> Path:
    np.save(directory / "tokens.npy", tokens)
    return directory / "tokens.npy"


def test_random_tokens_and_their_labels_depend_on_seed_and_step_only() -> None:
    first, again = batches(_cell(), STEPS, CPU), batches(_cell("cp2-dp2"), STEPS, CPU)
    assert all(
        torch.equal(a.tokens, b.tokens) and torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].tokens, first[1].tokens)
    assert not torch.equal(first[0].tokens, batches(_cell(seed=1), 1, CPU)[0].tokens)
    for batch in first:
        assert torch.equal(batch.labels[:, :-1], batch.tokens[:, 1:])
        assert batch.cu_seqlens is None


def test_packing_cuts_the_same_tokens_and_drops_the_label_of_each_last_one() -> None:
    plain, packed = batches(_cell(), STEPS, CPU), batches(_cell(packing="lognormal"), STEPS, CPU)
    for step, (whole, cut) in enumerate(zip(plain, packed, strict=True)):
        rows = [document_lengths(seq_len=SEQ_LEN, seed=0, step=step, row=row) for row in range(ROWS)]
        assert cut.cu_seqlens is not None
        assert cut.cu_seqlens.dtype == torch.int32
        assert cut.cu_seqlens.tolist() == [cumulative_lengths(row, seq_len=SEQ_LEN) for row in rows]
        last = torch.zeros(ROWS, SEQ_LEN, dtype=torch.bool)
        for row, lengths in enumerate(rows):
            last[row, np.cumsum(lengths) - 1] = True
        assert torch.equal(cut.tokens, whole.tokens)
        assert torch.equal(cut.labels, whole.labels.masked_fill(last, -100))


def test_a_token_file_is_read_in_order_and_begins_again_at_its_end(tmp_path: Path) -> None:
    """300 tokens, 128 a step: the third step meets the end."""
    path = _token_file(tmp_path, np.arange(300, dtype=np.uint16))
    read = batches(_cell(data=str(path)), STEPS, CPU)
    tokens = torch.cat([batch.tokens.flatten() for batch in read])
    labels = torch.cat([batch.labels.flatten() for batch in read])
    assert tokens.tolist() == [index % 300 for index in range(STEPS * ROWS * SEQ_LEN)]
    assert labels.tolist() == [(index + 1) % 300 for index in range(STEPS * ROWS * SEQ_LEN)]
    packed = batches(_cell(data=str(path), packing="lognormal"), STEPS, CPU)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(read, packed, strict=True))


def test_verification_leaves_the_file_for_random_tokens_and_keeps_the_packing() -> None:
    small = shrink(_cell(data="/data/tokens.npy", packing="lognormal")).train
    assert (small.data, small.packing) == ("random", "lognormal")


# ---- as a scenario names them ----


def _scenario(directory: Path, data: str) -> Path:
    text = f"""
        schema = 1
        name = "file"
        world_size = 2
        [train]
        seq_len = {SEQ_LEN}
        data = "{data}"
        packing = "lognormal"
        [matrix]
        layout = ["dp2", "cp2"]
    """
    (directory / "file.toml").write_text(text)
    return directory / "file.toml"


def test_a_scenario_names_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _token_file(tmp_path, np.arange(400, dtype=np.int64))
    monkeypatch.chdir("/")
    cells = load_scenario(_scenario(tmp_path, "tokens.npy")).cells
    assert [cell.train.data for cell in cells] == [str(path.resolve())] * 2
    assert batches(cells[0], 1, CPU)[0].tokens[0].tolist() == list(range(SEQ_LEN))


def _text(path: Path) -> None:
    path.write_text("1 2 3")


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, tokens=np.arange(400))


def _cut_short(path: Path) -> None:
    np.save(path, np.arange(400))
    path.write_bytes(path.read_bytes()[:-8])


def _header(text: str) -> Callable[[Path], object]:
    """A file with this header (format version 1) and a few bytes behind it."""
    header = f"{text:<117}\n".encode()
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))


def _length(count: int) -> Callable[[Path], object]:
    return _header(str({"descr": "<i8", "fortran_order": False, "shape": (count,)}))


def _array(tokens: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, tokens)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda _: None, "cannot be read: no such file or directory"),
    "a directory": (lambda path: path.mkdir(), "cannot be read: is a directory"),
    "text": (_text, "is not a NumPy array of token ids"),
    "an empty file": (lambda path: path.touch(), "is not a NumPy array of token ids"),
    "a file cut short": (_cut_short, "is not a NumPy array of token ids"),
    "objects": (_array(np.array([{}] * 400)), "is not a NumPy array of token ids"),
    "an archive": (_archive, "is not a NumPy array of token ids"),
    "floats": (_array(np.ones(400)), "token ids must be one dimension of integers, not 1 dimensions of float64"),
    "a matrix": (_array(np.ones((20, 20), dtype=int)), "token ids must be one dimension of integers, not 2"),
    "too few tokens": (_array(np.arange(SEQ_LEN)), "has 64 tokens; a sequence of 64 tokens and its last label need 65"),
    "a header that is no Python": (_header("{'descr': '<i8', 'shape': (((("), "is not a NumPy array of token ids"),
    "a length that no file has": (_length(2**63 - 1), "is not a NumPy array of token ids"),
    "a length that no number counts": (_length(10**25), "is not a NumPy array of token ids"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read: too many levels of symbolic links"),
    "an id beyond the vocabulary": (
        _array(np.arange(200, 600)),
        "has token id 599; the model's vocabulary is 0 to 511",
    ),
    "a negative id": (_array(np.arange(-1, 400)), "has token id -1; the model's vocabulary is 0 to 511"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_refused_by_the_plan_in_one_sentence(case: str, tmp_path: Path) -> None:
    write, sentence = BAD[case]
    write(tmp_path / "tokens.npy")
    with pytest.raises(ScenarioError) as refused:
        load_scenario(_scenario(tmp_path, "tokens.npy"))
    assert "\n" not in str(refused.value)
    assert f"train.data: {tmp_path.resolve() / 'tokens.npy'}: {sentence}" in str(refused.value)


def test_a_file_of_many_cells_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _token_file(tmp_path, np.arange(400, dtype=np.int64))
    seen: list[Path] = []
    monkeypatch.setattr("epbench.scenario_cells.check_token_file", lambda path, **_: seen.append(path))
    assert len(load_scenario(_scenario(tmp_path, "tokens.npy")).cells) == 2
    assert seen == [tmp_path.resolve() / "tokens.npy"]
