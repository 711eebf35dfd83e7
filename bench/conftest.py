# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from _harness import Scoreboard


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="write FAMILY.json into this folder")
    parser.addoption("--scan", action="append", default=[], help="a point cloud for the sparse family: PATH[@VOXEL]")
    parser.addoption("--image", action="append", default=[], help="a picture for the hevc families")


@pytest.fixture(scope="session")
def scoreboard(request):
    board = Scoreboard()
    yield board
    folder = request.config.getoption("--results")
    if folder is not None:
        board.save(folder)
