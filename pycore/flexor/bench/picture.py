# SPDX-License-Identifier: Apache-2.0
"""Results as a picture: how many times faster than each peer, by shape and direction."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .contest import BACKWARD, BUILD, FORWARD, OURS, TRAINING, Record, speedups

COLORS = {
    "torchvision": "#3b6fb6", "onnxruntime": "#e08a2e", "grid_sample": "#5a9e6f",
    "published": "#3b6fb6", "matmul": "#e08a2e", "grouped conv2d": "#3b6fb6", "conv2d a sample": "#e08a2e",
    "spconv": "#3b6fb6", "SparseConvNet": "#e08a2e", "gather-mm-add": "#5a9e6f", "Open3D": "#b65a8a",
    "F.conv2d": "#9a9a9a", "ffmpeg": "#3b6fb6", "libde265": "#e08a2e",
    "x265 ultrafast": "#5a9e6f", "x265 medium": "#3b6fb6", "x265 veryslow, tskip": "#e08a2e",
}  # fmt: skip
LABELS = {
    "F.conv2d": "F.conv2d (static, same shape)",
    "published": "published formulation",
    "matmul": "kernels mixed by one matrix product",
    "grouped conv2d": "F.conv2d with groups",
    "conv2d a sample": "F.conv2d sample by sample",
    "gather-mm-add": "PyTorch: gather, matrix product, add",
}
# Of other families 1.
BATCHES = {"dynamic": (8,), "match": (1, 8), "grid": (1, 200, 1024), "hevc": (12,), "hevc_encode": (2, 4)}
DTYPES = {"hevc": ("uint8", "uint16"), "hevc_encode": ("uint8",)}  # of other families float32
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
FORMATS = (".svg", ".png", ".pdf")


def draw(results: dict, path: Path) -> None:
    """Draws one-thread results, float32 where there are any; the suffix of `path` names the format (svg, png, pdf).

    Raises: ImportError without matplotlib, ValueError for another suffix.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"bench: the picture's suffix must be one of {', '.join(FORMATS)}, got {path.name}")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batches, dtypes = BATCHES.get(results["family"], (1,)), DTYPES.get(results["family"], ("float32",))
    held = list(dict.fromkeys(r["direction"] for r in results["contests"]))
    second = next((direction for direction in (BACKWARD, BUILD) if direction in held), TRAINING)
    directions = [FORWARD, second] if FORWARD in held else held
    panels = [_bars(results["contests"], direction, batches, dtypes) for direction in directions]
    with matplotlib.rc_context({"svg.hashsalt": "flexor", "font.size": 8}):
        height = 1.8 + 0.14 * max(map(len, panels)) + 0.1 * max(len({bar[0] for bar in bars}) for bars in panels)
        figure, axes = plt.subplots(1, len(panels), figsize=(11, height), sharex=True, squeeze=False)
        axes = axes[0]
        for axis, title, bars in zip(axes, directions, panels, strict=True):
            _draw_panel(axis, title, bars)
        _set_scale(axes[0], [ratio for bars in panels for _, _, ratio in bars])
        figure.suptitle(
            f"How many times faster flexor is than each peer: one thread of {results['machine']['cpu']}, "
            f"{results['machine']['isa']}, {' and '.join(dtypes)}"
            + (f", batch {batches[0]}" if len(batches) == 1 else "")
        )
        used = [peer for peer in COLORS if any(bar[1] == peer for bars in panels for bar in bars)]
        patches = [matplotlib.patches.Patch(color=COLORS[peer], label=LABELS.get(peer, peer)) for peer in used]
        figure.legend(handles=patches, loc="lower center", ncols=len(used), frameon=False)
        figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
        plt.close(figure)


def _bars(
    contests: list[Record], direction: str, batches: tuple[int, ...], dtypes: tuple[str, ...]
) -> list[tuple[str, str, float]]:
    """(shape, peer, median ratio) of the plain contests of a direction."""
    plain = ("contiguous", 1, direction)
    records = [
        r
        for r in contests
        if (r["layout"], r["threads"], r["direction"]) == plain and r["batch"] in batches and r["dtype"] in dtypes
    ]
    several_ops = len({r["op"] for r in records}) > 1

    def label(r: Record) -> str:
        parts = [r["op"]] if several_ops else []
        return " ".join([*parts, r["case"], *([f"B{r['batch']}"] if len(batches) > 1 else [])])

    return [(label(r), peer, median(ratios)) for r in records for peer in COLORS if (ratios := speedups(r, peer, OURS))]


def _draw_panel(axis, title: str, bars: list[tuple[str, str, float]]) -> None:
    y, ticks = 0.0, []
    for shape in dict.fromkeys(bar[0] for bar in bars):
        first = y
        for _, peer, ratio in (bar for bar in bars if bar[0] == shape):
            axis.barh(y, ratio - 1, 0.9, left=1, color=COLORS[peer])
            axis.text(max(ratio, 1) * 1.05, y, f"{ratio:.2g}", va="center", fontsize=7)
            y += 1
        ticks.append(((first + y - 1) / 2, shape))
        y += 0.7
    axis.set_yticks([place for place, _ in ticks], [shape for _, shape in ticks])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _set_scale(axis, ratios: list[float]) -> None:
    low, high = min([*ratios, 0.5]) / 1.2, max([*ratios, 2]) * 1.5
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    shown = [tick for tick in TICKS if low <= tick <= high]
    axis.set_xticks(shown, [f"{tick:g}x" for tick in shown])
    axis.set_xticks([], minor=True)
    for panel in axis.figure.axes:
        panel.axvline(1, color="black", linewidth=0.8)
