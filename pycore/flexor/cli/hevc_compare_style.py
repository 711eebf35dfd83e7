# SPDX-License-Identifier: Apache-2.0
"""The style of the page of `flexor hevc compare`, for light and dark screens."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #18181b; --faint: #63636e; --rule: #e4e4e7; --tint: #f4f4f5;
  --fewer: #15803d; --more: #b91c1c; --off: #1d4ed8; --nearest: #ea580c; --sad: #a16207; --boundary: #be185d;
  --x265: #52525b; --kvazaar: #a1a1aa; --aom: #15803d; --svt: #0891b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #18181b; --ink: #f4f4f5; --faint: #a1a1aa; --rule: #3f3f46;
  --tint: #27272a; --fewer: #4ade80; --more: #f87171; --off: #7aa2ff; --nearest: #fb923c; --sad: #facc15;
  --boundary: #f472b6; --x265: #d4d4d8; --kvazaar: #8b8b94; --aom: #4ade80; --svt: #22d3ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 64px; max-width: 1180px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 26px 0 6px; }
p { margin: 4px 0 10px; max-width: 92ch; }
header p, small, figcaption, .tick, .name, summary { color: var(--faint); }
small { font-size: 12.5px; font-weight: normal; }
nav { display: flex; flex-wrap: wrap; gap: 2px 14px; }
a { color: inherit; text-underline-offset: 3px; text-decoration-color: var(--faint); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px; }
.card { background: var(--tint); border-radius: 8px; padding: 14px 16px; }
.card b { font-size: 30px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card p { margin: 2px 0 4px; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; max-width: 8.5em; line-height: 1.3; font-weight: 600; }
tbody th, tfoot th { text-align: left; font-weight: 500; }
td small { display: block; line-height: 1.1; }
tfoot td, tfoot th { font-weight: 700; border-top: 2px solid var(--faint); border-bottom: 0; }
.fewer { color: var(--fewer); } .more { color: var(--more); } .none { color: var(--faint); }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 2px 18px; margin-top: 34px;
  padding: 8px 0; background: var(--paper); border-bottom: 1px solid var(--rule); font-size: 13.5px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.swatch { width: 26px; height: 12px; }
section[id] { scroll-margin-top: 70px; }
section[id] > h2 { border-top: 0; margin-top: 24px; }
figure { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 20px 28px; }
.plot { width: 100%; height: auto; display: block; }
.grid { stroke: var(--rule); stroke-width: 1; }
.zero { stroke: var(--off); stroke-width: 1.5; }
.tick, .name { fill: var(--faint); font-size: 12px; }
.curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--c); }
.c-off, .c-main { --c: var(--off); } .c-explicit, .c-explicit-edges { --c: var(--nearest); } .c-sad { --c: var(--sad); }
.c-boundary { --c: var(--boundary); } .c-x265-slow, .c-x265-veryslow-tskip { --c: var(--x265); }
.c-kvazaar { --c: var(--kvazaar); } .c-libaom, .c-libaom-screen { --c: var(--aom); }
.c-svt-av1, .c-svt-av1-screen { --c: var(--svt); }
.curve.c-off, .curve.c-explicit { stroke-width: 2.6; }
.curve.c-main, .curve.c-explicit-edges { stroke-dasharray: 2 3; }
.curve.c-x265-slow, .curve.c-libaom, .curve.c-svt-av1 { stroke-dasharray: 5 4; }
.curve.c-kvazaar { stroke-dasharray: 2 3; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 14px; }
.panels figcaption { min-height: 3em; line-height: 1.35; display: flex; flex-direction: column; justify-content: end;
  padding-bottom: 4px; }
.panels b { color: var(--ink); }
.magnified, .where { max-width: 100%; display: block; border: 1px solid var(--rule); image-rendering: pixelated; }
.where { image-rendering: auto; }
.times .words { text-align: left; }
.times .bar { width: 180px; min-width: 120px; padding-left: 0; }
.bar i { display: block; height: 10px; border-radius: 2px; background: var(--faint); }
code { display: block; min-width: 300px; font-size: 12px; line-height: 1.35; white-space: normal;
  overflow-wrap: anywhere; }
ul { padding-left: 20px; } li { max-width: 100ch; }
@media print { .legend { position: static; } }
"""
