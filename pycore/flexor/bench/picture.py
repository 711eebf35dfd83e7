# SPDX-License-Identifier: Apache-2.0
"""Results as a picture: how many times faster than each peer, by shape and direction."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .contest import FORWARD, OURS, TRAINING, Record, speedups

COLORS = {"torchvision": "#3b6fb6", "onnxruntime": "#e08a2e", "grid_sample": "#5a9e6f", "F.conv2d": "#9a9a9a"}


def draw(results: dict, path: Path) -> None:
    """Draws one-thread, float32, batch 1 results; the suffix of `path` names the format (svg, png, pdf).

    Raises: ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "flexor"
    import matplotlib.pyplot as plt

    records = [r for r in results["contests"] if _is_plain(r) and OURS in r["ms"]]
    panels = [d for d in (FORWARD, TRAINING) if any(r["direction"] == d for r in records)]
    rows = max(sum(r["direction"] == d for r in records) for d in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels) + 1, 1.6 + 0.55 * rows), squeeze=False,
                                sharex=True)  # fmt: skip
    for axis, direction in zip(axes[0], panels, strict=True):
        _draw_panel(axis, direction, [r for r in records if r["direction"] == direction])
    axes[0][-1].legend(*_legend(axes[0]), loc="lower right", frameon=False, fontsize=8)
    machine = results["machine"]
    figure.suptitle(f"{results['family']}: times faster than (1 thread, {machine['cpu']}, {machine['isa']})", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
    plt.close(figure)


def _is_plain(record: Record) -> bool:
    return (record["dtype"], record["layout"], record["batch"], record["threads"]) == ("float32", "contiguous", 1, 1)


def _draw_panel(axis, direction: str, records: list[Record]) -> None:
    peers = [name for name in COLORS if any(name in r["ms"] for r in records)]
    height = 0.8 / max(1, len(peers))
    for row, record in enumerate(records):
        for place, peer in enumerate(peers):
            ratios = speedups(record, peer)
            if not ratios:
                continue
            y, ratio = row - 0.4 + (place + 0.5) * height, median(ratios)
            axis.barh(y, ratio, height * 0.9, color=COLORS[peer], label=peer)
            axis.text(ratio * 1.05, y, f"{ratio:.2g}", va="center", fontsize=7)
    several_ops = len({r["op"] for r in records}) > 1
    axis.set_yticks(range(len(records)), [f"{r['op']} {r['case']}" if several_ops else r["case"] for r in records])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(right=axis.get_xlim()[1] * 1.4)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_title(direction, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(axes) -> tuple[list, list[str]]:
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
