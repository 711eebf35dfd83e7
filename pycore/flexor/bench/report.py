# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown: the goals, every time measured, memory, latency, threads; and two results compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from . import family_module
from .contest import FORWARD, OURS, TRAINING, Record, speedups, summary
from .deform import CONV, GOAL_MEMORY, GOALS
from .deform import Goal as DeformGoal
from .goals import Gain, Goal


def markdown(results: dict, everything: bool = True) -> str:
    """The family's tables; without `everything` only what a README shows."""
    parts = [machine_line(results["machine"])]
    if results["family"] == "deform":
        parts += [deform_goals(results), side_goals(results)]
    else:
        parts += [
            peer_line(results),
            goal_table(results),
            peer_table(results),
            *gain_tables(results),
            memory_table(results),
            parts_table(results),
        ]
    if everything:
        tables = [f"#### {title}\n\n{table}" for title, table in time_tables(results)]
        parts += ["<details><summary>Every time measured</summary>", *tables, skipped_list(results["contests"])]
        parts.append("</details>")
    return "\n\n".join(part for part in parts if part) + "\n"


def machine_line(machine: dict) -> str:
    """One sentence on what was measured on what, and how."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['isa']}; one thread reaches "
        f"{machine['fma_gflops']:.0f} GFLOP/s ({machine['fma_method']}). {versions}{commit}, {machine['date']}. "
        "Contestants run in turn in one process; one thread is timed in process CPU time, more threads in "
        "wall-clock time; a ratio is the median over rounds of the ratio of two times in the same round."
    )


def peer_line(results: dict) -> str:
    """Versions of the programs and libraries that took part."""
    kinds = [kind for kind in ("decoders", "encoders") if kind in results]
    told = (", ".join(f"{name} {version}" for name, version in results[kind].items()) for kind in kinds)
    return " ".join(f"{kind.capitalize()}: {those}." for kind, those in zip(kinds, told, strict=True))


def goal_table(results: dict) -> str:
    """Every contest with a goal: what flexor reached, and what the others did by the same measure."""
    module = family_module(results["family"])
    goals: Sequence[Goal] = getattr(module, "GOALS", ())
    yardsticks = getattr(module, "YARDSTICKS", ())
    ceiling = results["machine"]["fma_gflops"]
    found = [(goal, record) for goal in goals if (record := goal.find(results["contests"]))]
    rows = []
    for goal, record in found:
        values = goal.reached(record, ceiling)
        if not values:
            continue
        middle, worst = goal.show(median(values)), goal.show(goal.worst(values))
        limit = f"{'at most' if goal.at_most or goal.per_item else 'at least'} {goal.show(goal.limit)}"
        others = (
            f"{name}: {goal.show(median(theirs))}"
            for name in record["ms"]
            if name not in (OURS, goal.peer, *yardsticks) and (theirs := goal.reached(record, ceiling, name))
        )
        rows.append(
            [
                f"{goal.case}, batch {goal.batch}", goal.direction, goal.measure, f"**{middle}** ({worst})",
                f"{limit}: {_verdict(goal.met(median(values)))}", ", ".join(others),
            ]
        )  # fmt: skip
    head = ["contest", "direction", "measure", "flexor (worst round)", "goal", "others by the same measure"]
    return _table(head, rows) if rows else ""


def peer_table(results: dict) -> str:
    """Contests without a goal, such as those on real scans, of a family that has yardsticks: ours beside the others."""
    module = family_module(results["family"])
    yardsticks: dict[str, int] = getattr(module, "YARDSTICKS", {})
    records = [r for r in results["contests"] if r["dtype"] == "float32" and r["threads"] == 1]
    with_goal = [goal.find(records) for goal in getattr(module, "GOALS", ())]
    rows = []
    for record in [r for r in records if yardsticks and r not in with_goal]:
        cells = []
        for name in [name for name in record["ms"] if name != OURS]:
            ratio = median(speedups(record, name))
            if name in yardsticks:
                cells.append(f"{record['flops'] / yardsticks[name] * ratio:.0%} of {name}'s rate")
            else:
                cells.append(f"{ratio:.3g}x {name}")
        each = 1e6 * median(record["ms"][OURS]) / record["items"]
        rows.append([_kind(record), record["direction"], f"{record['items']}", f"{each:.0f} ns", ", ".join(cells)])
    head = ["without a goal", "direction", "voxels", "time of each", "flexor is as fast as"]
    return _table(head, rows) if rows else ""


def gain_tables(results: dict) -> list[str]:
    """What all threads, or another type, gain: flexor beside its yardstick."""
    gains: Sequence[Gain] = getattr(family_module(results["family"]), "GAINS", ())
    tables = []
    for gain in gains:
        found = [(record, pair) for record in results["contests"] if (pair := gain.find(record))]
        rows = [[_kind(record), record["direction"], *_gain_cells(gain, *pair)] for record, pair in found]
        if rows:
            head = [f"gain from {gain.under}", "direction", OURS, gain.yardstick, f"ours / {gain.yardstick}'s", "goal"]
            tables.append(_table(head, rows))
    return tables


def memory_table(results: dict) -> str:
    """Peak memory by case and contestant."""
    memory: dict[str, dict[str, int | None]] | None = results.get("memory_bytes")
    if not memory:
        return ""
    names = list(next(iter(memory.values())))
    rows = [[case, *(_mib(sizes[name]) for name in names)] for case, sizes in memory.items()]
    work = getattr(family_module(results["family"]), "MEMORY", "forward + backward")
    return _table([f"{work}, peak memory beyond the tensors", *names], rows)


def parts_table(results: dict) -> str:
    """Where the time of whole networks goes."""
    parts: dict[str, dict[str, float]] | None = results.get("parts_ms")
    if not parts:
        return ""
    rows = [
        [network, part, f"{ms:.3g}", f"{ms / sum(of_all.values()):.0%}"]
        for network, of_all in parts.items()
        for part, ms in of_all.items()
    ]
    return _table(["network", "part", "ms", "share"], rows)


def deform_goals(results: dict) -> str:
    """The shapes with goals: ratios to torchvision, onnxruntime and the dense convolution."""
    rows = []
    for case, goal in GOALS.items():
        forward = _find(results, case=case, direction=FORWARD)
        training = _find(results, case=case, direction=TRAINING)
        if forward is None or training is None:
            continue
        ceiling = results["machine"]["fma_gflops"]
        rows.append(
            [
                case,
                _ratio_cell(forward, "torchvision", goal.forward, ceiling),
                _ratio_cell(training, "torchvision", goal.training, ceiling),
                _ratio_cell(forward, "onnxruntime", goal.onnxruntime, ceiling),
                _dense_cell(results, case, goal),
            ]
        )
    head = ["shape", "forward, x torchvision", "forward + backward, x torchvision", "forward, x onnxruntime",
            "forward: time of F.conv2d / ours"]  # fmt: skip
    return _table(head, rows)


def side_goals(results: dict) -> str:
    """Memory, small calls and threads beside their goals."""
    lines = []
    memory = results.get("memory_bytes")
    if memory:
        rows = [
            [case, f"{_mib(sizes[OURS])} ({_verdict(sizes[OURS] < GOAL_MEMORY)})", _mib(sizes.get("torchvision"))]
            for case, sizes in memory.items()
        ]
        title = f"forward + backward, peak memory beyond the tensors (goal: under {_mib(GOAL_MEMORY)})"
        lines.append(_table([title, OURS, "torchvision"], rows))
    latency = results.get("latency_ns")
    if latency:
        ours, dense = latency[OURS] / 1e3, latency[CONV] / 1e3
        lines.append(
            f"A call on a 1x8x5x5 input without gradients takes {ours:.1f} us, `F.conv2d`'s {dense:.1f} us "
            f"(goal: at most that; {_verdict(ours <= dense)})."
        )
    lines += gain_tables(results)
    return "\n\n".join(lines)


def time_tables(results: dict) -> Iterator[tuple[str, str]]:
    """(title, table) of each operator, direction, dtype, layout, batch and thread count."""
    groups: dict[str, list[Record]] = {}
    for r in results["contests"]:
        threads = "1 thread" if r["threads"] == 1 else f"{r['threads']} threads"
        kind = f"{r['op']} {r['direction']}, {r['dtype']}, {r['layout']}, batch {r['batch']}, {threads}"
        groups.setdefault(kind, []).append(r)
    ceiling = results["machine"]["fma_gflops"]
    for title, records in groups.items():
        names = list(dict.fromkeys(name for r in records for name in r["ms"]))
        each = ["ns a voxel"] if "items" in records[0] else []
        sizes = [f"{name}, kB" for name in names] if "sizes" in records[0] else []
        head = [
            "shape",
            *(f"{name}, ms" for name in names),
            *sizes,
            *each,
            "GFLOP/s",
            "of FMA ceiling",
            "GB/s",
            "largest error",
        ]
        rows = [_time_row(r, names, ceiling) for r in records]
        told = [i for i in range(len(head)) if any(row[i] != "-" for row in rows)]
        yield f"{title} (median)", _table([head[i] for i in told], [[row[i] for i in told] for row in rows])


def skipped_list(contests: Sequence[Record]) -> str:
    """Who did not run, why, and in how many contests."""
    reasons: dict[tuple[str, str], int] = {}
    for record in contests:
        for name, reason in record["skipped"].items():
            reasons[name, reason] = reasons.get((name, reason), 0) + 1
    lines = [f"- {name}: {reason} ({count} of {len(contests)})" for (name, reason), count in reasons.items()]
    return "Skipped:\n\n" + "\n".join(lines) if lines else ""


def compare(new: dict, base: dict) -> str:
    """flexor's time in `base` over that in `new` for each contest that both have; above 1 is faster now."""
    before = {_key(record): record for record in base["contests"]}
    rows = []
    for record in new["contests"]:
        old = before.get(_key(record))
        if old is None or OURS not in record["ms"] or OURS not in old["ms"]:
            continue
        was, now = min(old["ms"][OURS]), min(record["ms"][OURS])
        rows.append([*map(str, _key(record)), f"{was:.3g}", f"{now:.3g}", f"{was / now:.2f}x"])
    rows.sort(key=lambda row: float(row[-1][:-1]))
    head = ["op", "shape", "direction", "batch", "dtype", "layout", "threads", "base ms", "new ms", "base / new"]
    return _table(head, rows)


def _key(record: Record) -> tuple:
    return tuple(record[field] for field in ("op", "case", "direction", "batch", "dtype", "layout", "threads"))


def _find(results: dict, case: str, direction: str, layout: str = "contiguous") -> Record | None:
    wanted = ("deform_conv2d", case, direction, 1, "float32", layout, 1)
    return next((record for record in results["contests"] if _key(record) == wanted), None)


def _ratio_cell(record: Record, peer: str, goal: float, ceiling: float) -> str:
    ratios = speedups(record, peer)
    if not ratios:
        return f"{peer} absent"
    middle, least = summary(ratios)
    # What a kernel at the FMA ceiling would reach: a goal beyond it cannot be met on this machine.
    bound = median(record["ms"][peer]) / (record["flops"] / ceiling / 1e6)
    unreachable = f"; {bound:.2g}x at the FMA ceiling" if bound < goal else ""
    return f"**{middle:.3g}x** (least {least:.3g}x; goal {goal:g}x, {_verdict(middle >= goal)}{unreachable})"


def _dense_cell(results: dict, case: str, goal: DeformGoal) -> str:
    cells = []
    for layout, wanted in (("contiguous", goal.dense), ("channels_last", goal.dense_channels_last)):
        record = _find(results, case, FORWARD, layout)
        if record is None or (layout == "channels_last" and wanted is None):
            continue
        share = median(speedups(record, CONV))
        label = "" if layout == "contiguous" else f" {layout}"
        verdict = f"(goal {wanted:.0%}, {_verdict(share >= wanted)})" if wanted else "(bound by offsets and masks)"
        cells.append(f"**{share:.0%}**{label} {verdict}")
    return ", ".join(cells)


def _gain_cells(gain: Gain, ours: float, yardstick: float) -> Iterator[str]:
    yield f"{ours:.2f}x"
    yield f"{yardstick:.2f}x"
    yield f"{ours / yardstick:.0%}"
    limit = gain.limit(yardstick)
    yield f"at least {limit:.2f}x: {_verdict(gain.met(ours, yardstick))}" if limit else "-"


def _kind(record: Record) -> str:
    """The case, and what it is not one of."""
    parts = [record["case"]]
    for field, word in (("batch", "batch {}"), ("threads", "{} threads")):
        if record[field] > 1:
            parts.append(word.format(record[field]))
    return ", ".join(parts)


def _time_row(record: Record, names: Sequence[str], ceiling: float) -> list[str]:
    times = record["ms"]
    cells = [f"{median(times[name]):.3g}" if name in times else "-" for name in names]
    seconds = median(times[OURS]) / 1e3
    gflops = record["flops"] / seconds / 1e9
    counts = record["flops"] and record["threads"] == 1 and record["dtype"] == "float32"
    each = [f"{1e9 * seconds / record['items']:.3g}"] if "items" in record else []
    sizes = record.get("sizes", {})
    kilobytes = [f"{sizes[name] / 1e3:.0f}" if name in sizes else "-" for name in names] if sizes else []
    return [
        record["case"], *cells, *kilobytes, *each, f"{gflops:.3g}" if record["flops"] else "-",
        f"{gflops / ceiling:.0%}" if counts else "-",
        f"{record['bytes'] / seconds / 1e9:.3g}", f"{record['error'][OURS]:.0e}",
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


def _mib(size: int | None) -> str:
    return "absent" if size is None else f"{size / 2**20:.1f} MiB"
