# SPDX-License-Identifier: Apache-2.0
"""Committed results as Markdown and pictures: prints the tables, and rewrites them where the documents show them."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from flexor import bench
from flexor.bench import picture, report
from flexor.codec.hevc import compare

ROOT = Path(__file__).resolve().parent.parent
RATE_DISTORTION = ROOT / "docs" / "hevc_nearest.md"  # shows what `flexor hevc compare --json` wrote
# family -> (document, whether it shows everything)
DOCUMENTS = {
    "deform": ((ROOT / "README.md", False), (ROOT / "docs" / "deform.md", True)),
    "warp": ((ROOT / "docs" / "deform.md", True),),
    "dynamic": ((ROOT / "README.md", False), (ROOT / "docs" / "dynamic.md", True)),
    "match": ((ROOT / "README.md", False), (ROOT / "docs" / "match.md", True)),
    "grid": ((ROOT / "README.md", False), (ROOT / "docs" / "grid.md", True)),
    "intra": ((ROOT / "README.md", False), (ROOT / "docs" / "intra.md", True)),
    "hevc": ((ROOT / "README.md", False), (ROOT / "docs" / "hevc.md", True)),
    "hevc_encode": ((ROOT / "docs" / "hevc.md", True),),
    "pose": ((ROOT / "docs" / "pose_models.md", True),),
    "sparse": ((ROOT / "README.md", False), (ROOT / "docs" / "sparse.md", True)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="JSON files (default: bench/results/*.json)")
    parser.add_argument("--base", type=Path, help="compare with this JSON of the same family instead")
    parser.add_argument("--write", action="store_true", help="rewrite the marked blocks and draw the pictures")
    options = parser.parse_args()
    files = options.results or sorted((ROOT / "bench" / "results").glob("*.json"))
    try:
        loaded = [(file, bench.load(file)) for file in files]
        found = [results for _, results in loaded if results.get("family") in bench.FAMILIES]
        rates = [(file.stem, compare.load(file)) for file, results in loaded if results.get("family") == compare.FAMILY]
        base = bench.load(options.base) if options.base else None
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if not found and not rates:
        print("report: no results; make bench writes them", file=sys.stderr)
        return 2
    for block, points in rates:
        if options.write:
            write_block(RATE_DISTORTION, block, compare.markdown(points))
        elif base is None:
            print(compare.markdown(points))
    for results in found:
        if base is not None:
            print(report.compare(results, base))
        elif options.write:
            write(results)
        else:
            print(report.markdown(results))
    return 0


def write(results: dict) -> None:
    """Puts the family's tables between its markers in each document that has them, and draws its picture."""
    family = results["family"]
    image = ROOT / "docs" / "images" / f"bench_{family}.svg"
    picture.draw(results, image)
    print(f"drew {image.relative_to(ROOT)}")
    for document, everything in DOCUMENTS[family]:
        if document.exists():
            write_block(document, family, report.markdown(results, everything))


def write_block(document: Path, family: str, block: str) -> None:
    """Puts `block` where the document has it."""
    replaced = replace_block(document.read_text(), family, block)
    if replaced is None:
        print(f"{document.relative_to(ROOT)} has no bench:{family} block")
        return
    document.write_text(replaced)
    print(f"wrote {document.relative_to(ROOT)}")


def replace_block(text: str, family: str, block: str) -> str | None:
    """`text` with `block` between the family's start and end markers; None where there are none."""
    start, end = f"<!-- bench:{family}:start -->", f"<!-- bench:{family}:end -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        return None
    return pattern.sub(lambda _: f"{start}\n{block}{end}", text)


if __name__ == "__main__":
    sys.exit(main())
