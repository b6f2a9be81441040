"""Joins criterion's medians, PyTorch's times and the training steps of one run: table.py OUT -> OUT/gpu.json, OUT/gpu.md"""

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
for file in sorted(out.glob("criterion/**/new/benchmark.json")):
    about, took = json.loads(file.read_text()), json.loads((file.parent / "estimates.json").read_text())
    device, dtype, id = about["value_str"].split("/", 2)
    median, error = took["median"]["point_estimate"] / 1e3, took["median"]["standard_error"] / 1e3
    row = {"op": about["group_id"], "what": about["function_id"], "dtype": dtype, "id": id, "us": median, "error_us": error}
    throughput = about.get("throughput") or {}
    for unit, name in (("Bytes", "gb_s"), ("Elements", "gflop_s")):
        if unit in throughput:
            row[name] = throughput[unit] / median / 1e3
    ways = peers["cases"].get(f"{row['op']}/{id}", {}).get(row["what"], {})
    if ways:
        way, ms = min(ways.items(), key=lambda x: x[1])
        row |= {"peer": way, "peer_us": 1e3 * ms, "speedup": 1e3 * ms / median, "peers_us": {w: 1e3 * t for w, t in ways.items()}}
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
lines += ["| op | shape | what | µs | rate | best PyTorch | µs | speed-up |", "|---|---|---|---|---|---|---|---|"]
for r in rows:
    rate = f"{r['gb_s']:.0f} GB/s" if "gb_s" in r else f"{r['gflop_s'] / 1e3:.1f} TFLOP/s" if "gflop_s" in r else ""
    peer = [r["peer"], f"{r['peer_us']:.1f}", f"{r['speedup']:.2f}"] if "peer" in r else ["", "", ""]
    lines.append(f"| {r['op']} | {r['id']} | {r['what']} | {r['us']:.1f} | {rate} | {' | '.join(peer)} |")
for step in report["steps"]:
    lines += ["", f"{step['case']}:", "", "| | ms | ours / it |", "|---|---|---|"]
    lines += [f"| {r['impl']} | {r['ms']} | {r['ratio']} |" for r in step["results"]]
(out / "gpu.md").write_text("\n".join(lines) + "\n")
