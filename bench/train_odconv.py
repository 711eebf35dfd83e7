# SPDX-License-Identifier: Apache-2.0
"""A ResNet-18 and its copy converted to ODConv in one call, trained side by side on scans of digits.

python bench/train_odconv.py                  trains both, writes bench/results/odconv_digits.json, curves and table
python bench/train_odconv.py --draw           curves and table again, from the JSON
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flexor.bench.dynamic_peers import static
from flexor.bench.machine import describe
from flexor.bench.twins import twin
from flexor.models.odconv import convert, od_resnet18
from flexor.nn import annealed_temperature, update_temperature
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "odconv_digits.json"
CURVES = ROOT / "docs" / "images" / "odconv_digits.svg"
DOCUMENT = ROOT / "docs" / "dynamic.md"
START, END = "<!-- odconv_digits:start -->", "<!-- odconv_digits:end -->"

SIZE = 32
KERNELS = 4
EPOCHS = 4
BATCH = 64
LEARNING_RATE = 0.05
SEED = 0
LABELS = {"static": "ResNet-18", "dynamic": "converted to ODConv"}
COLORS = {"static": "#9a9a9a", "dynamic": "#3b6fb6"}

Set = tuple[Tensor, Tensor]  # images, labels


def digits() -> tuple[Set, Set]:
    """The 1797 scans of handwritten digits in scikit-learn, 8x8 enlarged to 32x32: 1437 to train on, 360 to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16 - 0.3  # their mean is 0.3
    images = F.interpolate(images, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.from_numpy(found.target).long()
    train, test = train_test_split(torch.arange(len(labels)).numpy(), test_size=360, random_state=0, stratify=labels)
    return (images[train], labels[train]), (images[test], labels[test])


def twins() -> dict[str, nn.Module]:
    """A ResNet-18 for small images (its stem has no max pooling) and a converted copy: the same output at first."""
    torch.manual_seed(SEED)
    plain = twin(od_resnet18(num_classes=10, dropout=0.0), static)
    plain.maxpool = nn.Identity()
    dynamic = copy.deepcopy(plain)
    convert(dynamic, kernel_num=KERNELS)
    return {"static": plain, "dynamic": dynamic}


def train(model: nn.Module, training: Set, test: Set, epochs: int = EPOCHS) -> Iterator[dict[str, float]]:
    """SGD with momentum and a cosine schedule; after every epoch what it reached and took.

    The temperature of the attentions goes from 30 to 1 over the first half of the updates.
    """
    images, labels = training
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    for epoch in range(1, epochs + 1):
        model.train()
        cpu, wall, losses = time.process_time(), time.perf_counter(), []
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            if len(batch) < BATCH:
                continue
            update_temperature(model, annealed_temperature(done, max(1, steps // 2)))
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            losses.append(loss.item())
        yield {
            "epoch": epoch,
            "training_loss": sum(losses) / len(losses),
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            **evaluate(model, test),
        }


@torch.no_grad()
def evaluate(model: nn.Module, test: Set) -> dict[str, float]:
    model.eval()
    images, labels = test
    logits = torch.cat([model(part) for part in images.split(BATCH)])
    return {
        "test_loss": F.cross_entropy(logits, labels).item(),
        "test_accuracy": (logits.argmax(1) == labels).double().mean().item(),
    }


def compare(epochs: int = EPOCHS) -> dict[str, Any]:
    """Trains both, one after the other; everything that the table and the curves need."""
    training, test = digits()
    models = twins()
    with torch.no_grad():
        first = [model.eval()(test[0][:BATCH]) for model in models.values()]
    results: dict[str, Any] = {
        "data": "sklearn.datasets.load_digits",
        "training_images": len(training[1]),
        "test_images": len(test[1]),
        "settings": {"epochs": epochs, "batch": BATCH, "learning_rate": LEARNING_RATE, "kernel_num": KERNELS,
                     "image": SIZE, "seed": SEED},
        "machine": describe() | {"processor": platform.machine()},
        "difference_at_first": float((first[0] - first[1]).abs().max() / first[0].abs().max()),
        "models": {},
    }  # fmt: skip
    for name, model in models.items():
        history = []
        for epoch in train(model, training, test, epochs):
            history.append({key: float(f"{value:.5g}") for key, value in epoch.items()})
            print(name, json.dumps(history[-1]), flush=True)
        parameters = sum(p.numel() for p in model.parameters())
        results["models"][name] = {"parameters": parameters, "epochs": history}
    return results


def table(results: dict[str, Any]) -> str:
    """What the document shows: one row a model, and how it was made."""
    lines = [
        "| | parameters | test accuracy | test loss | training loss, last epoch | CPU time of an epoch |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in results["models"].items():
        last = model["epochs"][-1]
        seconds = sum(epoch["cpu_s"] for epoch in model["epochs"]) / len(model["epochs"])
        lines.append(
            f"| {LABELS[name]} | {model['parameters'] / 1e6:.1f} M | {last['test_accuracy']:.1%} | "
            f"{last['test_loss']:.3f} | {last['training_loss']:.4f} | {seconds:.1f} s |"
        )
    settings, machine = results["settings"], results["machine"]
    lines += [
        "",
        f"{results['training_images']} scans to train on and {results['test_images']} to test on, "
        f"{settings['epochs']} epochs of batches of {settings['batch']}, one seed, the same batches for both; at first "
        f"the outputs differ by {results['difference_at_first']:.0e} of the largest. "
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, {machine['date']}. One image in the test "
        f"is {1 / results['test_images']:.1%}: differences of that size mean nothing.",
        "",
        f"![Loss and accuracy of both by epoch](images/{CURVES.name})",
    ]
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Training loss and test accuracy by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (("training_loss", "training loss"), ("test_accuracy", "test accuracy"))
    with matplotlib.rc_context({"svg.hashsalt": "flexor", "font.size": 8}):
        figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
        for axis, (key, title) in zip(axes, panels, strict=True):
            for name, model in results["models"].items():
                history = model["epochs"]
                places, values = [epoch["epoch"] for epoch in history], [epoch[key] for epoch in history]
                axis.plot(places, values, "o-", color=COLORS[name], label=LABELS[name], markersize=3)
            axis.set_xlabel("epoch")
            axis.set_title(title, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_yscale("log")
        axes[0].legend(frameon=False)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def publish(results: dict[str, Any]) -> None:
    """Draws the curves and puts the table between its markers."""
    draw(results, CURVES)
    before, _, rest = DOCUMENT.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{DOCUMENT} has no odconv_digits block")
    DOCUMENT.write_text(f"{before}{START}\n{table(results)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--draw", action="store_true", help="train nothing: curves and table from the JSON")
    arguments = parser.parse_args()
    if not arguments.draw:
        RESULTS.write_text(json.dumps(compare(arguments.epochs), indent=1) + "\n")
    publish(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
