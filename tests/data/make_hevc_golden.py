# SPDX-License-Identifier: Apache-2.0
"""Makes the streams of tests/data/hevc with three encoders, and what they decode to.

    python tests/data/make_hevc_golden.py --hm HM --hm-high HM --kvazaar kvazaar [--only NAME ...]

HM is a folder of HM 16.7 (the reference software of H.265) with its `bin` built, the second one with
RExt__HIGH_BIT_DEPTH_SUPPORT; x265 3.5 comes from the PATH.
Each stream is a few blocks of the card in tests/hevc_oracle.py. HM's decoder gives the planes, and checks them against
the hash in the stream; `agree` in streams.json names the decoders that give the same (some have faults).

A few limits of HM are lifted in its source: tiles may be small, and combine with wavefronts (TComPicSym.cpp,
TAppEncCfg.cpp); each picture may be IDR (TAppEncCfg.cpp). Three environment variables reach what HM has no option for:
FLX_LISTS, six entries in the lists of chroma QP offsets (TEncTop.cpp); FLX_SLICEQP, chroma QP offsets in the slice
header (TEncTop.cpp, TEncSlice.cpp); FLX_PPSLIST, scaling lists in the PPS instead of the SPS (TEncTop.cpp).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import hevc_oracle as oracle

HERE = Path(__file__).resolve().parent / "hevc"
LISTS = "lists.txt"  # stands in options for the file of scaling lists
REACH = ("FLX_LISTS", "FLX_SLICEQP", "FLX_PPSLIST")
HASHES = {0: None, 1: "md5", 2: "crc", 3: "checksum"}


@dataclass
class Stream:
    name: str
    options: str
    chroma: str = "4:2:0"
    bit_depth: int = 8
    size: tuple[int, int] = (72, 40)
    pictures: int = 1
    encoder: str = "hm"
    rgb: bool = False
    noise: int = 0  # every so many columns of 16 are noise
    smooth: bool = False
    hash: int = 1
    input_depth: int = 0  # of the picture that the encoder reads, where it is another
    config: str = ""  # of HM


THROUGHPUT = "encoder_intra_high_throughput_rext.cfg"
MAIN, MAIN10, REXT = "encoder_intra_main.cfg", "encoder_intra_main10.cfg", "encoder_intra_main_rext.cfg"
PLAIN = (  # what encoder_intra_main_rext.cfg switches on
    "--ImplicitResidualDPCM=0 --ExplicitResidualDPCM=0 --ResidualRotation=0 --SingleSignificanceMapContext=0 "
    "--GolombRiceParameterAdaptation=0 --HighPrecisionPredictionWeighting=0 --CrossComponentPrediction=0 "
)
CTB16 = "--MaxCUWidth=16 --MaxCUHeight=16 --MaxPartitionDepth=2 --QuadtreeTULog2MaxSize=4 "
CTB32 = "--MaxCUWidth=32 --MaxCUHeight=32 --MaxPartitionDepth=3 "
LOSSLESS = "--TransquantBypassEnableFlag=1 --CUTransquantBypassFlagForce=1 --CostMode=lossless "
MIXED = "--TransquantBypassEnableFlag=1 --CostMode=mixed_lossless_lossy "
WITH_LISTS = f"--ScalingList=2 --ScalingListFile={LISTS} "
SKIP = "--TransformSkipFast=0 "
LARGE = (
    CTB32.replace("Depth=3", "Depth=1")
    + "--QuadtreeTULog2MinSize=4 --QuadtreeTUMaxDepthIntra=2 --QuadtreeTUMaxDepthInter=1 "
)
WIDE, PARTS = (136, 72), (104, 56)


def structure():
    """Quadtrees, transform trees, prediction."""
    yield Stream("quadtree_64", "--QP=32", size=WIDE)
    yield Stream("quadtree_64_no_split", "--QP=38 --MaxPartitionDepth=1", size=WIDE)
    yield Stream("quadtree_32", "--QP=34 " + CTB32, size=(104, 40))
    yield Stream("quadtree_16", "--QP=34 " + CTB16)
    yield Stream("quadtree_16_cb16", "--QP=34 " + CTB16.replace("Depth=2", "Depth=1"))
    one = "--QuadtreeTUMaxDepthIntra=2 --QuadtreeTUMaxDepthInter=1 "
    sizes = "--QuadtreeTULog2MaxSize=4 --QuadtreeTULog2MinSize=3 --MaxPartitionDepth=2 "
    yield Stream("transforms_8_to_16", "--QP=30 " + sizes + one)
    yield Stream("transform_tree_depth_4", "--QP=32 --QuadtreeTUMaxDepthIntra=4")
    yield Stream("transforms_4_to_8", "--QP=32 " + CTB16.replace("Size=4", "Size=3") + one)
    yield Stream("strong_smoothing", "--QP=24", size=(136, 136), smooth=True)
    yield Stream("no_strong_smoothing", "--QP=24 --StrongIntraSmoothing=0", size=(136, 136), smooth=True)
    yield Stream("constrained_intra", "--QP=30 --ConstrainedIntraPred=1")
    yield Stream("no_sign_hiding", "--QP=30 --SignHideFlag=0", size=(40, 40))
    yield Stream("qp_0", "--QP=0", size=(24, 16))
    yield Stream("qp_51", "--QP=51", size=WIDE)


def formats():
    for chroma in oracle.SUBSAMPLING:
        for depth in (8, 10, 12):
            name = f"format_{chroma.replace(':', '')}_{depth}"
            yield Stream(name, PLAIN + "--QP=28", chroma, depth, size=(56, 40), config=REXT)
    rgb = "--VuiParametersPresent=1 --VideoSignalTypePresent=1 --ColourDescriptionPresent=1 --ColourPrimaries=1 "
    rgb += "--TransferCharacteristics=13 --MatrixCoefficients=0 --VideoFullRange=1 "
    yield Stream("format_rgb", rgb + "--QP=28", "4:4:4", size=(56, 40), rgb=True)
    yield Stream("depths_8_and_10", PLAIN + "--QP=28 --InternalBitDepthC=10", config=REXT)
    yield Stream("depths_12_and_8", PLAIN + "--QP=28 --InternalBitDepthC=8", "4:4:4", 12, size=(56, 40))


def range_extensions():
    """One at a time, then all."""
    for name, options, chroma in (
        ("cross_component", "--CrossComponentPrediction=1 --QP=24", "4:4:4"),
        ("transform_skip_16_444", SKIP + LARGE + "--TransformSkipLog2MaxSize=5 --QP=22", "4:4:4"),
        ("transform_skip_8_422", SKIP + LARGE + "--TransformSkipLog2MaxSize=4 --QP=16", "4:2:2"),
        ("skip_rotation", SKIP + "--ResidualRotation=1 --QP=24", "4:4:4"),
        ("skip_context", SKIP + "--SingleSignificanceMapContext=1 --QP=24", "4:4:4"),
        ("implicit_rdpcm", SKIP + "--ImplicitResidualDPCM=1 --QP=24", "4:4:4"),
        ("explicit_rdpcm", SKIP + "--ExplicitResidualDPCM=1 --QP=28", "4:2:0"),
        ("persistent_rice", SKIP + "--GolombRiceParameterAdaptation=1 --QP=8", "4:2:0"),
        ("high_precision_offsets", "--HighPrecisionPredictionWeighting=1 --QP=28", "4:2:2"),
        ("no_reference_smoothing", "--IntraReferenceSmoothing=0 --QP=30", "4:4:4"),
        ("chroma_qp_lists", "--MaxCUChromaQpAdjustmentDepth=2 --QP=30", "4:2:2"),
        ("chroma_qp_lists_444", "--MaxCUChromaQpAdjustmentDepth=1 --QP=32", "4:4:4"),
    ):
        plain = PLAIN.replace("--CrossComponentPrediction=0 ", "") if "CrossComponent" in options else PLAIN
        yield Stream(name, plain + options, chroma, size=(32, 32), config=REXT)
    several = "--TransformSkipLog2MaxSize=5 --QP=20 --MaxCuDQPDepth=2 --MaxDeltaQP=3 " + SKIP
    for chroma, depth in (("4:4:4", 8), ("4:4:4", 12), ("4:2:2", 10), ("4:2:0", 12), ("4:0:0", 12)):
        adjusted = "" if chroma == "4:0:0" else "--MaxCUChromaQpAdjustmentDepth=2"
        name = f"all_extensions_{chroma.replace(':', '')}_{depth}"
        yield Stream(name, several + adjusted, chroma, depth, size=(32, 32), config=REXT)
    only_32 = "--MaxPartitionDepth=1 --QuadtreeTULog2MinSize=5 --QuadtreeTUMaxDepthIntra=1 --QuadtreeTUMaxDepthInter=1 "
    flat = PLAIN + SKIP + only_32 + "--TransformSkipLog2MaxSize=5 --QP=20"
    yield Stream("transform_skip_32", flat, "4:4:4", size=(64, 64), smooth=True)
    scales = "--SaoLumaOffsetBitShift=2 --SaoChromaOffsetBitShift=1 "
    yield Stream("sao_offset_scale", PLAIN + scales + "--QP=36", "4:2:0", 12, size=WIDE, config=REXT)
    six = "--MaxCUChromaQpAdjustmentDepth=2 FLX_LISTS "
    yield Stream("chroma_qp_six_lists", PLAIN + six + "--QP=30", "4:2:2", size=(40, 40))
    yield Stream("chroma_qp_six_lists_444", PLAIN + six.replace("2", "3", 1) + "--QP=32", "4:4:4", size=(40, 40))


def high_throughput():
    """What the profiles for 16 bits have, below that."""
    aligned = "--Profile=high-throughput-RExt --AlignCABACBeforeBypass=1 --ExtendedPrecision="
    for name, options, chroma, depth in (
        ("bypass_alignment", aligned + "0 --QP=14", "4:4:4", 12),
        ("extended_precision", PLAIN + SKIP + "--ExtendedPrecision=1 --QP=2", "4:4:4", 12),
        ("extended_precision_420_10", SKIP + "--ExtendedPrecision=1 --QP=-8", "4:2:0", 10),
        ("extended_precision_aligned", aligned + "1 --QP=2", "4:2:2", 12),
    ):
        named = THROUGHPUT if "Align" in options else REXT
        yield Stream(name, options, chroma, depth, size=(32, 32), encoder="hm-high", config=named)


def lossless_and_pcm():
    yield Stream("lossless_420", LOSSLESS, size=(24, 24))
    for name, chroma, depth, size in (
        ("lossless_444_extensions", "4:4:4", 8, (16, 24)),
        ("lossless_422_10_extensions", "4:2:2", 10, (16, 24)),
        ("lossless_400_12_extensions", "4:0:0", 12, (24, 24)),
    ):
        yield Stream(name, LOSSLESS, chroma, depth, size=size)
    yield Stream("lossless_blocks", MIXED + "--QP=6", size=(32, 32))
    yield Stream("lossless_blocks_444", MIXED + "--QP=6 --TransformSkipLog2MaxSize=4", "4:4:4", size=(24, 24))
    pcm = "--PCMEnabledFlag=1 "
    yield Stream("pcm_8", pcm + "--QP=10 --PCMLog2MinSize=3 --PCMLog2MaxSize=3", size=(32, 24), noise=2)
    yield Stream("pcm_32", pcm + "--QP=10 --PCMLog2MinSize=4 --PCMLog2MaxSize=5", size=(40, 32), noise=1)
    unfiltered = pcm + "--PCMFilterDisableFlag=1 "
    yield Stream("pcm_unfiltered_444", PLAIN + unfiltered + "--QP=4", "4:4:4", size=(32, 16), noise=2)
    shallow = PLAIN + unfiltered + "--PCMInputBitDepthFlag=1 --QP=-8"
    yield Stream("pcm_depths", shallow, "4:2:2", 12, size=(24, 24), noise=2, input_depth=8)
    yield Stream("pcm_400", PLAIN + pcm + "--QP=8", "4:0:0", size=(40, 32), noise=2)
    rows = CTB16 + pcm + "--PCMLog2MaxSize=4 --WaveFrontSynchro=1 --QP=4"
    yield Stream("pcm_wavefront", rows, size=(40, 32), noise=2)


def quantisation():
    yield Stream("qp_delta", "--QP=30 --MaxDeltaQP=5 --MaxCuDQPDepth=3")
    adaptive = "--QP=30 --AdaptiveQP=1 --MaxQPAdaptationRange=8 --MaxCuDQPDepth=3"
    yield Stream("qp_adaptive_444_10", adaptive, "4:4:4", 10, size=(56, 40))
    yield Stream("qp_delta_lossless", MIXED + "--QP=4 --MaxDeltaQP=4 --MaxCuDQPDepth=2", size=(32, 32))
    for chroma in ("4:2:0", "4:2:2", "4:4:4"):
        plain, short = "" if chroma == "4:2:0" else PLAIN, chroma.replace(":", "")
        yield Stream(f"chroma_qp_offsets_{short}", plain + "--QP=34 --CbQpOffset=-12 --CrQpOffset=9", chroma)
        slice_too = plain + "--QP=30 --CbQpOffset=3 FLX_SLICEQP"
        yield Stream(f"slice_chroma_qp_{short}", slice_too, chroma, size=(56, 40))
    yield Stream("scaling_default", "--QP=28 --ScalingList=1")
    yield Stream("scaling_default_444_10", PLAIN + "--QP=28 --ScalingList=1", "4:4:4", 10, size=(56, 40))
    yield Stream("scaling_lists_420", WITH_LISTS + "--QP=32", size=(72, 48))
    yield Stream("scaling_lists_444", WITH_LISTS + "--QP=32", "4:4:4", size=(72, 48))
    yield Stream("scaling_lists_pps", WITH_LISTS + "--QP=32 FLX_PPSLIST")
    yield Stream("scaling_lists_pps_444", WITH_LISTS + "--QP=32 FLX_PPSLIST", "4:4:4", size=(56, 40))
    skipping = PLAIN + WITH_LISTS + SKIP + "--QP=26 --TransformSkipLog2MaxSize=4"
    yield Stream("scaling_transform_skip_422", skipping, "4:2:2", size=(32, 32))


def loop_filters():
    yield Stream("no_deblocking", "--QP=34 --LoopFilterDisable=1")
    yield Stream("deblocking_offsets_pps", "--QP=34 --LoopFilterBetaOffset_div2=5 --LoopFilterTcOffset_div2=-4")
    in_slice = "--QP=34 --LoopFilterOffsetInPPS=0 --LoopFilterBetaOffset_div2=-4 --LoopFilterTcOffset_div2=5"
    yield Stream("deblocking_offsets_slice", in_slice)
    yield Stream("deblocking_422", PLAIN + "--QP=36 --CbQpOffset=6", "4:2:2")
    yield Stream("deblocking_444", PLAIN + "--QP=36 --CrQpOffset=6", "4:4:4")
    yield Stream("no_sao", "--QP=34 --SAO=0")
    yield Stream("sao_only", "--QP=38 --LoopFilterDisable=1", size=WIDE)


def partitions():
    """Slices, slice segments, tiles, wavefronts."""
    small = CTB16 + "--QP=36 "
    apart, across = "--LFCrossSliceBoundaryFlag=0 ", "--LFCrossTileBoundaryFlag=0 "
    two, four = "--NumTileColumnsMinus1=1 ", "--NumTileColumnsMinus1=1 --NumTileRowsMinus1=1 "
    uneven = "--NumTileColumnsMinus1=2 --NumTileRowsMinus1=1 --TileUniformSpacing=0 --TileColumnWidthArray=1,3 "
    uniform = "--TileUniformSpacing=1 "
    for name, options in (
        ("slices", small + "--SliceMode=1 --SliceArgument=5"),
        ("slices_unfiltered", small + apart + "--SliceMode=1 --SliceArgument=9"),
        ("slices_by_bytes", CTB32 + "--QP=34 --SliceMode=2 --SliceArgument=250"),
        ("dependent_slices", small + "--SliceSegmentMode=1 --SliceSegmentArgument=4"),
        (
            "slices_and_segments",
            small + apart + "--SliceMode=1 --SliceArgument=10 --SliceSegmentMode=1 --SliceSegmentArgument=3",
        ),
        ("wavefront", small + "--WaveFrontSynchro=1"),
        ("wavefront_slices", small + "--WaveFrontSynchro=1 --SliceMode=1 --SliceArgument=5"),
        ("wavefront_segments", small + "--WaveFrontSynchro=1 --SliceSegmentMode=2 --SliceSegmentArgument=120"),
        ("tiles_uniform", small + uniform + "--NumTileColumnsMinus1=2 --NumTileRowsMinus1=1"),
        ("tiles_unfiltered", small + across + uneven + "--TileRowHeightArray=1"),
        ("tiles_slices", small + apart + uniform + four + "--SliceMode=3 --SliceArgument=1"),
        ("tiles_segments", small + uniform + two + "--SliceSegmentMode=1 --SliceSegmentArgument=3"),
        ("tiles_wavefront", small + uniform + four + "--WaveFrontSynchro=1"),
    ):
        yield Stream(name, options, size=PARTS)
    yield Stream("wavefront_one_column", CTB16 + "--QP=34 --WaveFrontSynchro=1", size=(16, 72))
    yield Stream("wavefront_rice_444", CTB16 + SKIP + "--QP=22 --WaveFrontSynchro=1", "4:4:4", size=(40, 32))


def pictures_and_headers():
    for name, refresh in (("idr", 2), ("cra", 1), ("trailing", 0)):
        yield Stream(f"pictures_{name}", f"--QP=36 --DecodingRefreshType={refresh}", pictures=3)
    yield Stream("hash_crc", "--QP=34", hash=2)
    yield Stream("hash_checksum", "--QP=34", hash=3)
    yield Stream("hash_crc_422_12", PLAIN + "--QP=34", "4:2:2", 12, size=(56, 40), hash=2)
    yield Stream("hash_checksum_444_10", PLAIN + "--QP=34", "4:4:4", 10, size=(56, 40), hash=3)
    yield Stream("no_hash", "--QP=34", hash=0)
    yield Stream("size_8x8", "--QP=30", size=(8, 8))
    yield Stream("size_9x15_444", PLAIN + "--QP=30", "4:4:4", size=(9, 15))
    yield Stream("size_34x26", "--QP=28", size=(34, 26))
    yield Stream("size_34x17_422", PLAIN + "--QP=28", "4:2:2", size=(34, 17))
    window = "--ConformanceWindowMode=3 --ConfWinLeft=6 --ConfWinRight=10 --ConfWinTop=4 --ConfWinBottom=2"
    yield Stream("window", "--QP=34 " + window)
    usability = (
        "--AccessUnitDelimiter=1 --SEIActiveParameterSets=1 --VuiParametersPresent=1 --AspectRatioInfoPresent=1 "
        "--AspectRatioIdc=255 --SarWidth=3 --SarHeight=2 --OverscanInfoPresent=1 --VideoSignalTypePresent=1 "
        "--VideoFullRange=1 --ColourDescriptionPresent=1 --ColourPrimaries=9 --TransferCharacteristics=16 "
        "--MatrixCoefficients=9 --ChromaLocInfoPresent=1 --ChromaSampleLocTypeTopField=2 --DefaultDisplayWindowFlag=1 "
        "--DefDispWinLeftOffset=8 --BitstreamRestriction=1 --SEIPictureTiming=1 --SEIBufferingPeriod=1"
    )
    yield Stream("vui_sei", "--QP=36 " + usability)
    yield Stream("inter", "--QP=34", pictures=3, config="encoder_lowdelay_P_main.cfg")


def other_encoders():
    for name, options, *rest in (
        ("slower", "--preset slower --qp 36 --ctu 32 --tskip"),
        ("aq", "--crf 34 --aq-mode 3 --qg-size 8 --ctu 16"),
        ("lossless_cus", "--qp 12 --cu-lossless --ctu 16", "4:2:0", 8, (40, 40)),
        ("lossless_444_12", "--lossless --ctu 16", "4:4:4", 12, (16, 16)),
        ("scaling_422_10", "--qp 34 --ctu 32 --scaling-list default", "4:2:2", 10),
        ("wavefront", "--qp 38 --ctu 16 --wpp", "4:2:0", 8, PARTS),
        ("slices", "--qp 40 --ctu 16 --wpp --slices 2", "4:2:0", 8, (104, 72)),
    ):
        yield Stream(f"x265_{name}", options, *rest, encoder="x265")
    rgb = "--qp 36 --ctu 32 --colormatrix gbr --range full"
    yield Stream("x265_rgb", rgb, "4:4:4", size=(56, 40), encoder="x265", rgb=True)
    for name, options, *rest in (
        ("tiles_slices", "-q 42 --no-wpp --tiles 2x2 --slices tiles"),
        ("lossless_rdpcm", "--lossless --implicit-rdpcm", "4:2:0", 8, (32, 24)),
        ("rows", "-q 42 --wpp --slices wpp"),
        ("400", "-q 40 --input-format P400", "4:0:0"),
    ):
        size = rest.pop() if len(rest) == 3 else WIDE
        yield Stream(f"kvazaar_{name}", options, *rest, size=size, encoder="kvazaar", hash=3)


GROUPS = (
    structure, formats, range_extensions, high_throughput, lossless_and_pcm, quantisation, loop_filters, partitions,
    pictures_and_headers, other_encoders,
)  # fmt: skip


def picture(stream, number):
    width, height = stream.size
    found = oracle.card(width, height, number)
    y, x = np.mgrid[0:height, 0:width]
    if stream.smooth:
        found = np.stack([0.3 + 0.3 * x / width + 0.1 * y / height, 0.5 + 0.2 * y / height, 0.4 + 0.1 * x / width], -1)
        found[height // 2 : height // 2 + 6, width // 2 : width // 2 + 6] = 0.9
    if stream.noise:
        noise = np.random.default_rng(number).random(found.shape)
        found = np.where((x // 16 % stream.noise == 0)[..., None], noise, found)
    return found


def scaling_lists():
    """Lists that no default resembles, in the words of HM's files."""
    random, text = np.random.default_rng(1), []
    for size, count in ((4, 16), (8, 64), (16, 64), (32, 64)):
        for kind in ("INTRA", "INTER"):
            for component in ("LUMA", "CHROMAU", "CHROMAV")[: 1 if size == 32 else 3]:
                side = range(int(count**0.5))
                slope = 3 + 2 * (component != "LUMA")
                values = 8 + np.add.outer(side, side).ravel() * slope + random.integers(0, 9, count)
                text.append(f"{kind}{size}X{size}_{component} =\n" + ", ".join(map(str, values)) + ",")
                if size > 8:
                    text.append(f"{kind}{size}X{size}_{component}_DC =\n{random.integers(6, 40)}")
    return "\n".join(text) + "\n"


def command(stream, source, out, lists, programs):
    width, height = stream.size
    depth = stream.input_depth or stream.bit_depth
    options = [lists.join(word.split(LISTS)) for word in stream.options.split() if word not in REACH]
    csp = stream.chroma.replace(":", "")
    if stream.encoder == "x265":
        shape = ["--input-res", f"{width}x{height}", "--input-csp", f"i{csp}", "--input-depth", depth]
        shape += ["--output-depth", stream.bit_depth, "--fps", 1, "--keyint", 1, "--hash", stream.hash, "--no-info"]
        return ["x265", "--input", source, *shape, *options, "-o", out]
    if stream.encoder == "kvazaar":
        shape = ["--input-res", f"{width}x{height}", "--period", 1, "--gop", 0, "--threads", 1, "--no-info"]
        return [programs.kvazaar, "-i", source, *shape, "-o", out, *options]
    if stream.chroma != "4:4:4" and config(stream) in (REXT, THROUGHPUT):
        options = ["--CrossComponentPrediction=0", *options]
    folder = home(stream, programs)
    return [
        folder / "bin/TAppEncoderStatic", "-c", folder / "cfg" / config(stream), f"--InputFile={source}",
        f"--BitstreamFile={out}", "--ReconFile=/dev/null", f"--SourceWidth={width}", f"--SourceHeight={height}",
        f"--InputBitDepth={depth}", f"--InternalBitDepth={stream.bit_depth}", f"--InputChromaFormat={csp}",
        "--FrameRate=2", f"--FramesToBeEncoded={stream.pictures}", "--Level=4.1", "--ConformanceWindowMode=1",
        f"--SEIDecodedPictureHash={stream.hash}", *options,
    ]  # fmt: skip


def home(stream, programs):
    return programs.hm_high if stream.encoder == "hm-high" else programs.hm


def config(stream):
    usual = {8: MAIN, 10: MAIN10}.get(stream.bit_depth, REXT) if stream.chroma == "4:2:0" else REXT
    return stream.config or usual


def size_decoded(stream):
    return (56, 34) if stream.name == "window" else stream.size


def make(stream, folder, programs):
    """Writes the stream; returns its entry in streams.json."""
    source, out, raw = folder / "in.yuv", HERE / f"{stream.name}.hevc", folder / "out.yuv"
    depth = stream.input_depth or stream.bit_depth
    with source.open("wb") as file:
        for number in range(stream.pictures):
            for plane in oracle.planes_of(picture(stream, number), stream.chroma, depth, stream.rgb):
                file.write(plane.tobytes())
    lists = folder / LISTS
    lists.write_text(scaling_lists())
    environment = os.environ | {name: "1" for name in REACH if name in stream.options}
    run([str(word) for word in command(stream, source, out, str(lists), programs)], environment)
    said = run([str(home(stream, programs) / "bin/TAppDecoderStatic"), "-b", str(out), "-o", str(raw), "-d", "0"])
    checked = said.count("(OK)")
    assert "ERROR" not in said and checked == (stream.pictures if stream.hash else 0), said
    width, height = size_decoded(stream)
    wide = stream.bit_depth > 8 or "InternalBitDepthC=10" in stream.options
    named = oracle.PIXEL_FORMATS[stream.chroma, 12 if wide else 8]
    planes = oracle.split(raw.read_bytes(), width, height, named)
    return {
        "encoder": {"x265": "x265 3.5", "kvazaar": "kvazaar 2.3.2"}.get(stream.encoder, f"HM 16.7, {config(stream)}"),
        "options": stream.options,
        "chroma": stream.chroma,
        "bit_depth": stream.bit_depth,
        "size": size_decoded(stream),
        "hash": HASHES[stream.hash],
        "agree": ["HM", *(name for name, other in others(out, folder, width, height, named) if other == planes)],
        "planes": planes,
    }


def others(path, folder, width, height, pixel_format):
    stream = path.read_bytes()
    for name, decode in (
        ("ffmpeg", lambda: oracle.ffmpeg_planes(stream, width, height, pixel_format)),
        ("libde265", lambda: oracle.dec265_planes(stream, folder / "in.hevc", width, height, pixel_format)),
    ):
        try:
            yield name, decode()
        except AssertionError:
            yield name, None


def run(arguments, environment=None):
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-800:]}{done.stderr[-800:]}"
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hm", type=Path, required=True)
    parser.add_argument("--hm-high", type=Path, required=True)
    parser.add_argument("--kvazaar", required=True)
    parser.add_argument("--only", nargs="*", default=())
    programs = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    index = HERE / "streams.json"
    entries = json.loads(index.read_text()) if index.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for stream in (stream for group in GROUPS for stream in group()):
            if not programs.only or stream.name in programs.only:
                entries[stream.name] = make(stream, Path(folder), programs)
                print(stream.name, (HERE / f"{stream.name}.hevc").stat().st_size, entries[stream.name]["agree"])
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items()))
    index.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
