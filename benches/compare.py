#!/usr/bin/env python3
"""Times one training step of MAE beside its peers, alternating; on the CPU with 2 threads each.

    cargo bench --bench recipes --no-run                        # prints the path of the program
    cargo build --release --manifest-path benches/candle/Cargo.toml
    python3 benches/compare.py --ours PATH [--candle PATH] [--python PYTHON] [--compile] [--json FILE]
    python3 benches/compare.py --ours PATH --python python3 --compile --setting base 256 cuda bf16

Every program answers visits in turn: A B C A B C ... The figure of an implementation is the median of its visits'
medians, its spread (largest - smallest) / median of them. A visit during which other processes took more than
`--others` cores is run again, at most twice per visit; the most used is written down.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time

THREADS = "2"


class Program:
    def __init__(self, name, command, setting):
        command = [*command, *setting]
        env = dict(os.environ, RAYON_NUM_THREADS=THREADS, OMP_NUM_THREADS=THREADS, MKL_NUM_THREADS=THREADS)
        self.name, self.visits, self.others = name, [], []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(self, steps):
        busy, start = busy_seconds(), time.perf_counter()
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        wall = time.perf_counter() - start
        return answer, max(0.0, (busy_seconds() - busy - answer["cpu_ms"] * steps / 1e3) / wall)

    def visit(self, steps, limit):
        attempts = []
        while len(attempts) < 3 and (not attempts or attempts[-1][1] > limit):
            attempts.append(self.run(steps))
        answer, others = min(attempts, key=lambda a: a[1])
        self.visits.append(answer)
        self.others.append(others)

    def summary(self):
        medians = [statistics.median(v["ms"]) for v in self.visits]
        middle = statistics.median(medians)
        part = lambda key: statistics.median(statistics.median(v[key]) for v in self.visits)
        return {
            "impl": self.name,
            "ms": round(middle, 2),
            "spread": round((max(medians) - min(medians)) / middle, 3),
            "best_ms": round(min(min(v["ms"]) for v in self.visits), 2),
            "forward_ms": round(part("forward_ms"), 2),
            "cpu_ms": round(statistics.median(v["cpu_ms"] for v in self.visits), 1),
            "visits_ms": [round(m, 2) for m in medians],
            "others_cores": round(max(self.others), 2),
            "loss": round(self.visits[-1]["loss"], 4),
        }


def busy_seconds():
    """Processor time of the whole machine that was not idle."""
    with open("/proc/stat") as f:
        ticks = [int(x) for x in f.readline().split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def cpu_model():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.processor())


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="program of `cargo bench --bench recipes --no-run`")
    parser.add_argument("--candle", help="program of benches/candle")
    parser.add_argument("--python", help="Python with torch")
    parser.add_argument("--compile", action="store_true", help="torch.compile as another peer")
    parser.add_argument("--matmul", action="store_true", help="attention by matmul and softmax as another peer")
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps per visit")
    parser.add_argument("--others", type=float, default=0.2, help="cores other processes may use in a visit")
    parser.add_argument("--setting", nargs=4, metavar=("PRESET", "BATCH", "DEVICE", "DTYPE"), default=["tiny", "8", "cpu", "f32"])
    parser.add_argument("--json", help="write the result here")
    args = parser.parse_args()
    programs = [Program("ocellus", [args.ours, "--serve"], args.setting)]
    if args.python:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_mae.py")
        programs.append(Program("torch eager", [args.python, script], args.setting))
        if args.matmul:
            programs.append(Program("torch eager, matmul attention", [args.python, script, "--matmul"], args.setting))
        if args.compile:
            programs.append(Program("torch.compile", [args.python, script, "--compile"], args.setting))
    if args.candle:
        programs.append(Program("candle", [args.candle], []))  # knows the default setting only
    for program in programs:
        program.run(4)  # first touches, plan caches, compilation
    for _ in range(args.visits):
        for program in programs:
            program.visit(args.steps, args.others)
    results = [program.summary() for program in programs]
    for program in programs:
        program.process.stdin.close()
        program.process.wait()
    env = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "cpu": cpu_model(), "threads": int(THREADS), "cores": os.cpu_count(), "steps_per_visit": args.steps}
    if args.python:
        env["torch"] = subprocess.check_output([args.python, "-c", "import torch; print(torch.__version__)"], text=True).strip()
    ours = results[0]
    print(f"{'':30} {'ms':>8} {'best':>8} {'forward':>8} {'cpu ms':>8} {'spread':>7} {'ours/it':>8}")
    for r in results:
        r["ratio"] = round(ours["ms"] / r["ms"], 3)
        r["cpu_ratio"] = round(ours["cpu_ms"] / r["cpu_ms"], 3)
        columns = f"{r['ms']:8.1f} {r['best_ms']:8.1f} {r['forward_ms']:8.1f} {r['cpu_ms']:8.1f} {r['spread']:7.1%}"
        print(f"{r['impl']:30} {columns} {r['ratio']:8.2f}")
    preset, batch, device, dtype = args.setting
    report = {"case": f"mae/{device}/{dtype}/{preset}/b{batch}", "env": env, "results": results}
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)
            f.write("\n")
    else:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
