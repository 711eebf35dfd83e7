# SPDX-License-Identifier: Apache-2.0
"""`flexor voxels`: look at a scan as sparse voxels, and train a sparse U-Net on it."""

from pathlib import Path
from typing import Annotated

import typer

from .default_command import DefaultCommand
from .device import prepare
from .failure import fail

voxels_app = typer.Typer(
    cls=DefaultCommand,
    help="Scans as sparse voxels: how sparse they are, a U-Net over them layer by layer, and one trained on them.",
    no_args_is_help=True,
)

Scans = Annotated[list[Path], typer.Argument(help=".bin, .ply, .las, .laz, .npz or .npy files.", show_default=False)]
Size = Annotated[
    float | None,
    typer.Option(
        help="Edge of a voxel, in the scans' unit.",
        show_default="the smallest of 1, 2, 5, 10, ... whose voxels hold 2.5 points",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(help="Of .bin and .npy: letters of x, y, z, r, g, b, i, and _ for the rest.", show_default="guessed"),
]
Device = Annotated[str, typer.Option(help="cpu, or cuda where torch has it.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")]


@voxels_app.command()
def show(
    scans: Scans,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and voxels.json.")] = Path("voxels"),
    voxel: Size = None,
    columns: Columns = None,
    preset: Annotated[
        str, typer.Option(help="small (m 16, VGG blocks) or large (m 32, two residual blocks).")
    ] = "small",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A state_dict of SparseConvNet's network for ScanNet, of that preset.", show_default="random"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, of whose times the least is shown.")] = 3,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.")] = 0,
) -> None:
    """Show how sparse scans are, run the ScanNet U-Net over them, and time each of its layers.

    For each level of the U-Net: its voxels, how much of their box they fill, and how many of the 26 around a voxel
    there are. For each layer: the time to find which voxel is whose neighbour (its **map**, which layers of one level
    share), and the time to convolve.

    **Writes** into --out: NAME.png, the voxels and the result from the side from which most of them are seen, and
    voxels.json with every figure. The result is the class of each voxel with --weights; with random weights, which
    know no classes, the three main directions of the features as red, green and blue.

    **Examples**

    - flexor voxels room.ply
    - flexor voxels 000008.bin --columns xyzi --voxel 0.1
    - flexor voxels room.ply --preset large --weights scannet-unet.pth
    """
    prepare(device, threads)
    try:
        from rich.console import Console

        from ..models.points import PointsError
        from . import voxels_run as command
    except ModuleNotFoundError as error:
        fail(f"voxels needs the package {error.name}: pip install 'flexor[cli]'")
    try:
        command.show(
            scans,
            out,
            command.Reading(voxel, columns),
            command.Showing(preset, weights, repeats, seed, device),
            Console(),
        )
    except (PointsError, ValueError, OSError) as error:
        fail(str(error))


@voxels_app.command()
def fit(
    scans: Scans,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint and results; a stopped run goes on.")] = Path(
        "completed"
    ),
    voxel: Size = None,
    columns: Columns = None,
    block: Annotated[int, typer.Option(min=2, help="Edge of the blocks that are taken out, voxels.")] = 6,
    reach: Annotated[int, typer.Option(min=1, help="Asked about is what is this near to what was left, voxels.")] = 4,
    hold_out: Annotated[float, typer.Option(min=0, max=1, help="Share of blocks that only the test sees.")] = 0.15,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Share of the others that a step takes out.")] = 0.15,
    crop: Annotated[int, typer.Option(min=16, help="A step sees a box of this edge of a larger scan, voxels.")] = 512,
    width: Annotated[int, typer.Option(min=1, help="Channels of the U-Net's first level.")] = 16,
    levels: Annotated[int, typer.Option(min=1, help="Of the U-Net.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="A checkpoint and a measurement after each.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Steps an epoch.")] = 25,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Scans a step, of all processes together.", show_default="one a process"),
    ] = None,
    rate: Annotated[float, typer.Option(min=1e-6, help="Greatest learning rate.")] = 5e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and training, not of the held-out blocks.")] = 0,
    evaluate: Annotated[bool, typer.Option(help="Measure and draw at the end.")] = True,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train a sparse U-Net to fill in what was taken out of scans, and measure it where it never looked.

    Space is cut into blocks of --block voxels. Those whose place says so are **held out**: no voxel of theirs is seen
    in training. Each step takes more blocks out, and the network, given what is left and which blocks are missing,
    says of every voxel of theirs near to what is left whether it is occupied, and with what colour (or intensity).
    No labels are needed.

    Measured are the held-out blocks, all taken out at once: **IoU** of occupied voxels, and the mean absolute error of
    their values, beside those of a **nearest-neighbour baseline**: a voxel is as the nearest one that was left, if
    that is within a radius, the radius that scores best on the held-out blocks themselves.

    **Writes** into --out: checkpoint.safetensors after every epoch, metrics.json, curves.png, and NAME.png for each
    scan. The same command again goes on after a kill, with the result of a run that was never stopped.

    **Examples**

    - flexor voxels fit room.ply
    - flexor voxels fit scans/*.bin --columns xyzi --epochs 40 --out completed
    - torchrun --nproc_per_node 2 -m flexor.cli.main voxels fit scans/*.ply
    """
    prepare(device, threads)
    try:
        from rich.console import Console

        from ..models import parallel
        from ..models.completion import CompletionSettings
        from ..models.completion_data import BlockSettings
        from . import voxels_run as command
    except ModuleNotFoundError as error:
        fail(f"voxels needs the package {error.name}: pip install 'flexor[cli]'")
    if reach > block:
        fail(f"--reach {reach}: must not be more than --block {block}")
    parallel.start()
    console = Console(quiet=parallel.rank() > 0)
    settings = CompletionSettings(
        width=width, levels=levels, epochs=epochs, steps=steps, batch=batch or parallel.size(), rate=rate, seed=seed
    )
    blocks = BlockSettings(block, reach, hold_out, drop, crop)
    try:
        command.fit(scans, out, command.Reading(voxel, columns), settings, blocks, device, evaluate, console)
        parallel.wait()
    except KeyboardInterrupt:
        fail(f"stopped; the same command goes on from the last epoch in {out}")
    except (ValueError, OSError) as error:
        fail(str(error))
    finally:
        parallel.stop()
