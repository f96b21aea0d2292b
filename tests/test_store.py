"""Files are whole or absent, come back exactly, and whatever is wrong with them is one line."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooklearn import disk, store
from hooklearn.deltas import Delta, load_delta, save_delta
from hooklearn.store import RunFolder, differences, open_run
from hooklearn.types import Cost, InputError, NumericalError, Score

NAN = float("nan")
RECORD = {"name": "tiny", "config": {"seeds": [0], "edit": {"method": "ga", "lr": 1e-4}}}

# Each example writes its own file, so sharing one temporary folder is safe.
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def full_disk(*args: object, **kwargs: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def one_line(info: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(info.value)
    assert "\n" not in text
    return text


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# --- atomic writes --------------------------------------------------------------------------


def test_write_atomic_takes_bytes_and_functions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    disk.write_atomic(path, b"one")
    disk.write_atomic(path, lambda handle: handle.write(b"two"))
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == {"a"}


def test_written_files_have_the_users_usual_permissions(tmp_path: Path) -> None:
    """Not the 0600 of tempfile: others in the group read run folders too."""
    (tmp_path / "plain").write_bytes(b"")
    disk.write_atomic(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "a.json"
    disk.save_json(path, {"old": 1})
    monkeypatch.setattr(os, fault, full_disk)
    with pytest.raises(InputError, match="a.json: No space left on device") as info:
        disk.save_json(path, {"new": 2})
    one_line(info)
    assert disk.load_json(path) == {"old": 1}
    assert names(tmp_path) == {"a.json"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), KeyError()])
def test_a_writer_that_breaks_off_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    disk.write_atomic(path, b"old")

    def half(handle: BinaryIO) -> None:
        handle.write(b"ne")
        raise error

    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        disk.write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


@pytest.fixture
def small_files() -> Iterator[int]:
    """The operating system itself refuses files of more than this many bytes."""
    limit = 4096
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("kind", ["bytes", "json", "lines", "frame", "tensors"])
def test_a_real_write_error_keeps_the_old_file(tmp_path: Path, small_files: int, kind: str) -> None:
    path = tmp_path / "a"
    disk.write_atomic(path, b"old")
    noise = np.random.default_rng(0).random(small_files)
    saves = {
        "bytes": lambda: disk.write_atomic(path, noise.tobytes()),
        "json": lambda: disk.save_json(path, noise),
        "lines": lambda: disk.save_lines(path, [noise, noise]),
        "frame": lambda: disk.save_frame(path, pd.DataFrame({"value": noise})),
        "tensors": lambda: disk.save_tensors(path, {"a": torch.from_numpy(noise)}),
    }
    with pytest.raises(InputError, match="File too large"):
        saves[kind]()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


def test_a_path_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "a"
    for act in (
        lambda: disk.write_atomic(below, b""),
        lambda: disk.load_json(below),
        lambda: disk.load_lines(below),
        lambda: disk.load_frame(below),
        lambda: disk.load_tensors(below),
        lambda: disk.file_hash(below),
        lambda: RunFolder.create(below, RECORD),
        lambda: open_run(below),
    ):
        with pytest.raises(InputError, match="file/a") as info:
            act()
        one_line(info)


@pytest.mark.parametrize("load", [disk.load_json, disk.load_lines, disk.load_frame, disk.load_tensors])
def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path, load: Any) -> None:
    for path, reason in ((tmp_path / "absent", "No such file"), (tmp_path, "")):
        with pytest.raises(InputError, match=reason) as info:
            load(path)
        assert str(path) in one_line(info)


# --- JSON and frames ------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | st.integers() | finite | st.text()
json_values = st.recursive(leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))


@many
@given(value=json_values)
def test_json_comes_back_exactly(tmp_path: Path, value: object) -> None:
    disk.save_json(tmp_path / "a.json", value)
    assert disk.load_json(tmp_path / "a.json") == value


@many
@given(rows=st.lists(json_values, max_size=5))
def test_json_lines_come_back_exactly(tmp_path: Path, rows: list[object]) -> None:
    disk.save_lines(tmp_path / "a.jsonl", rows)
    assert disk.load_lines(tmp_path / "a.jsonl") == rows


def test_not_measured_is_null_never_zero(tmp_path: Path) -> None:
    value = {
        "score": Score(NAN, math.inf, 0),
        "cost": Cost(1.5, 2, 3.0, 4),
        "array": np.array([[1.0, NAN]]),
        "scalar": np.float32(NAN),
        "count": np.int64(3),
        "tensor": torch.tensor([-math.inf, 2.0]),
        "tuple": (1, Path("x") / "y"),
        5: None,
    }
    disk.save_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {
        "score": {"value": None, "stderr": None, "n": 0},
        "cost": {"seconds": 1.5, "tokens": 2, "flops": 3.0, "peak_bytes": 4},
        "array": [[1.0, None]],
        "scalar": None,
        "count": 3,
        "tensor": [None, 2.0],
        "tuple": [1, "x/y"],
        "5": None,
    }


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.json: damaged") as info:
        disk.load_json(path)
    one_line(info)


def test_only_the_last_line_may_be_torn(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert disk.load_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": 2}')
    assert disk.load_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(InputError, match="line"):
        disk.load_lines(path)


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": ["edited", "original", "never"],
            "cheap": [True, False, True],
            "step": [0, 1, 2**62],
            "value": [0.1, NAN, 1e-300],
            "infinite": [math.inf, -math.inf, -0.0],
            "single": np.array([0.1, NAN, 3], dtype=np.float32),
        }
    )


def test_frames_come_back_exactly(tmp_path: Path) -> None:
    for case in (frame(), frame().iloc[:0], frame()[["value"]]):
        disk.save_frame(tmp_path / "a.parquet", case)
        pd.testing.assert_frame_equal(disk.load_frame(tmp_path / "a.parquet"), case, check_exact=True)
    assert names(tmp_path) == {"a.parquet"}


def mutated(content: bytes, cut: int, changes: list[tuple[int, int]]) -> bytes:
    """``content`` with some bytes set, cut off at ``cut`` of its length in per mille."""
    damaged = bytearray(content)
    for at, byte in changes:
        damaged[at % len(damaged)] = byte
    return bytes(damaged[: len(damaged) * cut // 1000])


cuts = st.just(1000) | st.integers(0, 1000)
changes = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4)


@many
@given(cut=cuts, changes=changes)
def test_damaged_frames_raise_only_input_errors(tmp_path: Path, cut: int, changes: list[tuple[int, int]]) -> None:
    path = tmp_path / "a.parquet"
    disk.save_frame(path, frame())
    path.write_bytes(mutated(path.read_bytes(), cut, changes))
    try:
        disk.load_frame(path)
    except InputError as exc:
        assert "\n" not in str(exc)


# --- tensors --------------------------------------------------------------------------------


def delta() -> Delta:
    generator = torch.Generator().manual_seed(0)
    updates = {f"blocks.{i}.mlp.in": torch.randn(3, 5, generator=generator) for i in (10, 9, 2)}
    return Delta(updates, "base", "ab" * 32)


@pytest.mark.parametrize("dtype", disk.DTYPES)
def test_tensors_come_back_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    shared = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors: dict[str, Tensor] = {
        "z": shared,
        "a/same": shared,
        "transposed": shared.T,
        "slice": shared[:, 1:3],
        "rank 0": shared[:, :0],
        "scalar": torch.tensor(2.0, dtype=dtype),
        "learned": torch.nn.Parameter(shared.clone()),
    }
    disk.save_tensors(tmp_path / "t", tensors, {"fitter": "contrast"})
    loaded, metadata = disk.load_tensors(tmp_path / "t")
    assert metadata == {"fitter": "contrast"}
    assert list(loaded) == list(tensors)
    for name, tensor in loaded.items():
        assert tensor.dtype == dtype
        assert not tensor.requires_grad
        assert torch.equal(tensor, tensors[name])


def test_no_tensors_at_all_come_back(tmp_path: Path) -> None:
    disk.save_tensors(tmp_path / "t", {})
    assert disk.load_tensors(tmp_path / "t") == ({}, {})


def test_safetensors_of_other_programs_can_be_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "t")
    tensors, metadata = disk.load_tensors(tmp_path / "t")
    assert torch.equal(tensors["a"], torch.ones(2))
    assert metadata == {}


def test_a_delta_comes_back_exactly_with_its_base(tmp_path: Path) -> None:
    save_delta(delta(), tmp_path / "d")
    loaded = load_delta(tmp_path / "d")
    assert (loaded.base, loaded.base_hash) == ("base", "ab" * 32)
    assert list(loaded.updates) == list(delta().updates)
    assert all(torch.equal(u, delta().updates[n]) for n, u in loaded.updates.items())
    assert loaded.norm() == delta().norm(), "the order of summation survives"


def test_a_loaded_delta_survives_that_its_file_is_written_again(tmp_path: Path) -> None:
    """The file is mapped into memory; replacing it must not reach what was loaded."""
    save_delta(delta(), tmp_path / "d")
    loaded = load_delta(tmp_path / "d")
    save_delta(-1.0 * delta(), tmp_path / "d")
    assert all(torch.equal(u, delta().updates[n]) for n, u in loaded.updates.items())


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_no_tensor_with_nan_or_infinity_gets_in_or_out(tmp_path: Path, bad: float) -> None:
    tensors = {"good": torch.ones(2), "bad": torch.tensor([1.0, bad])}
    with pytest.raises(NumericalError, match="'bad'"):
        disk.save_tensors(tmp_path / "t", tensors)
    assert names(tmp_path) == set()
    safetensors.torch.save_file(tensors, tmp_path / "t")
    with pytest.raises(InputError, match="t: 'bad' holds NaN or infinity"):
        disk.load_tensors(tmp_path / "t")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_only_floats_get_in_or_out(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"bad": torch.ones(2).to(dtype)}
    with pytest.raises(InputError, match="'bad' is torch"):
        disk.save_tensors(tmp_path / "t", tensors)
    safetensors.torch.save_file(tensors, tmp_path / "t")
    with pytest.raises(InputError, match="'bad' is torch") as info:
        disk.load_tensors(tmp_path / "t")
    one_line(info)


@many
@given(cut=cuts, changes=changes)
def test_damaged_deltas_raise_only_input_errors(tmp_path: Path, cut: int, changes: list[tuple[int, int]]) -> None:
    path = tmp_path / "d"
    save_delta(delta(), path)
    path.write_bytes(mutated(path.read_bytes(), cut, changes))
    try:
        loaded = load_delta(path)
    except InputError as exc:
        assert "\n" not in str(exc)
    else:
        assert all(u.isfinite().all() and u.ndim == 2 for u in loaded.updates.values())


def header_file(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@many
@given(text=json_values, order=json_values, size=st.integers(0, 2**64 - 1))
def test_invented_headers_raise_only_input_errors(tmp_path: Path, text: object, order: object, size: int) -> None:
    path = tmp_path / "d"
    tensor = entry("F32", [1], [0, 4])
    for header in (
        text,
        {"a": text},
        {"a": tensor, "__metadata__": text},
        {"a": tensor, "__metadata__": {"tensor_order": json.dumps(order)}},
        {"a": entry("F32", [size, size], [0, 4])},
    ):
        header_file(path, header, b"\0" * 4)
        try:
            disk.load_tensors(path)
        except InputError as exc:
            assert "\n" not in str(exc)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    """Ten terabytes in a file of a few bytes: refused before anything is allocated."""
    path = tmp_path / "t"
    size = 10 * 2**40
    for header in (
        {"a": entry("F32", [size // 4], [0, size])},
        {"a": entry("F32", [size // 4], [0, 4])},
        {"a": entry("F32", [1], [0, 4]), "b": entry("F32", [1], [0, 4])},
        {"a": entry("F32", [1], [4, 0])},
        b"[" * 100_000,
    ):
        header_file(path, header, b"\0" * 4)
        with pytest.raises(InputError, match="t: damaged, or another format"):
            disk.load_tensors(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="t: damaged, or another format"):
        disk.load_tensors(path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "t")
    with pytest.raises(InputError, match="damaged, or another format"):
        disk.load_tensors(tmp_path / "t")


def test_other_tensors_and_other_versions_are_not_deltas(tmp_path: Path) -> None:
    path = tmp_path / "d"
    disk.save_tensors(path, {"a": torch.ones(2, 2)}, {"fitter": "pca"})
    with pytest.raises(InputError, match="hooklearn reads delta 1"):
        load_delta(path)
    disk.save_tensors(path, {"a": torch.ones(2, 2)}, {"kind": "delta", "version": "7"})
    with pytest.raises(InputError, match="delta version 7; hooklearn reads delta 1"):
        load_delta(path)
    save_delta(Delta({"a": torch.ones(2)}), path)
    with pytest.raises(InputError, match=r"'a' has shape \[2\], not \[d_out, d_in\]"):
        load_delta(path)


# --- the run folder -------------------------------------------------------------------------


def events(folder: Path) -> list[str]:
    return [row["event"] for row in disk.load_lines(folder / "events.jsonl")]


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with RunFolder.create(out, RECORD) as run:
        assert open_run(out)["status"] == "running"
        run.event("step", step=1, kl=NAN, name="the edit's name")
        assert not run.has("curves.parquet")
        run.save_frame("curves.parquet", frame())
        assert run.has("curves.parquet")
        run.save_json("extra.json", {"a": NAN})
        run.update(edits=[{"seed": 0, "kl": NAN}])
        assert run.path("x") == out / "x"
    record = open_run(out)
    assert record["schema_version"] == 1
    assert record["status"] == "done"
    assert record["error"] is None
    assert record["name"] == "tiny"
    assert record["edits"] == [{"seed": 0, "kl": None}]
    assert record["started"] <= record["finished"]
    assert record["seconds"] >= 0
    assert events(out) == ["started", "step", "done"]
    assert disk.load_lines(out / "events.jsonl")[1]["kl"] is None
    assert RECORD == {
        "name": "tiny",
        "config": {"seeds": [0], "edit": {"method": "ga", "lr": 1e-4}},
    }


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RuntimeError("two\n  lines"), "failed", "RuntimeError: two lines"),
        (InputError("seeds: must not be empty"), "failed", "seeds: must not be empty"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_a_run_that_breaks_is_still_a_record(tmp_path: Path, error: BaseException, status: str, line: str) -> None:
    with pytest.raises(type(error)), RunFolder.create(tmp_path, RECORD):
        raise error
    record = open_run(tmp_path)
    assert (record["status"], record["error"]) == (status, line)
    assert record["finished"]
    assert events(tmp_path) == ["started", status]
    RunFolder.create(tmp_path, RECORD, resume=True).finish("done")  # the lock is free again


def test_finish_has_the_last_word(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, RECORD) as run:
        run.finish("failed", "diverged", seeds=[0, 1])
    record = open_run(tmp_path)
    assert (record["status"], record["error"], record["seeds"]) == ("failed", "diverged", [0, 1])


def test_a_full_disk_ends_the_run_with_one_line_and_a_readable_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(InputError, match=r"curves.parquet: No space left on device"),
        RunFolder.create(tmp_path, RECORD) as run,
    ):
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(InputError, match=r"events.jsonl: No space left on device"):
            run.event("step")
        run.save_frame("curves.parquet", frame())
    monkeypatch.undo()
    assert open_run(tmp_path)["status"] == "running"
    assert not (tmp_path / "curves.parquet").exists()
    RunFolder.create(tmp_path, RECORD, resume=True).finish("done")


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, RECORD)
    with (tmp_path / "events.jsonl").open("ab") as handle:
        handle.write(b'{"event": "hal')
    assert events(tmp_path) == ["started"]
    run.event("next")
    run.finish("done")
    assert events(tmp_path) == ["started", "next", "done"]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"it holds 'thesis.tex'; use another --out"):
            RunFolder.create(tmp_path, RECORD, resume)
    assert names(tmp_path) == {"thesis.tex"}


def test_a_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file: File exists"):
        RunFolder.create(tmp_path / "file", RECORD)


@pytest.mark.parametrize("status", ["done", "failed", "interrupted"])
def test_an_ended_run_is_kept_unless_resumed(tmp_path: Path, status: store.Status) -> None:
    RunFolder.create(tmp_path, RECORD).finish(status, edits=["kept"])
    before = (tmp_path / "run.json").read_bytes()
    message = rf"status {status}\); use another --out, or --resume"
    with pytest.raises(InputError, match=message):
        RunFolder.create(tmp_path, RECORD)
    assert (tmp_path / "run.json").read_bytes() == before


def test_resume_goes_on_with_the_same_record(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, RECORD, resume=True)  # nothing there yet: it simply starts
    run.finish("failed", "disk", edits=["seed 0"])
    first = open_run(tmp_path)
    disk.save_json(tmp_path / "run.json", {**first, "seconds": 1000.0})
    (tmp_path / ".delta-seed1.safetensors.ab.tmp").write_text("half a delta")
    with RunFolder.create(tmp_path, RECORD, resume=True) as run:
        record = open_run(tmp_path)
        assert (record["status"], record["error"], record["finished"]) == ("running", None, None)
        assert run.record["edits"] == ["seed 0"]
    record = open_run(tmp_path)
    assert record["started"] == first["started"]
    assert 1000 <= record["seconds"] < 1100
    assert events(tmp_path) == ["started", "failed", "resumed", "done"]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("status", "seeds", "kept"),
    [("done", [0], True), ("done", [0, 1], False), ("interrupted", [0], False), ("failed", [0], False)],
)
def test_what_was_concluded_of_less_is_dropped(
    tmp_path: Path, status: store.Status, seeds: list[int], kept: bool
) -> None:
    """Where a run goes on; of a finished one that is only looked at again (the control), all is kept, and what is
    measured always is."""
    RunFolder.create(tmp_path, RECORD | {"seeds": [0]}).finish(status)
    for name in (*store.CONCLUDED, "curves.parquet"):
        (tmp_path / name).touch()
    RunFolder.create(tmp_path, RECORD | {"seeds": seeds}, resume=True).finish("done")
    assert [(tmp_path / name).exists() for name in store.CONCLUDED] == [kept] * len(store.CONCLUDED)
    assert (tmp_path / "curves.parquet").exists()


def test_resume_refuses_another_config(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {"config": {"seeds": (0, 1), "lr": 0.1}}).finish("failed")
    with pytest.raises(InputError, match=r"another config \(seeds.1 was 1, is 2\); use another --out"):
        RunFolder.create(tmp_path, {"config": {"seeds": (0, 2), "lr": 0.1}}, resume=True)
    RunFolder.create(tmp_path, {"config": {"seeds": [0, 1], "lr": 0.1}}, True).finish("done")


def test_what_two_configs_differ_in() -> None:
    one = {"budget": {"kl": 0.01, "near_ce": None}, "attacks": [{"name": "erode"}], "seeds": [0]}
    other = {"budget": {"kl": 0.02}, "attacks": [], "seeds": [0]}
    assert differences(one, one) == [] == differences(one, {**one, "seeds": [0]})
    assert differences(one, other) == [
        "budget.kl was 0.01, is 0.02", "attacks.0.name was erode, is not there", "attacks was not there, is []"
    ]  # fmt: skip
    many = differences({str(i): i for i in range(9)}, {}, most=2)
    assert many == ["0 was 0, is not there", "1 was 1, is not there", "and 8 more"]


def test_a_second_writer_in_this_process_is_refused(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, RECORD) as run:
        for resume in (False, True):
            with pytest.raises(InputError, match=f"process {os.getpid()} is writing this run"):
                RunFolder.create(tmp_path, RECORD, resume)
        run.event("unharmed")
    assert open_run(tmp_path)["status"] == "done"


HOLD = """
import fcntl, os, sys, time
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
print("held", flush=True)
time.sleep(60)
"""


def test_a_writer_in_another_process_is_named_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(InputError, match=f"process {other.pid}") as info:
                RunFolder.create(tmp_path, RECORD)
            one_line(info)
        finally:
            other.kill()
    RunFolder.create(tmp_path, RECORD).finish("done")


def test_processes_take_turns(tmp_path: Path) -> None:
    """Who comes while another is inside waits (control: with another lock file nobody does), and not for one that was
    killed."""
    inside = tmp_path / "a" / "turn"
    inside.parent.mkdir()

    def entered(path: Path) -> threading.Event:
        done = threading.Event()

        def enter() -> None:
            with store.turn(path):
                done.set()

        threading.Thread(target=enter, daemon=True).start()
        return done

    with subprocess.Popen([sys.executable, "-c", HOLD, str(inside)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            waiting = entered(inside)
            assert entered(tmp_path / "b" / "turn").wait(SOON)
            assert not waiting.wait(0.1)  # however long: only where it does not wait could it be there
        finally:
            other.kill()
        assert waiting.wait(SOON)


SOON = 60
"""Seconds after which something that takes a millisecond will not happen any more, on however busy a machine."""


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, RECORD).finish("done")
    with pytest.raises(InputError):
        RunFolder.create(tmp_path, RECORD)
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


KILLED = """
import os, signal, sys
from hooklearn.store import RunFolder
run = RunFolder.create(sys.argv[1], {"config": {"seeds": [0]}})
run.update(edits=["seed 0"])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_a_record_and_can_be_resumed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    record = open_run(tmp_path)
    assert (record["status"], record["edits"]) == ("running", ["seed 0"])
    assert record["seconds"] > 0
    RunFolder.create(tmp_path, {"config": {"seeds": [0]}}, resume=True).finish("done")


def test_open_run_says_what_is_wrong(tmp_path: Path) -> None:
    def expect(message: str) -> None:
        for act in (open_run, lambda p: RunFolder.create(p, RECORD, resume=True)):
            with pytest.raises(InputError, match=message) as info:
                act(tmp_path)
            one_line(info)

    with pytest.raises(InputError, match=r"not a run folder \(no run.json\)"):
        open_run(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        open_run(tmp_path / "absent")
    run = tmp_path / "run.json"
    disk.save_json(run, {"schema_version": 2, "status": "done"})
    expect("version 2; hooklearn reads 1")
    disk.save_json(run, {"status": "done"})
    expect("version None; hooklearn reads 1")
    disk.save_json(run, [1])
    expect("version None")
    disk.save_json(run, {"schema_version": 1, "status": ["odd"]})
    expect("damaged")
    run.write_text('{"schema_version": 1, "sta')
    expect("run.json: damaged")


# --- environment and hashes -----------------------------------------------------------------


def test_environment_says_what_ran_but_not_who(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = store.environment()
    expected = {"python", "hooklearn", "torch", "transformers", "transformer_lens", "numpy"}
    assert set(facts) == expected | {"platform", "threads", "git"}
    assert facts["torch"].startswith("2.")
    assert facts["threads"] == torch.get_num_threads()
    text = json.dumps(facts)
    assert str(Path.home()) + "/" not in text
    assert str(Path(__file__).parents[1]) not in text

    monkeypatch.setenv("PATH", "")
    assert store.environment()["git"] is None, "no git: not measured"
    monkeypatch.setattr(store.packages, "version", missing)
    assert store.environment()["hooklearn"] is None


def missing(name: str) -> str:
    raise store.packages.PackageNotFoundError(name)


def test_git_says_the_revision_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "store.py"
    module.write_text("1")
    monkeypatch.setattr(store, "__file__", str(module))

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert store.environment()["git"] is None, "a checkout that does not track the module"
    git("add", ".")
    assert store.environment()["git"] is None, "no commit yet"
    git("commit", "-m", "x")
    clean = store.environment()["git"]
    assert len(clean["revision"]) == 40
    assert clean["dirty"] is False
    module.write_text("2")
    assert store.environment()["git"] == {"revision": clean["revision"], "dirty": True}


def test_hashes_are_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert disk.file_hash(tmp_path / "a") == disk.text_hash("abc") == known
    assert disk.text_hash("\ud800") != disk.text_hash("")
