# SPDX-License-Identifier: Apache-2.0
"""`flexor hevc`: encode and decode HEVC intra pictures, and show what a stream is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .failure import fail
from .hevc_compare import compare

hevc_app = typer.Typer(
    help="HEVC (H.265) intra pictures: encode and decode them, look into a stream.", no_args_is_help=True
)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="IN", help="A stream (.hevc, .265, .bit), or a container: .heic, .mp4, .mkv, .ts.", show_default=False
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")]


@contextmanager
def _in_one_line(source: Path) -> Iterator[None]:
    """Whatever is wrong with a stream or a file ends the command with one line."""
    try:
        yield
    except ImportError as error:
        fail(
            str(error) if "flexor[" in str(error) else f"hevc needs the package {error.name}: pip install 'flexor[cli]'"
        )
    except MemoryError:
        fail(f"{source}: not enough memory for its pictures")
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        # What a library's user is told of arguments, in this command's words.
        message, inter, _ = str(error).partition("; flexor decodes intra pictures")
        fail(message + ("; --skip-inter leaves inter pictures out" if inter else ""))


@hevc_app.command()
def encode(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="An image, a folder of images, or a video.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A stream (.hevc, .h265, .265, .bit), or .mp4, .mov, .mkv.", show_default=False
        ),
    ],
    qp: Annotated[int, typer.Option(help="Quantisation, 0 (best) to 51; 6 more, steps twice as large.")] = 32,
    chroma: Annotated[str, typer.Option(help="400 (grey), 420, 422, 444, or rgb as it is.")] = "420",
    bit_depth: Annotated[int, typer.Option(help="8 or 10.")] = 8,
    lossless: Annotated[bool, typer.Option("--lossless", help="Bit for bit; of RGB with --chroma rgb.")] = False,
    preset: Annotated[str, typer.Option(help="fast, medium or best: the time given for the size.")] = "medium",
    range_extensions: Annotated[
        bool | None,
        typer.Option(
            "--range-extensions/--no-range-extensions",
            help="Tools of the 4:4:4 profiles in any format: smaller, for software players.",
            show_default="with best, 444 and rgb",
        ),
    ] = None,
    nearest: Annotated[
        str, typer.Option(help="explicit, sad or boundary: nearest-neighbour prediction, for flexor's decoder only.")
    ] = "off",
    edge_filters: Annotated[
        bool, typer.Option("--edge-filters", help="With --nearest: keep the filters of DC, flat and upright edges.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Pictures a second.", show_default="IN's, else 25")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="So many pictures.", show_default="all")] = None,
    threads: Threads = None,
) -> None:
    """Encode pictures as intra HEVC, each with the hash that lets decoders check it.

    The pixels of an image are converted by BT.709 in the limited range, or kept with --chroma rgb; those of a video are
    taken as they are where its format is the one asked for. 4:2:0 and 4:2:2 need even sizes. Images of a folder are
    taken by name. A file is there whole or not at all.

    **Examples**

    - flexor hevc encode screenshot.png screen.hevc --chroma 444 --qp 27
    - flexor hevc encode screenshot.png screen.mp4 --chroma rgb --lossless
    - flexor hevc encode frames/ talk.mp4 --fps 30 --preset fast
    - flexor hevc encode clip.mkv clip.hevc --frames 100 --nearest explicit

    Exit code 2, and one line, where IN cannot be read, cannot be coded so, or OUT cannot be written.
    """
    with _in_one_line(source):
        from . import hevc_encode as command

        settings = command.Encoding(
            qp, chroma, bit_depth, lossless, preset, range_extensions, nearest, edge_filters, fps, threads, frames
        )
        command.encode(source, out, settings)


@hevc_app.command()
def decode(
    source: Source,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help=".png (NAME_%03d.png for several), .yuv or .y4m.", show_default=False)
    ],
    frames: Annotated[int | None, typer.Option(min=1, help="So many pictures.", show_default="all")] = None,
    threads: Threads = None,
    skip_inter: Annotated[bool, typer.Option("--skip-inter", help="Leave inter pictures out.")] = False,
    keep_damaged: Annotated[bool, typer.Option("--keep-damaged", help="Write damaged pictures too.")] = False,
) -> None:
    """Decode the intra pictures of IN to OUT, bit-exact, and compare each with the hash that the stream carries.

    **Writes**, by the suffix of OUT:

    - .png: RGB by the stream's matrix and range, of 16 bits a sample where the stream has more than 8
    - .yuv: the planes as they are, one after the other; little-endian pairs of bytes for more than 8 bits
    - .y4m: the same with a header that says size and format

    A file is there whole or not at all.

    **Examples**

    - flexor hevc decode still.heic still.png
    - flexor hevc decode screen.hevc screen_%03d.png --frames 10
    - flexor hevc decode clip.mp4 intra.y4m --skip-inter

    Exit code 2, and one line, where the stream cannot be decoded, holds inter pictures, or is damaged.
    """
    with _in_one_line(source):
        from . import hevc_run as command

        command.decode(source, out, command.Decoding(frames, threads, skip_inter, keep_damaged))


@hevc_app.command()
def info(
    source: Source,
    picture: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw blocks and modes over a picture.", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option(min=0, help="Which picture to draw, in output order.")] = 0,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Draw this part of it, larger.", show_default="all of it")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Read so many pictures.", show_default="all")] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Every syntax element of every header.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Show what IN is made of: its parameter sets, the tools its pictures use, and what its bits are spent on.

    **Examples**

    - flexor hevc info screen.hevc
    - flexor hevc info screen.hevc --headers
    - flexor hevc info screen.hevc --picture blocks.png --region 640,300,320,180
    - flexor hevc info screen.hevc --json | jq .bits
    """
    with _in_one_line(source):
        from . import hevc_report as command

        drawing = command.Drawing(picture, number, region) if picture is not None else None
        command.info(source, command.Reading(frames, threads), drawing, headers, as_json)


hevc_app.command()(compare)
