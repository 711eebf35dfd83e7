# SPDX-License-Identifier: Apache-2.0
"""`flexor pose`: people's joints in videos and pictures; convert checkpoints, measure results, train."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .default_command import DefaultCommand
from .device import prepare
from .failure import fail

pose_app = typer.Typer(
    cls=DefaultCommand,
    help="Poses of people in videos: estimate and track them, convert checkpoints, measure, train.",
    no_args_is_help=True,
)

Model = Annotated[
    str,
    typer.Option(
        help="small, hrnet_w32, hrnet_w48, simple_baseline_50, rtmpose_t, _s, _m, _l, dcpose, fami_pose or dkd."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, or cuda where torch has it.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")]


@contextmanager
def in_one_line() -> Iterator[None]:
    """Whatever is wrong with a file or an argument ends the command with one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"pose needs the package {error.name}: pip install 'flexor[cli]'")
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        fail(str(error))


@pose_app.command()
def run(
    sources: Annotated[
        list[Path], typer.Argument(metavar="IN", help="A video, a folder of images, or images.", show_default=False)
    ],
    model: Model = "small",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|random",
            help="A .safetensors of flexor pose convert, or an official .pth; random is for timing.",
            show_default="those that come with small",
        ),
    ] = None,
    boxes: Annotated[
        str,
        typer.Option(
            metavar="full|tracker|motion|FILE|tracker:FILE",
            help="Where the people are: see below.",
        ),
    ] = "full",
    out: Annotated[Path, typer.Option(help="Folder for the results; a stopped run goes on.")] = Path("poses"),
    min_box_score: Annotated[float, typer.Option(min=0, max=1, help="Boxes of FILE with less are left out.")] = 0.2,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Joints with less are neither drawn nor used to follow people.")
    ] = 0.2,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mean with the mirrored picture: better, twice the time.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="People that go through the model together, at most.")] = 4,
    overlay: Annotated[bool, typer.Option(help="Draw the poses: overlay.mp4, or overlay/ of images.")] = True,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Frames a second of overlay.mp4.", show_default="IN's, else 25")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Only the first so many.", show_default="all")] = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Find the joints of people in every frame, and follow the people from frame to frame.

    **Boxes**: full takes each frame as one person; FILE has them, a COCO file of detections or annotations, or CSV
    lines `frame,x,y,w,h[,score]` with frames from 0; tracker takes the whole frame first, and after a cut, then boxes
    around the poses of the frame before; tracker:FILE takes those of FILE in frames for which it has some; motion
    takes what moves before a still camera.

    **Writes** into --out: coco.json (results as COCO's tools read them), posetrack.json (PoseTrack18, with the ids of
    people), overlay.mp4, contact.png, summary.json, and journal.jsonl, from which the same command goes on after it
    was stopped, with the files of a run that never was.

    **Examples**

    - flexor pose clip.mp4 --boxes tracker
    - flexor pose clip.mp4 --model dcpose --weights dcpose.safetensors --boxes people.json --out poses
    - flexor pose frames/ --model rtmpose_m --weights rtmpose-m.pth --boxes detections.csv
    - flexor pose 1.jpg 2.jpg

    Exit code 2, and one line, where IN or FILE cannot be used; the frames that were done are kept.
    """
    prepare(device, threads)
    with in_one_line():
        from . import pose_run as command

        settings = command.Settings(
            model=model,
            weights=weights,
            boxes=boxes,
            min_box_score=min_box_score,
            min_score=min_score,
            flip=flip,
            batch=batch,
            overlay=overlay,
            fps=fps,
            frames=frames,
            device=device,
        )
        command.run(sources, out, settings)
