# SPDX-License-Identifier: Apache-2.0
"""Who is compared: flexor's variants and the encoders that people use instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .routes import Library, Ours, Program, Route

# What flexor's variants ask for.
_VARIANTS: dict[str, dict[str, str | bool]] = {
    "off": {},
    "main": {"range_extensions": False},
    "explicit": {"nearest": "explicit"},
    "explicit-edges": {"nearest": "explicit", "edge_filters": True},
    "sad": {"nearest": "sad"},
    "boundary": {"nearest": "boundary"},
}
VARIANTS = tuple(_VARIANTS)
PRESETS = ("fast", "medium", "best")
CHROMA = ("400", "420", "422", "444")


@dataclass(frozen=True)
class Contestant:
    """An encoder with its settings.

    Attributes:
        name: in tables, options and JSON.
        route: how it is reached.
        chromas: chroma formats that it has.
        scale: from QP to the quantiser's step: "qp", or "av1", whose 63 steps go further.
    """

    name: str
    route: Route
    chromas: Sequence[str] = CHROMA
    scale: str = "qp"

    def level(self, qp: int) -> int:
        """The step that comes near the quality of an HEVC QP."""
        if self.scale == "qp":
            return qp
        return max(0, min(63, 20 + 2 * (qp - 22)))


def variant(name: str, preset: str) -> Contestant:
    """flexor with the extension as `name` says, or without: "off", and "main" without range extensions either."""
    return Contestant(name, Ours(preset, **_VARIANTS[name]))  # type: ignore[arg-type]


def _x265(preset: str, *switches: str) -> tuple[Route, ...]:
    """The program, else the library in PyAV; one thread, and wavefronts as ever."""
    numbers = {"keyint": "1", "ipratio": "1", "aq-mode": "0", "qp": "{q}", "pools": "1", "frame-threads": "1"}
    words = " ".join(f"--{name} {value}" for name, value in numbers.items())
    flags = "".join(f" --{name}" for name in switches)
    pairs = [f"{name}={value}" for name, value in numbers.items()] + [f"{name}=1" for name in switches]
    arguments = f"--preset {preset} --tune psnr {words}{flags} --no-info --input {{input}} --output {{output}}"
    params = ("x265-params", ":".join([*pairs, "info=0", "log-level=none"]))
    return (
        Program("x265", arguments, "--version", r"version (\S+)", "hevc"),
        Library("libx265", (("preset", preset), ("tune", "psnr"), params), "hevc"),
    )


def _libaom(screen: bool) -> tuple[Route, ...]:
    """aomenc, else FFmpeg's program."""
    tools = "screen" if screen else "default"
    on = int(screen)
    return (
        Program(
            "aomenc",
            f"--allintra --limit=1 --end-usage=q --cq-level={{q}} --cpu-used=2 --threads=1 --tune=psnr "
            f"--tune-content={tools} --enable-palette={on} --enable-intrabc={on} --obu -o {{output}} {{input}}",
            "--help",
            r"AV1 Encoder (\S+)",
            "libdav1d",
        ),
        Program(
            "ffmpeg",
            f"-i {{input}} -frames:v 1 -c:v libaom-av1 -usage allintra -crf {{q}} -b:v 0 -cpu-used 2 -threads 1 "
            f"-aom-params tune=psnr:tune-content={tools}:enable-palette={on}:enable-intrabc={on} -f obu {{output}}",
            "-hide_banner -h encoder=libaom-av1",
            r"Encoder (libaom-av1)",
            "libdav1d",
        ),
    )


def _svt_av1(screen: bool) -> tuple[Route, ...]:
    params = f"avif=1:tune=1:aq-mode=0:lp=1:scm={int(screen)}"
    return (Library("libsvtav1", (("crf", "{q}"), ("preset", "2"), ("svtav1-params", params)), "libdav1d"),)


def _kvazaar() -> tuple[Route, ...]:
    arguments = "--preset placebo --period 1 --gop 0 -q {q} --threads 1 --owf 0 --no-info -i {input} -o {output}"
    return (Program("kvazaar", arguments, "--version", r"Kvazaar (\S+)", "hevc"),)


# Routes in the order in which they are tried; chroma formats; scale.
_PEERS: dict[str, tuple[tuple[Route, ...], Sequence[str], str]] = {
    "x265-slow": (_x265("slow"), CHROMA, "qp"),
    "x265-veryslow-tskip": (_x265("veryslow", "tskip"), CHROMA, "qp"),
    "kvazaar": (_kvazaar(), ("420",), "qp"),
    "libaom": (_libaom(False), CHROMA[1:], "av1"),
    "libaom-screen": (_libaom(True), CHROMA[1:], "av1"),
    "svt-av1": (_svt_av1(False), ("420",), "av1"),
    "svt-av1-screen": (_svt_av1(True), ("420",), "av1"),
}
PEERS = tuple(_PEERS)


def peer(name: str) -> Contestant | str:
    """Another encoder, or why it is absent."""
    routes, chromas, scale = _PEERS[name]
    reasons = [route.absent() for route in routes]
    for route, reason in zip(routes, reasons, strict=True):
        if reason is None:
            return Contestant(name, route, chromas, scale)
    return "; ".join(filter(None, reasons))


def choose(
    variants: Sequence[str], peers: Sequence[str], chroma: str, preset: str
) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and by name why others that were asked for do not.

    Raises:
        ValueError: an unknown name.
    """
    for what, names, known in (("variants", variants, VARIANTS), ("peers", peers, PEERS)):
        for name in names:
            if name not in known:
                raise ValueError(f"{what} must be of {', '.join(known)}, got {name!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if chroma not in CHROMA:
        raise ValueError(f"chroma must be one of {', '.join(CHROMA)}, got {chroma!r}")
    found = [variant(name, preset) for name in variants]
    absent: dict[str, str] = {}
    for name in peers:
        contestant = peer(name)
        if isinstance(contestant, str):
            absent[name] = contestant
        elif chroma not in contestant.chromas:
            absent[name] = f"it has no {':'.join(chroma)}"
        else:
            found.append(contestant)
    return found, absent
