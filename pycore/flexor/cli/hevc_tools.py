# SPDX-License-Identifier: Apache-2.0
"""What the headers of an HEVC stream allow, and what its blocks make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.hevc import Inspection, Unit

Elements = Mapping[str, Any]
VPS, SPS, PPS = 32, 33, 34
PROFILES = {1: "Main", 2: "Main 10", 3: "Main Still Picture", 4: "Format range extensions", 5: "High throughput",
            9: "Screen content coding", 11: "High throughput screen content coding"}  # fmt: skip
NXN, BYPASS, PCM = 1, 2, 4  # of coding blocks
CODED, SKIPPED, RDPCM, CROSS_COMPONENT, ROTATED, SIGN_HIDDEN = 1, 2, 4, 8, 16, 32  # of transform blocks


@dataclass(frozen=True)
class Tool:
    """headers: what they say; used: by how many blocks, or nothing to count."""

    name: str
    headers: str
    used: str = ""


@dataclass(frozen=True)
class Headers:
    """The parameter sets and slice headers of one picture."""

    sps: Elements
    pps: Elements
    slices: Sequence[Elements]

    @property
    def slice(self) -> Elements:
        return self.slices[0]

    @property
    def min_coding_log2(self) -> int:
        return int(self.sps["log2_min_luma_coding_block_size_minus3"]) + 3

    @property
    def ctb_log2(self) -> int:
        return self.min_coding_log2 + int(self.sps["log2_diff_max_min_luma_coding_block_size"])

    @property
    def transform_log2(self) -> tuple[int, int]:
        least = int(self.sps["log2_min_luma_transform_block_size_minus2"]) + 2
        return least, least + int(self.sps["log2_diff_max_min_luma_transform_block_size"])

    @property
    def window(self) -> tuple[int, int]:
        """Where the picture that is shown begins in the coded one, luma samples."""
        across, down = {1: (2, 2), 2: (2, 1)}.get(self.sps["chroma_format_idc"], (1, 1))
        return self.sps.get("conf_win_left_offset", 0) * across, self.sps.get("conf_win_top_offset", 0) * down

    @property
    def profile(self) -> str:
        number = self.sps["general_profile_idc"]
        name = PROFILES.get(number, f"profile {number}")
        if number in (4, 5):
            limits = (("8bit", "8 bit"), ("10bit", "10 bit"), ("12bit", "12 bit"))
            depth = next((text for key, text in limits if self._limit(key)), "16 bit")
            chroma = (("monochrome", "4:0:0"), ("420chroma", "4:2:0"), ("422chroma", "4:2:2"))
            name += f" (to {depth}, {next((text for key, text in chroma if self._limit(key)), '4:4:4')})"
        tier = "High" if self.sps["general_tier_flag"] else "Main"
        return f"{name}, level {self.sps['general_level_idc'] / 30:.3g}, {tier} tier"

    def _limit(self, key: str) -> bool:
        return bool(self.sps.get(f"general_max_{key}_constraint_flag"))


def headers_of(found: Inspection, number: int) -> Headers:
    """Of the picture with this number in decoding order. Raises: ValueError where its slices are not found."""
    sets: dict[tuple[int, int], Elements] = {}
    slices: list[Elements] = []
    for unit in found.units:
        if unit.kind in (SPS, PPS):
            name = "sps_seq_parameter_set_id" if unit.kind == SPS else "pps_pic_parameter_set_id"
            if not slices:
                sets[unit.kind, int(unit.elements.get(name, -1))] = unit.elements  # type: ignore[arg-type]
        elif unit.picture == number:
            slices.append(unit.elements)
        elif slices and unit.picture is not None:
            break
    if not slices:
        raise ValueError(f"no slice header of picture {number} can be read")
    pps = sets[PPS, slices[0]["slice_pic_parameter_set_id"]]
    return Headers(sets[SPS, pps["pps_seq_parameter_set_id"]], pps, slices)


@dataclass(frozen=True)
class Blocks:
    """All coding and transform blocks of some pictures."""

    coding: NDArray[Any]
    transform: NDArray[Any]
    sao: NDArray[np.uint8]
    bits: Mapping[str, float]

    @classmethod
    def of(cls, found: Inspection) -> Blocks:
        blocks = [each for _, each in found.pictures]
        return cls(
            np.concatenate([each.coding_blocks for each in blocks]),
            np.concatenate([each.transform_blocks for each in blocks]),
            np.concatenate([each.sao_types for each in blocks]),
            {name: sum(each.bits[name] for each in blocks) for name in blocks[0].bits},
        )

    @cached_property
    def coded(self) -> NDArray[Any]:
        return self.transform[(self.transform["flags"] & CODED) != 0]

    def share(self, flag: int) -> str:
        """Of coded transform blocks, those with a flag."""
        return share(int(((self.coded["flags"] & flag) != 0).sum()), len(self.coded), "residual blocks")

    def coding_share(self, flag: int) -> str:
        return share(int(((self.coding["flags"] & flag) != 0).sum()), len(self.coding), "coding blocks")

    def areas(self) -> dict[str, dict[str, float]]:
        """Shares of the area by size of coding block, by size of luma transform block, and by luma mode."""
        luma = self.transform[self.transform["component"] == 0]
        return {
            "coding_blocks": _by_size(self.coding),
            "transform_blocks": _by_size(luma),
            "luma_modes": self._modes(),
        }

    def _modes(self) -> dict[str, float]:
        predicted = self.coding[(self.coding["flags"] & PCM) == 0]
        split = (predicted["flags"] & NXN) != 0
        area = 4.0 ** predicted["log2_size"]
        modes = np.concatenate([predicted["luma_modes"][~split, 0], predicted["luma_modes"][split].ravel()])
        weights = np.concatenate([area[~split], np.repeat(area[split] / 4, 4)])
        total = max(weights.sum(), 1)
        kinds = {"planar": modes == 0, "DC": modes == 1, "horizontal, 10": modes == 10, "vertical, 26": modes == 26}
        kinds["other angles"] = (modes > 1) & (modes != 10) & (modes != 26)
        return {name: float(weights[chosen].sum() / total) for name, chosen in kinds.items()}


def share(part: int, whole: int, of: str) -> str:
    return f"{part / whole:.1%} of {of}" if part else "not used"


def _by_size(blocks: NDArray[Any]) -> dict[str, float]:
    areas = 4.0 ** blocks["log2_size"]
    total = max(areas.sum(), 1)
    return {
        f"{1 << size}x{1 << size}": float(areas[blocks["log2_size"] == size].sum() / total)
        for size in sorted(set(blocks["log2_size"].tolist()), reverse=True)
    }


def tools(headers: Headers, blocks: Blocks) -> list[Tool]:
    """Every tool of intra pictures: what the headers say of it, how often it is used."""
    return [*_parallel_tools(headers), *_residual_tools(headers, blocks), *_block_tools(headers, blocks),
            *_quantisation_tools(headers, blocks), *_filters(headers, blocks)]  # fmt: skip


def _on(flag: Any, detail: str = "") -> str:
    return (f"on, {detail}" if detail else "on") if flag else "off"


def _parallel_tools(headers: Headers) -> Iterator[Tool]:
    pps = headers.pps
    dependent = sum(bool(each.get("dependent_slice_segment_flag")) for each in headers.slices)
    segments = f"{len(headers.slices) - dependent} in the picture"
    yield Tool("slices", segments + (f", {dependent} dependent segments" if dependent else ""))
    columns, rows = (pps.get(f"num_tile_{way}_minus1", 0) + 1 for way in ("columns", "rows"))
    spacing = "uniform" if pps.get("uniform_spacing_flag", 1) else "of their own sizes"
    yield Tool("tiles", _on(pps["tiles_enabled_flag"], f"{columns}x{rows}, {spacing}"))
    yield Tool("wavefronts", _on(pps["entropy_coding_sync_enabled_flag"]))


def _residual_tools(headers: Headers, blocks: Blocks) -> Iterator[Tool]:
    sps, pps = headers.sps, headers.pps
    largest = 4 << pps.get("log2_max_transform_skip_block_size_minus2", 0)
    skips = _on(pps["transform_skip_enabled_flag"], f"up to {largest}x{largest}")
    yield Tool("transform skip", skips, blocks.share(SKIPPED))
    yield Tool("sign data hiding", _on(pps["sign_data_hiding_enabled_flag"]), blocks.share(SIGN_HIDDEN))
    for name, key, flag in (
        ("implicit RDPCM", "implicit_rdpcm_enabled_flag", RDPCM),
        ("explicit RDPCM", "explicit_rdpcm_enabled_flag", 0),
        ("residual rotation", "transform_skip_rotation_enabled_flag", ROTATED),
        ("transform skip context", "transform_skip_context_enabled_flag", 0),
        ("persistent Rice", "persistent_rice_adaptation_enabled_flag", 0),
        ("extended precision", "extended_precision_processing_flag", 0),
        ("bypass alignment", "cabac_bypass_alignment_enabled_flag", 0),
    ):
        yield Tool(name, _on(sps.get(key)), blocks.share(flag) if flag else "")
    cross = pps.get("cross_component_prediction_enabled_flag")
    yield Tool("cross-component prediction", _on(cross), blocks.share(CROSS_COMPONENT))


def _block_tools(headers: Headers, blocks: Blocks) -> Iterator[Tool]:
    sps, pps = headers.sps, headers.pps
    yield Tool("NxN (four predictions)", "on", blocks.coding_share(NXN))
    yield Tool("lossless blocks", _on(pps["transquant_bypass_enabled_flag"]), blocks.coding_share(BYPASS))
    least = sps.get("log2_min_pcm_luma_coding_block_size_minus3", 0) + 3
    most = least + sps.get("log2_diff_max_min_pcm_luma_coding_block_size", 0)
    depths = "/".join(str(sps.get(f"pcm_sample_bit_depth_{of}_minus1", 0) + 1) for of in ("luma", "chroma"))
    unfiltered = ", not filtered" if sps.get("pcm_loop_filter_disabled_flag") else ""
    sizes = f"{1 << least} to {1 << most}, {depths} bit{unfiltered}"
    yield Tool("PCM", _on(sps["pcm_enabled_flag"], sizes), blocks.coding_share(PCM))
    yield Tool("constrained intra prediction", _on(pps["constrained_intra_pred_flag"]))
    yield Tool("strong smoothing", _on(sps["strong_intra_smoothing_enabled_flag"]))
    yield Tool("smoothing of references", _on(not sps.get("intra_smoothing_disabled_flag")))


def _quantisation_tools(headers: Headers, blocks: Blocks) -> Iterator[Tool]:
    sps, pps, first = headers.sps, headers.pps, headers.slice
    least, most = (int(pick(blocks.coding["qp"])) for pick in (np.min, np.max))
    start = 26 + pps["init_qp_minus26"] + first.get("slice_qp_delta", 0)
    group = 1 << (headers.ctb_log2 - pps.get("diff_cu_qp_delta_depth", 0))
    used = f"QP {least}" if least == most else f"QP {least} to {most}"
    yield Tool("QP", f"{start}; deltas " + _on(pps["cu_qp_delta_enabled_flag"], f"groups of {group}x{group}"), used)
    offsets = [pps[f"pps_{c}_qp_offset"] + first.get(f"slice_{c}_qp_offset", 0) for c in ("cb", "cr")]
    yield Tool("chroma QP offsets", f"Cb {offsets[0]:+d}, Cr {offsets[1]:+d}" if any(offsets) else "off")
    entries = pps.get("chroma_qp_offset_list_len_minus1", 0) + 1
    lists = _on(pps.get("chroma_qp_offset_list_enabled_flag"), f"{entries} {'entry' if entries == 1 else 'entries'}")
    yield Tool("chroma QP offset lists", lists)
    where = "of the PPS" if pps["pps_scaling_list_data_present_flag"] else "default"
    if where == "default" and sps.get("sps_scaling_list_data_present_flag"):
        where = "of the SPS"
    yield Tool("scaling lists", _on(sps["scaling_list_enabled_flag"], where))


def _filters(headers: Headers, blocks: Blocks) -> Iterator[Tool]:
    sps, pps = headers.sps, headers.pps
    off = [each for each in headers.slices if _in_slice(each, pps, "deblocking_filter_disabled_flag")]
    beta, tc = (2 * _in_slice(headers.slice, pps, f"{name}_offset_div2") for name in ("beta", "tc"))
    said = "off" if len(off) == len(headers.slices) else f"on, beta {beta:+d}, tc {tc:+d}"
    yield Tool("deblocking", said)
    names = ("luma", "Cb", "Cr")
    used = [
        f"{name} {np.mean(blocks.sao[:, i] == 1):.0%} band, {np.mean(blocks.sao[:, i] == 2):.0%} edge"
        for i, name in enumerate(names)
        if len(blocks.sao) and blocks.sao[:, i].any()
    ]
    yield Tool("SAO", _on(sps["sample_adaptive_offset_enabled_flag"]), "; ".join(used) or "not used")


def _in_slice(header: Elements, pps: Elements, name: str) -> int:
    return int(header.get(f"slice_{name}", pps.get(f"pps_{name}", 0)))


def units_by_kind(units: Sequence[Unit]) -> dict[str, tuple[int, int]]:
    """(how many, bytes) of each kind of NAL unit."""
    found: dict[str, tuple[int, int]] = {}
    for unit in units:
        count, size = found.get(unit.name, (0, 0))
        found[unit.name] = count + 1, size + unit.size
    return found
