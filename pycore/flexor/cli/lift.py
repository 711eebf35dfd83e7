# SPDX-License-Identifier: Apache-2.0
"""`flexor lift`: train and measure networks that lift 2-D poses to 3-D."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .device import prepare
from .failure import fail

if TYPE_CHECKING:
    from ..models.lift import LiftSettings

lift_app = typer.Typer(help="Lift 2-D poses to 3-D: train networks and baselines, measure them.", no_args_is_help=True)

Data = Annotated[
    str, typer.Option(help="An npz or BVH file, a folder of BVH files, or pybullet: the motions of that package.")
]
Action = Annotated[str, typer.Option(metavar="REGEX", help="Its first group, from a clip name's start, is the action.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")]
Predictions = Annotated[
    Path | None, typer.Option(metavar="FILE.npz", help="Write predictions, targets and inputs to this file.")
]
Device = Annotated[str, typer.Option(help="cpu, or cuda where torch has it.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")]

ACTION = r"(?:dataset-\d+_)?\d*([A-Za-z-]+)"


@lift_app.command()
def train(
    data: Data = "pybullet",
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and results; a stopped run goes on.")] = Path(
        "lifted"
    ),
    models: Annotated[
        str, typer.Option(help="NAME or NAME:WIDTH, with commas. Widths are 64, 64, 1024 and 128 channels by default.")
    ] = "dgridconv,gridconv,martinez,gcn",
    seeds: Annotated[str, typer.Option(help="Each model is trained once a seed.")] = "0",
    epochs: Annotated[int, typer.Option(min=1, help="The learning rate, 0.001, falls by 4 % after each.")] = 50,
    poses: Annotated[int, typer.Option(min=1, help="Poses an epoch.")] = 20000,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="CPU seconds of each training instead; cut into the epochs.")
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Poses a step, of all processes together.")] = 200,
    borders: Annotated[str, typer.Option(help="Of the grid's two branches: c circular, r replicate, z zeros.")] = "cz",
    hold_out: Annotated[float, typer.Option(min=0, max=1, help="Share of the clips that only the test sees.")] = 0.2,
    views: Annotated[int, typer.Option(min=1, help="Cameras that see each pose of the test.")] = 1,
    noise: Annotated[float, typer.Option(min=0, help="Detector: standard deviation, pixels of 1000.")] = 4.0,
    outliers: Annotated[float, typer.Option(min=0, max=1, help="Detector: share of joints with 10 times that.")] = 0.02,
    misses: Annotated[
        float, typer.Option(min=0, max=1, help="Detector: share of joints found anywhere in the person's box.")
    ] = 0.005,
    action: Action = ACTION,
    unit: Annotated[float, typer.Option(min=1e-6, help="Metres a BVH unit.")] = 0.01,
    rate: Annotated[float, typer.Option(min=0.01, help="Poses a second kept of BVH files.")] = 10.0,
    evaluate: Annotated[bool, typer.Option(help="Measure and draw at the end.")] = True,
    predictions: Predictions = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train networks on motion capture seen by virtual cameras, and measure them on clips they never saw.

    Every pose is seen by a camera of its own: a pinhole of 1145 pixels focal length and a picture of 1000x1000 pixels,
    3.5 to 6 m away on any side, 0.5 to 2.5 m over the floor, aimed up to 0.3 m past the pelvis. A detector adds errors.
    The network answers with the joints' places in metres from the pelvis, along the camera's axes.

    A clip is held out if the SHA-1 of its name says so: for all models and seeds the same clips.

    **Models**: dgridconv and gridconv (GridLifter with and without attention), martinez (the linear network of
    Martinez et al. 2017), gcn (SemGCN of Zhao et al. 2019 without non-local layers).

    **Writes** into --out: runs/NAME/checkpoint.safetensors after every epoch, metrics.json, curves.png, skeletons.png.
    The same command again goes on after a kill, with the result of a run that was never stopped.

    **Examples**

    - flexor lift train --data mocap.npz --out lifted
    - flexor lift train --data motions/ --models dgridconv:128,martinez --seeds 0,1,2
    - torchrun --nproc_per_node 2 -m flexor.cli.main lift train --data mocap.npz
    """
    prepare(device, threads)
    try:
        from rich.console import Console

        from ..models import parallel
        from ..models.lift_data import ViewSettings
        from . import lift_run as command
    except ModuleNotFoundError as error:
        fail(f"lift needs the package {error.name}: pip install 'flexor[cli]'")

    common = {"epochs": epochs, "poses": poses, "seconds": seconds, "batch": batch, "borders": borders}
    runs = [_settings(model, seed, common) for seed in _seeds(seeds) for model in models.split(",")]
    view = ViewSettings(noise=noise, outliers=outliers, misses=misses)
    parallel.start()
    console = Console(quiet=parallel.rank() > 0)
    try:
        mocap = command.Mocap.load(data, action=action, hold_out=hold_out, views=views, view=view, unit=unit, rate=rate)
        folders = command.train(runs, mocap, out, device, console)
        if evaluate and parallel.rank() == 0:
            report = command.evaluate(folders, mocap, device)
            report.write(json=out / "metrics.json", predictions=predictions, pictures=out)
            console.print(report.table())
            console.print(f"[bold]{out}/[/bold]: metrics.json, curves.png, skeletons.png, runs/")
        parallel.wait()
    except KeyboardInterrupt:
        fail(f"stopped; the same command goes on from the last epoch in {out}")
    except (ValueError, OSError) as error:
        fail(str(error))
    finally:
        parallel.stop()


@lift_app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="What flexor lift train wrote, or a part of it.")] = Path("lifted"),
    data: Annotated[
        str | None, typer.Option(help="Other motion capture, of which every clip is used.", show_default="as trained")
    ] = None,
    json: Json = None,
    predictions: Predictions = None,
    pictures: Annotated[Path | None, typer.Option(help="Draw curves.png and skeletons.png into this folder.")] = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Measure all networks under FOLDER on the held-out clips.

    Protocol 1 is the mean distance of the 17 joints with the pelvis aligned, protocol 2 that after the best rotation,
    scale and translation of each pose: in millimetres, by action, and as the mean over actions.

    **Examples**

    - flexor lift eval lifted --json lifted.json --predictions lifted.npz

    The npz holds inputs, targets, the action and clip of each, and one prediction a network: all that the JSON's
    figures are computed from.
    """
    prepare(device, threads)
    try:
        from rich.console import Console

        from . import lift_run as command
    except ModuleNotFoundError as error:
        fail(f"lift needs the package {error.name}: pip install 'flexor[cli]'")
    try:
        folders = command.find_runs(folder)
        report = command.evaluate(folders, command.Mocap.of_runs(folders, data), device)
        report.write(json=json, predictions=predictions, pictures=pictures)
    except (ValueError, OSError) as error:
        fail(str(error))
    Console().print(report.table())


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        fail(f"--seeds {text}: must be whole numbers with commas")


def _settings(model: str, seed: int, common: dict) -> "LiftSettings":
    from ..models.lift import WIDTHS, LiftSettings

    name, _, width = model.strip().partition(":")
    if name not in WIDTHS or (width and not (width.isdecimal() and int(width) > 0)):
        fail(f"--models {model}: must be one of {', '.join(WIDTHS)}, perhaps with :WIDTH")
    if len(common["borders"]) != 2 or not set(common["borders"]) <= set("crz"):
        fail(f"--borders {common['borders']}: must be two letters of c, r and z")
    return LiftSettings(model=name, width=int(width) if width else WIDTHS[name], seed=seed, **common)
