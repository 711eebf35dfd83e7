# SPDX-License-Identifier: Apache-2.0
"""The `flexor` command: info, align, bench; hevc, lift, pose and voxels are in files of their own."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .device import prepare
from .failure import fail
from .hevc import hevc_app
from .lift import lift_app
from .pose import pose_app
from .voxels import voxels_app

app = typer.Typer(
    help="Compiled kernels for the convolutions that bend: what they are, what they do, how fast they are.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(hevc_app, name="hevc")
app.add_typer(lift_app, name="lift")
app.add_typer(pose_app, name="pose")
app.add_typer(voxels_app, name="voxels")

QUICK_ITERATIONS, QUICK_SIZE = 30, 320


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Show how flexor was built, what this machine offers, and which backends are missing and why."""
    import flexor

    report = flexor.info()
    typer.echo(json.dumps(dict(report), indent=2, default=str) if as_json else str(report))


@app.command()
def align(
    key: Annotated[Path | None, typer.Argument(help="Image to be matched.", show_default=False)] = None,
    neighbour: Annotated[Path | None, typer.Argument(help="Image to be moved.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("aligned"),
    video: Annotated[Path | None, typer.Option(help="Take the frames from this clip instead.")] = None,
    frames: Annotated[str, typer.Option(metavar="KEY,NEIGHBOUR", help="Frame numbers in the clip, from 0.")] = "0,1",
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Gradient steps a stage and pyramid level.", show_default="80")
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(min=32, help="Shrink the frames to this longer side.", show_default="640")
    ] = None,
    smoothness: Annotated[float, typer.Option(min=0, help="Weight of the flow's total variation.")] = 0.03,
    quick: Annotated[bool, typer.Option("--quick", help="30 iterations at 320 pixels: a few seconds.")] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda where torch has it.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the tiles held out of the learning.")] = 0,
    preview: Annotated[bool, typer.Option("--preview", help="Draw the overview in the terminal.")] = False,
) -> None:
    """Bring one video frame onto another by a learned deformable alignment.

    The motion is learned for this pair alone, coarse to fine, with flexor's kernels forward and backward: a global
    affine warp, then a dense flow, then a deformable convolution that mixes nine samples around the flow's target.
    The result is made of pixels of NEIGHBOUR only.

    **Writes** into the folder --out:

    - aligned.png: NEIGHBOUR moved onto KEY
    - flow.png: the motion in colour, with its wheel
    - difference.png: the difference from KEY before and after
    - overview.png: all of these
    - alignment.json: PSNR, SSIM, times, settings, versions

    **Examples**

    - flexor align frame0.png frame3.png --out result
    - flexor align --video clip.mp4 --frames 0,3 --out result
    - flexor align --video clip.mp4 --frames 0,3 --quick --preview

    PSNR is that of the whole frame. "Held-out tiles" are 5 % of the frame that the learning never sees: a real motion
    improves them too. Exit code 2, and one line, if a frame cannot be read or the two differ in size.
    """
    from ..models.align import AlignSettings
    from . import align as command
    from .frames import Frame, FrameError, fit, parse_frames, read_image, read_video

    prepare(device, threads)
    if out.exists() and not out.is_dir():
        fail(f"{out}: exists and is not a folder")

    pair: list[Frame]
    try:
        if video is not None:
            if key is not None:
                fail("give either two images or --video, not both")
            indices = parse_frames(frames)
            pair = read_video(video, indices)
            names = [f"{video.name}[{index}]" for index in indices]
        elif key is not None and neighbour is not None:
            pair = [read_image(key), read_image(neighbour)]
            names = [key.name, neighbour.name]
        else:
            fail("give two images, or --video CLIP --frames KEY,NEIGHBOUR; see flexor align --help")
        sizes = [f"{frame.shape[1]}x{frame.shape[0]}" for frame in pair]
        if sizes[0] != sizes[1]:
            fail(f"{names[0]} is {sizes[0]} but {names[1]} is {sizes[1]}: the frames must have one size")
        pair = [fit(frame, max_size or (QUICK_SIZE if quick else 640)) for frame in pair]
        if min(pair[0].shape[:2]) < command.SMALLEST:
            fail(f"{names[0]} is {sizes[0]}: the shorter side must keep at least {command.SMALLEST} pixels")
        settings = AlignSettings(
            iterations=iterations or (QUICK_ITERATIONS if quick else 80), smoothness=smoothness, seed=seed
        )
        console = Console()
        report = command.run(command.Job(pair[0], pair[1], names[0], names[1], settings, device), out, console)
    except (FrameError, OSError) as error:
        fail(str(error))
    console.print(command.summary(report))
    console.print(f"[bold]{out}/[/bold]: " + ", ".join(sorted(file.name for file in out.iterdir())))
    if preview:
        console.print(command.preview(out / "overview.png", console.width))


@app.command()
def bench(
    family: Annotated[
        str, typer.Argument(help="deform, warp, dynamic, match, grid, sparse, intra, hevc or hevc_encode.")
    ] = "deform",
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write every number to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw the result, .svg or .png.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every shape, batch, type and layout: minutes.")] = False,
    scan: Annotated[
        list[str] | None, typer.Option(help="For sparse: also on this scan, PATH or PATH@VOXEL in metres; repeatable.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="For hevc and hevc_encode: also this picture, cut or mirrored to 1920x1080."),
    ] = None,
) -> None:
    """Time flexor's kernels against their peers on this machine; an absent peer is skipped by name.

    **Examples**

    - flexor bench deform
    - flexor bench deform --all --json deform.json --picture deform.svg
    - flexor bench sparse --scan sweep.bin@0.05
    - flexor bench hevc --image screen.png

    Ratios compare runs that took turns in this one process; every result is checked after its timing.
    """
    try:
        from ..bench import FAMILIES
        from .bench import run
    except ModuleNotFoundError as error:
        fail(f"bench needs the package {error.name}: pip install 'flexor[bench]'")
    if family not in FAMILIES:
        fail(f"bench: family must be one of {', '.join(FAMILIES)}, got {family}")
    if scan and family != "sparse":
        fail(f"bench: --scan is for the family sparse, got {family}")
    if image and family not in ("hevc", "hevc_encode"):
        fail(f"bench: --image is for the families hevc and hevc_encode, got {family}")
    try:
        run(family, as_json, picture, everything, Console(), scan or [str(path) for path in image or ()])
    except (AssertionError, OSError, ValueError) as error:
        fail(f"bench {family}: {error}")
