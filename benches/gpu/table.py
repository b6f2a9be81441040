"""Joins the medians of `ocellus bench`, PyTorch's times and the training steps of one run: table.py OUT -> OUT/gpu.json, OUT/gpu.md"""

import datetime
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])


def read(name, default):
    file = out / name
    return json.loads(file.read_text()) if file.exists() else default


peers = read("peers.json", {"cases": {}})
rows = []
lines = (out / "ops.jsonl").read_text().splitlines() if (out / "ops.jsonl").exists() else []
for case in map(json.loads, lines):
    for what in ("forward", "step"):
        if case[what] is None:
            continue
        row = {"op": case["op"], "what": what, "dtype": case["dtype"], "id": case["id"], "us": 1e6 * case[what]}
        if what == "forward" and case["floor"]:
            row["of_floor"] = case["floor"] / case[what]
            amount = case["flops"] or case["bytes"]
            row["gflop_s" if case["flops"] else "gb_s"] = amount / case[what] / 1e9
        ways = peers["cases"].get(f"{case['op']}/{case['id']}", {}).get(what, {})
        if ways:
            way, ms = min(ways.items(), key=lambda x: x[1])
            row |= {"peer": way, "peer_us": 1e3 * ms, "speedup": 1e3 * ms / row["us"], "peers_us": {w: 1e3 * t for w, t in ways.items()}}
        rows.append(row)
steps = [read(f"step_{p}.json", None) for p in ("base", "large")]
report = {
    "date": datetime.date.today().isoformat(),
    "commit": pathlib.Path("commit").read_text().strip(),
    "gpu": (out / "gpu.txt").read_text().strip(),
    **{k: v for k, v in peers.items() if k != "cases"},
    "ops": rows,
    "steps": [s for s in steps if s],
}
(out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")

lines = [f"{report['gpu']}; commit {report['commit']}; {report['date']}; torch {report.get('torch', '-')}", ""]
lines += [f"Ceilings measured in the same run: copy {report.get('copy_tb_s')} TB/s (read + written), bf16 8192³ product {report.get('gemm_tflop_s')} TFLOP/s.", ""]
lines += ["| op | shape | what | µs | rate | of floor | best PyTorch | µs | speed-up |", "|---|---|---|---|---|---|---|---|---|"]
for r in rows:
    rate = f"{r['gb_s']:.0f} GB/s" if "gb_s" in r else f"{r['gflop_s'] / 1e3:.1f} TFLOP/s" if "gflop_s" in r else ""
    peer = [r["peer"], f"{r['peer_us']:.1f}", f"{r['speedup']:.2f}"] if "peer" in r else ["", "", ""]
    share = f"{r['of_floor']:.0%}" if "of_floor" in r else ""
    lines.append(f"| {r['op']} | {r['id']} | {r['what']} | {r['us']:.1f} | {rate} | {share} | {' | '.join(peer)} |")
for step in report["steps"]:
    lines += ["", f"{step['case']}:", "", "| | ms | ours / it |", "|---|---|---|"]
    lines += [f"| {r['impl']} | {r['ms']} | {r['ratio']} |" for r in step["results"]]
(out / "gpu.md").write_text("\n".join(lines) + "\n")
