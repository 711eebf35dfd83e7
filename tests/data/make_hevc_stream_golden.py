# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/hevc/stream_*.hevc: what tests/test_hevc_stream.py needs of pictures' order and headers.

    python tests/data/make_hevc_stream_golden.py --hm HM

HM is a folder of HM 16.7 with its `bin` built; ffmpeg with libx265 3.5 comes from the PATH.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent / "hevc"
SOURCE = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25"]
GOP = "hash=1:keyint=6:min-keyint=6:bframes=2:b-adapt=0:open-gop=1:log-level=none:crf=45:info=0:ctu=16"
VUI = (
    "keyint=1:log-level=none:crf=40:info=0:vui-timing-info=1:vui-hrd-info=1:vbv-bufsize=1000:vbv-maxrate=1000:hrd=1:"
    "range=full:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:chromaloc=2:overscan=show:sar=4:"
    "master-display='G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)':max-cll=1000,400:aud=1:hash=3"
)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_reorder(hm, folder):
    """A hierarchy of pictures as HM codes it for random access, every one of them intra."""
    text = (hm / "cfg" / "encoder_randomaccess_main.cfg").read_text()
    text = re.sub(r"^(Frame\d:) +B", r"\1  I", text, flags=re.MULTILINE)
    (folder / "intra.cfg").write_text(text)
    run(*SOURCE, "-frames:v", "17", "-pix_fmt", "yuv420p", str(folder / "in.yuv"))
    run(
        str(hm / "bin" / "TAppEncoderStatic"), "-c", str(folder / "intra.cfg"), "-i", str(folder / "in.yuv"),
        "-wdt", "64", "-hgt", "48", "-fr", "25", "-f", "17", "--MaxCUWidth=16", "--MaxCUHeight=16",
        "--MaxPartitionDepth=2", "--QuadtreeTULog2MaxSize=4", "--IntraPeriod=8", "--QP=42",
        "--SEIDecodedPictureHash=1", "-o", "/dev/null", "-b", str(HERE / "stream_reorder.hevc"),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hm", type=Path, required=True)
    hm = parser.parse_args().hm
    with tempfile.TemporaryDirectory() as folder:
        make_reorder(hm, Path(folder))
    for name, frames, options in (("gop", 20, GOP), ("vui", 1, VUI)):
        output = str(HERE / f"stream_{name}.hevc")
        run(*SOURCE, "-frames:v", str(frames), "-c:v", "libx265", "-x265-params", options, output)


if __name__ == "__main__":
    main()
