"""Disturbs a running server in every known way and reports the outcome.

    python -m loadtests.faults                            every fault at full scale: hours
    python -m loadtests.faults 'worker killed' --scale 0.1
    python -m loadtests.faults --seed 7 --json build/faults.json

Prints one line per fault as it ends. Exit status 1 when a promise was broken or a fault could not be done; each is
reported below the table with the command that repeats it.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from loadtests.faults import (
    arbiter_killed,
    bit_flips,
    clocks,
    controller_killed,
    frozen,
    holder_stopped,
    linearizability,
    reload,
    reload_refused,
    scarcity,
    signal_storms,
    soak,
    torn_reads,
    worker_killed,
)
from loadtests.faults.fault import Fault, FaultOptions

FAULTS: Final[tuple[Fault, ...]] = (
    Fault("linearizability", "one order explains all answers", linearizability.linearizability),
    Fault("worker killed", "no event lost or duplicated, no stall over a second", worker_killed.worker_killed),
    Fault("controller killed", "events continue, it is back in 100 ms", controller_killed.controller_killed),
    Fault("controller stopped", "events continue, it is replaced", controller_killed.controller_stopped),
    Fault("controller stale", "it writes nothing", controller_killed.controller_stale),
    Fault("holder stopped", "503 in 100 ms, removed in 500 ms, no corruption", holder_stopped.holder_stopped),
    Fault("signal storms", "no half-written state", signal_storms.signal_storms),
    Fault("arbiter killed", "no orphan process or memory, a new start serves", arbiter_killed.arbiter_killed),
    Fault("reload", "no request fails, every memory is kept, one controller", reload.reload),
    Fault("upgrade", "no request fails, every memory is kept, one controller", reload.upgrade),
    Fault("reload refused", "old settings and memories stay, every problem is logged", reload_refused.refused),
    Fault("reload without workers", "old settings and memories stay, it is logged", reload_refused.unbootable),
    Fault("reload without descriptors", "old settings and memories stay, it is logged", reload_refused.no_descriptors),
    Fault("frozen", "no healthy holder is killed", frozen.frozen),
    Fault("throttled", "no healthy holder is killed", frozen.throttled),
    Fault("no descriptors", "a clear error, and nothing is lost", scarcity.no_descriptors),
    Fault("no memory", "a clear error, and nothing is lost", scarcity.no_memory),
    Fault("full log", "only readers of the log notice", scarcity.full_log),
    Fault("clock jumps", "rhythm, limits and deadlines are unaffected", clocks.jumps),
    Fault("torn reads", "every read is whole", torn_reads.torn_reads),
    Fault("bit flips", "every flip is noticed, a corrupt memory is entered as lost in 60 s", bit_flips.bit_flips),
    Fault("soak", "memory, descriptors and scrapes do not grow", soak.soak),
)

HEAD: Final = "| fault | times | what was measured | seconds | held |\n|---|---:|---|---:|---|"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.faults", description="Disturb a server and check its promises."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults by name; * matches anything (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full count (default 1)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="seed of all random choices")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    args = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if not args.names or any(fnmatch(fault.name, name) for name in args.names)]
    if not chosen:
        parser.error(f"no such fault; there are: {', '.join(fault.name for fault in FAULTS)}")
    print(f"seed {args.seed}, scale {args.scale:g}\n\n{HEAD}")
    outcomes, broken = [], []
    for fault in chosen:
        outcome = _run_fault(fault, args.scale, args.seed)
        outcomes.append(outcome)
        print(line(outcome), flush=True)
        again = f"python -m loadtests.faults '{fault.name}' --seed {args.seed} --scale {args.scale:g}"
        broken += [f"{fault.name}: {sentence} (again: {again})" for sentence in outcome["broken"]]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"seed": args.seed, "scale": args.scale, "faults": outcomes}, indent=1) + "\n")
    for sentence in broken:
        print(f"broken: {sentence}", file=sys.stderr)
    return 1 if broken else 0


def _run_fault(fault: Fault, scale: float, seed: int) -> dict[str, Any]:
    """Do one fault; returns its outcome for the table and the document."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlsdm-fault-") as directory:
        try:
            count, figures, broken = fault.run(FaultOptions(scale, seed, Path(directory)))
        except Exception as error:  # noqa: BLE001 - the others are worth running all the same
            traceback.print_exc()
            count, figures, broken = 0, {}, [f"could not be done: {error!r}"]
    return {
        "fault": fault.name,
        "promise": fault.promise,
        "count": count,
        "figures": dict(figures),
        "broken": broken,
        "seconds": time.monotonic() - began,
    }


def line(outcome: dict[str, Any]) -> str:
    """Return the row of the table for an outcome."""
    figures = "; ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in outcome["figures"].items()
    )
    held = "✗" if outcome["broken"] else "✓"
    return f"| {outcome['fault']} | {outcome['count']:,} | {figures} | {outcome['seconds']:.0f} | {held} |"


if __name__ == "__main__":
    sys.exit(main())
