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
from .pose_train import train

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
    except (ValueError, TypeError, NotImplementedError, OSError, ImportError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped; the frames that were done are kept, the same command goes on from there")
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        fail("not enough memory; a smaller --batch needs less")


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


@pose_app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="An official checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The weights.", show_default=False)],
    model: Annotated[str, typer.Option(help="The model that it is for; see flexor pose run.", show_default=False)],
) -> None:
    """Make an official checkpoint into safetensors, which say what they are for and where they came from.

    Read are a bare state_dict, and those in the checkpoints of the papers' code, of mmpose and of timm, under
    DataParallel's names or not; averaged weights are taken where there are some. Nothing in the file is run: a pickle
    that asks for code is refused.

    **Examples**

    - flexor pose convert DCPose_PoseTrack18.pth dcpose.safetensors --model dcpose
    - flexor pose convert rtmpose-m_simcc-coco.pth rtmpose_m.safetensors --model rtmpose_m
    """
    with in_one_line():
        from ..models.pose.recipe import recipe
        from ..models.pose.weights import convert as make

        if out.suffix != ".safetensors":
            fail(f"{out}: the name must end in .safetensors")
        metadata = make(source, out, recipe(model).build(), model)
        typer.echo(f"{out}: {model}, from {source.name} (SHA-256 {metadata['source_sha256'][:16]}...)")


@pose_app.command()
def evaluate(
    results: Annotated[
        Path, typer.Argument(help="coco.json or posetrack.json; or a folder of the latter.", show_default=False)
    ],
    annotations: Annotated[
        Path, typer.Option(help="What is right, as COCO or PoseTrack have it; or a folder.", show_default=False)
    ],
    metric: Annotated[str, typer.Option(help="coco, posetrack or pck.")] = "coco",
    threshold: Annotated[float, typer.Option(min=0, help="For pck: the share of the box's longer side.")] = 0.2,
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure results against annotations.

    **coco**: average precision and recall over OKS from 0.50 to 0.95, by pycocotools. **posetrack**: average precision
    by poseval's rules; a folder holds a file a video, in both by the same names. **pck**: the share of joints that are
    right within --threshold of the longer side of their person's box, by the names of joints, each annotated person
    with the one whose box overlaps theirs most.

    **Examples**

    - flexor pose evaluate poses/coco.json --annotations person_keypoints_val2017.json
    - flexor pose evaluate predicted/ --annotations posetrack18/val/ --metric posetrack
    - flexor pose evaluate poses/coco.json --annotations truth.json --metric pck --json pck.json
    """
    with in_one_line():
        from . import pose_evaluate as command

        command.evaluate(results, annotations, metric, threshold, json)


pose_app.command()(train)
