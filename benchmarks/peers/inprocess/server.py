"""Raw ONNX Runtime in one process and thread, without HTTP or JSON: what no server of this graph can beat on one core.

    python -m benchmarks.peers.inprocess.server --model model.onnx --windows windows.npy

Reads lines of "ROWS SECONDS" from standard input; for each it runs the graph with so many rows a call and builds their
answers, one call after another, and prints a JSON list of the calls' times in milliseconds.
"""

import argparse
import json
import sys
import time

import numpy as np

from benchmarks.peers.answer import answer
from benchmarks.peers.graph import Graph


def main() -> None:
    """Answers until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--windows", required=True)
    options = parser.parse_args()
    graph = Graph(options.model)
    windows = list(np.load(options.windows))
    for line in sys.stdin:
        rows, seconds = int(line.split()[0]), float(line.split()[1])
        times_ms, position = [], 0
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            taken = [windows[(position + index) % len(windows)] for index in range(rows)]
            position += rows
            for fields in graph.run_merged(taken):
                answer(fields, began)
            times_ms.append((time.perf_counter() - began) * 1000)
        print(json.dumps(times_ms), flush=True)


if __name__ == "__main__":
    main()
