# SPDX-License-Identifier: Apache-2.0
"""`flexor pose train`: train a pose network as a configuration file says."""

from pathlib import Path
from typing import Annotated

import typer

from .device import prepare
from .failure import fail


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="TOML or JSON; see docs/pose_small.md.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint and weights; a stopped run goes on.")] = Path(
        "trained"
    ),
    model: Annotated[
        str | None, typer.Option(help="Another model than CONFIG's; see flexor pose run.", show_default="CONFIG's")
    ] = None,
    assets: Annotated[
        Path, typer.Option(help="For rendered people: where Debian's packages are unpacked, and pmndrs-assets-*.tgz.")
    ] = Path("/"),
    half: Annotated[bool, typer.Option("--half", help="Write the weights in float16, half the size.")] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda where torch has it.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")] = None,
) -> None:
    """Train a pose network on people in COCO's format, or on people that are rendered first.

    CONFIG names the people and how it is trained: augmentation, optimiser, schedule, moving average, bfloat16. Measured
    after every epoch is **PCK@0.2** on the held-out people in their annotated boxes: the share of joints within 0.2 of
    the box's longer side.

    **Writes** into --out: checkpoint.safetensors, after every epoch and every `save_every` steps; weights.safetensors,
    which flexor pose run reads; metrics.json; rendered/, where CONFIG asks for it. The same command goes on after a
    kill, with the result of a run that was never stopped, to the bit.

    **Examples**

    - flexor pose train small.toml --out trained --assets unpacked
    - flexor pose train coco.toml --model hrnet_w32 --device cuda
    - torchrun --nproc_per_node 2 -m flexor.cli.main pose train small.toml
    """
    prepare(device, threads)
    try:
        from rich.console import Console

        from ..models.checkpoint import CheckpointError
        from . import pose_train_run as command
    except ModuleNotFoundError as error:
        fail(f"pose train needs the package {error.name}: pip install 'flexor[cli]'")
    try:
        command.train(config, out, model, assets, half, device, Console())
    except (CheckpointError, ValueError, NotImplementedError, ModuleNotFoundError, RuntimeError, OSError) as error:
        fail(str(error))
