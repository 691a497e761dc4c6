"""Learning a set: the schedules, the loss by hand, a run that was stopped, a loss that is no number, and the card that comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import rbench
from command import rbench as run_rbench
from rbench.training import generative
from rbench.training.generative import learn_set, loss, scheduled
from rbench_core.errors import CardError, TrainingError, UnknownName
from rbench_threats.catalogue import build
from rbench_threats.networks import build as networks
from rbench_threats.networks import divergence
from rbench_threats.set_config import listing, read_config
from rbench_threats.spec import parse, written_name

TINY = """
name = "tiny"
dataset = "digits"
[pairs]
kind = "rts"
degrees = "20"
smallest = "0.9"
largest = "1.1"
shift = "0.5"
[network]
kind = "{kind}"
latent = 4
{sizes}
[training]
likelihood = "{likelihood}"
epochs = 3
batch = 128
lr = [[0, 1e-3], [1, 2e-3], [3, 0]]
beta = [[0, 0], [2, 0.1]]
validation = 97
passes = 2
"""
SIZES = {
    "fc": "hidden = 32",
    "conv": "channels = 4\nhidden = 16",
    "stn": "channels = 4\nhidden = 16\ncount = 2\nmixed = 3\nlocal = 8",
}


def config(folder: Path, kind: str = "fc", likelihood: str = "bernoulli") -> str:
    path = folder / "tiny.toml"
    path.write_text(TINY.format(kind=kind, sizes=SIZES[kind], likelihood=likelihood))
    return str(path)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbench.training.set_card.MEASURED", 32)
    monkeypatch.setattr("rbench.evidence.set_quality.beyond_the_truth.__kwdefaults__", {"device": "cpu", "limit": 4})


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_learned_set_is_a_threat_at_once(kind: str, likelihood: str, tmp_path: Path) -> None:
    card = learn_set(config(tmp_path, kind, likelihood), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tiny.log.jsonl", "tiny.safetensors", "tiny.toml"]
    space = build(parse(f"learned({written_name(str(card))}, radius=2)"))
    table = space.card.table
    assert table["training"]["command"].startswith("rbench learn-set ")
    assert {"identity", "encoder", "pgd", "expected", "over", "reconstruction"} <= set(table["quality"]["mse"]) & set(
        table["quality"]["bce"]
    )
    assert table["radius"]["pairs"] == 2 * table["radius"]["images"] == 194
    log = [json.loads(line) for line in (tmp_path / "out" / "tiny.log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert [row["beta"] for row in log] == [0, 0.05, 0.1], "β is that of the epoch's start, so the first trains without the divergence"
    assert log[-1]["lr"] == 0, "the last step of the last epoch is at the schedule's end"
    assert log[-1]["validation"] < log[0]["validation"]
    if (kind, likelihood) == ("fc", "bernoulli"):
        report = rbench.evaluate("digits-standard", threat=str(space), n=4, plan="pgd(steps=2)", results=tmp_path / "r", site=False)
        assert report.data["n"] == 4


def test_a_run_that_was_stopped_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learn_set(config(tmp_path), out=tmp_path / "whole")
    keep, kept = generative._keep, []

    def once(*arguments: Any) -> None:
        keep(*arguments)
        kept.append(1)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(generative, "_keep", once)
    with pytest.raises(KeyboardInterrupt):
        learn_set(config(tmp_path), out=tmp_path / "parts")
    monkeypatch.setattr(generative, "_keep", keep)
    assert (tmp_path / "parts" / "tiny.partial").exists()
    with pytest.raises(TrainingError, match="another config, seed"):
        learn_set(config(tmp_path), out=tmp_path / "parts", seed=1)
    learn_set(config(tmp_path), out=tmp_path / "parts")
    first, second = (load_file(folder / "tiny.safetensors") for folder in (whole.parent, tmp_path / "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [[json.loads(row) for row in (tmp_path / name / "tiny.log.jsonl").read_text().splitlines()] for name in ("whole", "parts")]
    assert [{**row, "seconds": 0} for row in logs[0]] == [{**row, "seconds": 0} for row in logs[1]]


def test_a_loss_that_is_no_number_stops_with_epoch_and_batch_and_keeps_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = generative.loss, []

    def poisoned(*arguments: Any) -> Any:
        calls.append(1)
        recon, kl = real(*arguments)
        return (recon * torch.nan, kl) if len(calls) == 14 else (recon, kl)  # 10 batches and one of validation, then the third of epoch 2

    monkeypatch.setattr(generative, "loss", poisoned)
    with pytest.raises(TrainingError, match="nan in epoch 2, batch 3"):
        learn_set(config(tmp_path), out=tmp_path)
    assert torch.load(tmp_path / "tiny.partial", weights_only=True)["epoch"] == 1
    assert not (tmp_path / "tiny.safetensors").exists()


@pytest.mark.parametrize("name", [row["name"] for row in listing()])
def test_schedules_have_their_values_at_the_start_in_the_middle_and_at_the_end(name: str) -> None:
    chosen = read_config(name)
    for points in (chosen.lr, chosen.beta):
        assert scheduled(points, 0.0) == points[0][1]
        assert scheduled(points, float(chosen.epochs)) == points[-1][1]
        (a, low), (b, high) = points[0], points[1]
        assert scheduled(points, (a + b) / 2) == pytest.approx((low + high) / 2)
        assert scheduled(points, (a + b) / 4, stretch=0.5) == pytest.approx((low + high) / 2)
    assert scheduled(chosen.beta, 0.0) == 0
    assert points[-1][0] == chosen.epochs


def test_the_published_schedule_of_mnist_rts() -> None:
    """0:0, 40:8e-4, 100:0 and 0:0, 10:0.01, 50:1, 100:1 at 0, ½ and the last epoch (docs/learned-sets.md)."""
    lr, beta = ((0.0, 0.0), (40.0, 8e-4), (100.0, 0.0)), ((0.0, 0.0), (10.0, 0.01), (50.0, 1.0), (100.0, 1.0))
    assert [scheduled(lr, epoch) for epoch in (0.0, 50.0, 100.0)] == pytest.approx([0, 8e-4 * 50 / 60, 0])
    assert [scheduled(beta, epoch) for epoch in (0.0, 30.0, 99.0)] == pytest.approx([0, 0.505, 1])


def test_the_loss_is_that_of_the_paper() -> None:
    """Sums over pixels, not means; the divergence is torch's own; the sample is μ + σ · noise."""
    torch.manual_seed(0)
    net = networks((1, 8, 8), {"kind": "fc", "latent": 4, "hidden": 16}, "")
    x, partner, noise = torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8), torch.randn(5, 4)
    (mean_p, log_p), (mean_q, log_q) = net.prior(x), net.recognition(x, partner)
    normal = torch.distributions.Normal
    known = torch.distributions.kl_divergence(normal(mean_q, (log_q / 2).exp()), normal(mean_p, (log_p / 2).exp())).sum(1)
    torch.testing.assert_close(divergence(mean_q, log_q, mean_p, log_p), known)
    shown = net.generate(x, mean_q + (log_q / 2).exp() * noise)
    recon, kl = loss(net, x, partner, noise, "bernoulli")
    torch.testing.assert_close(kl, known)
    torch.testing.assert_close(recon, functional.binary_cross_entropy(shown, partner, reduction="none").sum((1, 2, 3)))
    recon, _ = loss(net, x, partner, noise, "gaussian")
    torch.testing.assert_close(recon, ((shown - partner) ** 2).sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('likelihood = "bernoulli"', 'likelihood = "poisson"', "bernoulli or gaussian"),
        ("epochs = 3", "epochs = 0", "a whole number from 1 on"),
        ("batch = 128", "batch = true", "a whole number from 1 on"),
        ("lr = [[0, 1e-3], [1, 2e-3], [3, 0]]", "lr = [[0, 1e-3], [0, 2e-3]]", "rising epochs"),
        ("beta = [[0, 0], [2, 0.1]]", "beta = [[0, -1]]", "values from 0 on"),
        ("passes = 2", "passes = 2\npause = 3", "unknown key 'pause'"),
        ("validation = 97", "", "[training] without validation"),
        ("hidden = 32", "hidden = 32\ndepth = 2", "expected latent, hidden"),
        ('kind = "rts"', 'kind = "rain"', "one of: linf, rts"),
        ("[network]", "[networks]", "unknown key 'networks'"),
        ('dataset = "digits"', "dataset = 3", "a data set's name"),
    ],
)
def test_configs_that_are_wrong_are_refused_in_one_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = Path(config(tmp_path))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CardError) as caught:
        learn_set(str(path), out=tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path: Path) -> None:
    done = run_rbench("learn-set", config(tmp_path), "--epochs", "1", "--seed", "3", "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "tiny.toml")
    assert "--seed 3 --epochs 1" in (tmp_path / "new" / "tiny.toml").read_text()
    unknown = run_rbench("learn-set", "digit-rts")
    assert unknown.returncode == 2
    assert "digits-rts" in unknown.stderr


def test_an_unknown_config() -> None:
    with pytest.raises(UnknownName, match="mnist-rts"):
        learn_set("mnist-rt")
