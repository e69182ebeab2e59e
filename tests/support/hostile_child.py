"""Reads the files whose names come as JSON lines, each under limits, and tells what became of it and what it took."""

import json
import os
import resource
import sys
import time
from pathlib import Path

from PIL import Image

from maskprune.tasks.data.pictures import Skipped, read_picture
from maskprune.tasks.data.sources import open_source


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def reader(kind: str):
    if kind == "network":
        from maskprune import models

        return models.load
    return {"picture": read_picture, "source": open_source}[kind]


if __name__ == "__main__":
    Image.init()
    read = reader(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize:") + (1 << 30),) * 2)  # a gigabyte more, then it fails
    beginning = memory("VmRSS:")
    for line in sys.stdin:
        path = os.path.join(sys.argv[2], json.loads(line))
        Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            read(path)
            found = "kept"
        except (Skipped, ValueError) as refused:
            found = str(refused)
        took = time.perf_counter() - wall, time.process_time() - cpu, memory("VmHWM:") - beginning
        print(json.dumps([found, *took]), flush=True)
