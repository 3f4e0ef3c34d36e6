"""Runs inside the box: confines itself, then becomes a warm compiler."""

import ctypes
import json
import os
import sys

from rerankjax.sandbox.inside import confine


def main() -> None:
    limits, rules, argv = json.loads(sys.argv[1]), bytes.fromhex(sys.argv[2]), json.loads(sys.argv[3])
    limits["cpu_seconds"] = 1e9  # the host has the clock: it counts for each program anew
    filter_bpf = ctypes.create_string_buffer(rules, len(rules)) if rules else None
    if filter_bpf:
        confine.lock_server(limits)
    confine.confine(limits, filter_bpf)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
