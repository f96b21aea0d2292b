"""NaN and infinity stop the work where they arise, and say at which step and place; ill conditions are numbers, and so
is the memory that a process took."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus
from safetensors.torch import load_file, save_file
from torch import Tensor

from hooklearn import editing, experiment, exporting, integrity, linalg, models, train
from hooklearn.config import parse
from hooklearn.data import batches, cycle, encode
from hooklearn.deltas import Delta
from hooklearn.locate import locate
from hooklearn.locate.capture import weight_gradients
from hooklearn.locate.moments import site_moments
from hooklearn.losses import LossSum
from hooklearn.memory import peak_bytes
from hooklearn.moments import MomentSum
from hooklearn.types import InputError, NumericalError

NAN = float("nan")
PLACE = "blocks.1.mlp.out"


@pytest.fixture
def model(tiny: Any) -> Iterator[Any]:
    with editing.restored(tiny):
        yield tiny


@pytest.fixture
def stream(model: Any) -> list[Any]:
    texts = encode(corpus("disruption").take(8), models.tokenizer_of(model))
    return list(cycle(texts, max_tokens=128, seed=0, epochs=3))


def rule_of(model: Any, rate: float = 1e-3) -> tuple[list[Tensor], Any]:
    params: list[Tensor] = list(models.parameters_of(model, models.sites(model, PLACE)))
    for p in models.all_parameters(model):
        p.requires_grad_(any(p is q for q in params))
    return params, torch.optim.SGD(params, lr=rate)


def breaking(at: int, how: Any) -> Any:
    """Ordinary training whose loss goes through ``how`` at one step."""
    count = iter(range(10**6))

    def objective(model: Any, batch: Any) -> LossSum:
        loss = train.nll(model, batch)
        return LossSum(how(loss.total), loss.count) if next(count) == at else loss

    return objective


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * math.inf


def test_training_without_faults_ends(model: Any, stream: list[Any]) -> None:
    """The positive control of what follows."""
    _, rule = rule_of(model)
    assert train.fit(model, stream[:3], rule=rule).steps == 3


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_loss_a_gradient_and_a_weight_stop_the_loop_and_are_named(
    model: Any, stream: list[Any], max_norm: float | None
) -> None:
    """With the number of the step, counted on from an earlier call; and nothing that broke reaches the weights."""
    params, rule = rule_of(model)
    how = {"rule": rule, "max_norm": max_norm, "params": params, "first": 10}
    with pytest.raises(NumericalError, match="loss is nan at step 12"):
        train.fit(model, stream, objective=breaking(2, lambda x: x * NAN), **how)
    with pytest.raises(NumericalError, match="loss is inf at step 11"):
        train.fit(model, stream, objective=breaking(1, lambda x: x * math.inf), **how)
    assert all(p.isfinite().all() for p in params)
    with pytest.raises(NumericalError, match=r"the gradient of .*layers\.1\.mlp\.down_proj.* at step 12"):
        train.fit(model, stream, objective=breaking(2, InfiniteGradient.apply), **how)
    assert all(p.isfinite().all() for p in params), "the step was not taken"
    rule.param_groups[0]["lr"] = 1e38
    big = breaking(0, lambda x: x * 1e6)  # the norm of the gradient does not overflow, the step does
    with pytest.raises(NumericalError, match=r"the weight of .*layers\.1\.mlp\.down_proj.* at step 10"):
        train.fit(model, stream[:1], objective=big, rule=rule, params=params, first=10)


def test_a_loop_that_looks_a_step_later_takes_the_same_steps(
    model: Any, stream: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which is not waited for: the same losses and weights to the bit; what breaks is still named by its
    own step, after one more."""
    params, _ = rule_of(model)
    begun = [p.detach().clone() for p in params]
    found = []
    for behind in (0, 1):
        monkeypatch.setattr(train, "_behind", lambda model, n=behind: n)
        for p, start in zip(params, begun, strict=True):
            p.data.copy_(start)
        run = train.fit(model, stream[:4], rule=torch.optim.Adam(params, lr=1e-3), params=params, max_norm=1.0)
        found.append((run.losses, [p.detach().clone() for p in params]))
    assert found[0][0] == found[1][0] and len(found[0][0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    rule = torch.optim.SGD(params, lr=1e-3)
    with pytest.raises(NumericalError, match="loss is nan at step 1;"):
        train.fit(model, stream, rule=rule, objective=breaking(1, lambda x: x * NAN), params=params, max_norm=1.0)
    for p, start in zip(params, begun, strict=True):
        p.data.copy_(start)
    with pytest.raises(NumericalError, match=r"the weight of .*layers\.1\.mlp\.down_proj.* at step 2;"):
        train.fit(model, stream, rule=rule, objective=breaking(2, InfiniteGradient.apply), params=params, max_norm=1.0)
    with pytest.raises(NumericalError, match="loss is nan at step 0;"):  # the last one is looked at too
        train.fit(model, stream[:1], rule=rule, objective=breaking(0, lambda x: x * NAN), params=params)


def test_a_parameter_beside_the_model_is_named_by_its_number(model: Any, stream: list[Any]) -> None:
    """Adapters have no name in the model."""
    for p in models.all_parameters(model):
        p.requires_grad_(False)
    extra = torch.zeros(1, requires_grad=True)

    def objective(model: Any, batch: Any) -> LossSum:
        return LossSum(InfiniteGradient.apply(extra.sum()), 1)  # type: ignore[arg-type]

    with pytest.raises(NumericalError, match="the gradient of parameter 0 beside the model's"):
        train.fit(model, stream, objective=objective, rule=torch.optim.SGD([extra], lr=1.0))


def test_statistics_that_are_not_finite_name_their_place(model: Any) -> None:
    """Moments by a NaN that one weight brings in, or by squares that overflow; gradients likewise."""
    places = models.sites(model, "mlp.out")
    stream = batches(encode(corpus("disruption").take(4), models.tokenizer_of(model)))
    site_moments(model, stream, places)  # the control
    with torch.no_grad():
        models.weight(model, models.sites(model, "blocks.1.mlp.gate")[0])[0, 0] = NAN
    with pytest.raises(NumericalError, match=r"moments of blocks\.1\.mlp\.out \(x\) are not finite"):
        site_moments(model, stream, places, sides="x")
    with pytest.raises(NumericalError, match=r"the gradient at blocks\.0\.mlp\.out is not finite"):
        weight_gradients(model, stream, places)
    sums = MomentSum(2)
    sums.add(torch.tensor([[1e30, 1.0]]))
    with pytest.raises(NumericalError, match="moments of here are not finite"):
        sums.moments("here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_summed_in_single(dtype: torch.dtype) -> None:
    """4096 ones: the running sum of bfloat16 would stop at 256, that of float16 at 2048."""
    sums = MomentSum(1)
    for _ in range(4096):
        sums.add(torch.ones(1, 1, dtype=dtype))
    found = sums.moments()
    assert found.second.dtype == torch.float32 and float(found.second) == 4096 == float(found.sum)
    stuck = torch.zeros(1, dtype=dtype)
    for _ in range(4096):
        stuck += 1
    assert float(stuck) < 4096


def test_a_model_with_a_broken_weight_is_refused_by_name(model: Any) -> None:
    integrity.check_finite(model)
    with torch.no_grad():
        models.weight(model, models.sites(model, PLACE)[0])[3, 3] = math.inf
    with pytest.raises(InputError, match=r"its weight .*layers\.1\.mlp\.down_proj.* holds NaN or infinity"):
        integrity.check_finite(model)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_with_a_broken_weight_is_refused_as_it_is_loaded(model: Any, tmp_path: Path, value: float) -> None:
    """Whole it loads (the control); one number that is none is told by tensor and folder."""
    folder = models_folder(model, tmp_path / "broken")
    models.load(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("layers.1.mlp.down_proj.weight"))
    tensors[name][3, 3] = value
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"model '.*broken': its weight .*layers\.1\.mlp\.down_proj.* holds NaN"):
        models.load(folder)


def models_folder(model: Any, folder: Path) -> Path:
    """The model as a plain Hugging Face folder."""
    return exporting.export(model, Delta({}), folder).folder


# ------------------------------------------------------------------------------- eigenproblems


def with_condition(condition: float, d: int = 12) -> Tensor:
    """Symmetric, with eigenvalues from 1 down to 1 / condition."""
    q = linalg.random_basis(d, d, 0).double()
    return q @ torch.diag(torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e9, 1e14])
def test_the_condition_number_is_that_of_the_matrix(condition: float) -> None:
    """The estimate in the 1-norm is within a factor d = 12 of the ratio of the eigenvalues, either way."""
    assert condition / 12 <= linalg.condition_number(with_condition(condition)) <= 12 * condition
    assert linalg.condition_number(-torch.eye(3)) == math.inf


def test_eigenproblems_without_a_right_digit_are_refused_with_their_condition_number() -> None:
    forget, rank = torch.eye(12, dtype=torch.float64), 2
    linalg.generalised_eigh(forget, with_condition(1e9), rank)
    singular = with_condition(1e9).clone()
    singular[0] = singular[:, 0] = 0
    singular[0, 0] = 1e-20
    with pytest.raises(NumericalError, match=r"condition number \d\.\de\+\d\d; raise the damping"):
        linalg.generalised_eigh(forget, singular, rank)


def test_located_subspaces_say_how_well_conditioned_their_problem_was(tiny: Any) -> None:
    """In the table that a run keeps; fitters without a metric have nothing to say."""
    found = {}
    for fitter in ("contrast", "pca"):
        args = (tiny, corpus("forget").take(12), corpus("forget", "good").take(12))
        found[fitter] = locate(*args, sites="blocks.1.mlp.in", fitter=fitter, rank=2).to_dataframe()["condition"][0]
    assert 1 < found["contrast"] < 1e12 and math.isnan(found["pca"])


# ------------------------------------------------------------------------------------- restored?


def test_an_edit_that_cannot_be_put_back_is_noticed(model: Any) -> None:
    """Somebody exchanged the parameter itself: copies go to a tensor that the model no longer computes with."""
    site = models.sites(model, PLACE)[0]
    delta = Delta({site.name: torch.ones(site.d_out, site.d_in)})
    before = integrity.weights_hash(model)
    with editing.edited(model, delta):
        pass
    integrity.check_unchanged(model, before, "after an edit")
    (parameter,) = models.parameters_of(model, [site])
    linear = next(
        m for m in model.modules() if getattr(m, "weight", None) is parameter and "Bridge" not in str(type(m))
    )
    with pytest.raises(NumericalError, match="was replaced while it was edited"), editing.edited(model, delta):
        linear.weight = torch.nn.Parameter(parameter.detach().clone())
    linear.weight = parameter
    with (
        pytest.raises(NumericalError, match="is not finite"),
        editing.edited(model, Delta({site.name: torch.full((site.d_out, site.d_in), NAN)})),
    ):
        pass
    integrity.check_unchanged(model, before, "after all")


def test_a_run_whose_model_drifted_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that nobody put back, of a site that the edit does not even touch."""
    from test_experiment import small

    config = small() | {
        "organism": None, "attacks": [], "behaviour": {"samples": 0}, "seeds": [0], "controls": {},
        "locate": {"enabled": False}, "evidence": {"enabled": False},
    }  # fmt: skip
    stages = experiment.attack_stages

    def careless(config: Any, arena: Any, *more: Any) -> None:
        stages(config, arena, *more)
        with torch.no_grad():
            models.all_parameters(arena.arms[1].model)[0][0, 0] += 1e-3

    monkeypatch.setattr(experiment, "attack_stages", careless)
    with pytest.raises(NumericalError, match="drifted: after seed 0"):
        experiment.run(parse(config), tmp_path / "out")
    monkeypatch.undo()
    experiment.run(parse(config), tmp_path / "again")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    """300 MB here; a child that does nothing has a tenth of it. What getrusage says in the child is ours (control)."""
    mine = bytearray(os.urandom(1) * 300_000_000)
    code = "import resource, hooklearn.memory as m; print(m.peak_bytes(), resource.getrusage(0).ru_maxrss)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, inherited = map(int, child.stdout.split())
    assert len(mine) < peak_bytes()
    assert peak < 100e6 < 300e6 < inherited * 1024


def test_a_sum_that_overflows_or_cancels_is_not_taken_for_the_answer() -> None:
    """Finite weights may add up to infinity, and infinities to NaN."""
    assert integrity.is_finite(torch.full((4,), 3e38))
    assert not integrity.is_finite(torch.tensor([1.0, math.inf, -math.inf]))
    assert not integrity.is_finite(torch.tensor([1.0, math.nan], requires_grad=True))
