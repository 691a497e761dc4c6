"""What learning budgets leaves behind: the weights of the generator or of the map, and a card with their quality, beside the net's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save
from torch import Tensor

from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench_core.errors import CardError
from rbench_core.files import atomic_write, sha256_bytes
from rbench_threats import budgets, cards, volume
from rbench_threats.generator import Scores
from rbench_threats.spec import Call, parse
from rbench_zoo.recipe import Recipe

MEASURED = 2000  # images of the test part, and of the training part for the probe, at most
FORMS = {"generator": "Budgets that a network reads off the image", "map": "One map of budgets for all images"}


def card_name(recipe: Recipe) -> str:
    """The name of the budgets that the recipe makes: what its threat `contextual(NAME)` says. Raises CardError."""
    call = parse(str(recipe.threat))
    if call.name != "contextual" or len(call.args) != 1 or not isinstance(call.args[0], Call):
        raise CardError(f"recipe {recipe.name}: threat {recipe.threat}", expected="contextual(NAME), the name of the budgets it makes")
    return call.args[0].name


def publish(module: Scores, recipe: Recipe, folder: Path, model: str, sha256: str, seed: int, total: int) -> str:
    """Weights and card in the folder; returns the digest of the set. sha256: of the net's weights, trained with these budgets."""
    name, given = card_name(recipe), recipe.budgets
    weights = save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()})
    network = {"network": {"width": given["width"]}} if "width" in given else {}
    table: dict[str, Any] = {
        "schema": 1, "kind": "budgets", "name": name, "title": f"{FORMS[given['form']]}, {recipe.dataset}",
        "summary": f"Learned with {model}, to lower the error that interval bounds verify.", "source": recipe.source,
        "dataset": recipe.dataset, "shape": list(recipe.arguments["shape"]),
        "budget": {key: given[key] for key in ("form", "volume", "low", "high")}, **network,
        "weights": {"file": f"{name}.safetensors", "sha256": sha256_bytes(weights)},
        "training": {
            "recipe": recipe.name, "seed": seed, "epochs": total, "model": model, "model_sha256": sha256,
            "command": f"rbench train {recipe.name} --dataset {recipe.dataset} --seed {seed}",
        },
    }  # fmt: skip
    path = folder / f"{name}.toml"
    atomic_write(folder / f"{name}.safetensors", weights)
    atomic_write(path, tomli_w.dumps(table))
    table["quality"] = quality(budgets.of_card(str(path)), recipe.dataset)
    atomic_write(path, tomli_w.dumps(table))
    return cards.load("budgets", str(path)).sha256


def quality(given: budgets.Budgets, dataset: str) -> dict[str, Any]:
    """Volume, range and collapse checks over test images, and what a linear probe reads off budgets and off images."""
    held, seen = sources.load(dataset, n=MEASURED), sources.load(dataset, split="train", n=MEASURED)
    eps, past = _of(given, held), _of(given, seen)
    figures: dict[str, Any] = {
        "images": len(held), "volume": volume.nominal(eps).mean, "clipped_volume": volume.clipped(eps, held.x).mean,
        "contextual_share": volume.contextual_share(eps), "probe_images": len(seen),
        "probe_of_budgets": volume.probe(past, seen.y, eps, held.y, len(held.classes)),
        "probe_of_images": volume.probe(seen.x, seen.y, held.x, held.y, len(held.classes)),
    }  # fmt: skip
    if given.bounds is not None:
        low, high = volume.at_bounds(eps, given.bounds)
        figures |= {"play": given.bounds.play, "at_low": low, "at_high": high}
    return {key: value if isinstance(value, int) else round(value, 5) for key, value in figures.items() if value is not None}


def _of(given: budgets.Budgets, data: Dataset) -> Tensor:
    return given(data.x, torch.arange(len(data)))
