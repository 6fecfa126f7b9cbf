#!/usr/bin/env python3
"""Renews what README.md and reports.md quote of the program's output.

    python3 docs/renew.py [--trainyard build/release/cli/trainyard]

Runs the commands of each page in their order, on a store of their own, and puts what each prints in the place of the block that
follows it. The pages' words are not touched: read the difference, and mend the sentences that have gone wrong. Standard library only.
"""

import argparse
import os
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/reports.md"]
COMMAND = re.compile(r"^    (?:\./yard|trainyard) ((?:sim|run) (?:run|sweep|compare|show)(?: [^ #|]+)+)$")


def printed(trainyard, command, environment):
    done = subprocess.run([trainyard, *command.split(), "-q"], cwd=ROOT, env=environment, text=True, capture_output=True)
    if done.returncode not in (0, 5):  # 5: a job that is still down at the end is a result too
        raise SystemExit(f"{command}: {done.stderr}")
    return re.sub(r"(trainyard [0-9.]+) \([^)]*\)", r"\1", done.stdout).rstrip("\n").split("\n")


def shape(line):
    """Without its numbers and bars."""
    return re.sub(r"[\d.,%█▉▊▋▌▍▎▏-]+|\s+", " ", line).strip()


def part_shown(old, new):
    """A block may leave out the beginning and the end of what is printed."""
    first = next((i for i, line in enumerate(new) if shape(line) == shape(old[0])), None)
    if first is None:
        raise SystemExit(f"nothing that is printed looks like the first line of its block: {old[0]}")
    to_the_end = shape(old[-1]) == shape(new[-1])
    return new[first:] if to_the_end else new[first : first + len(old)]


def renewed(lines, trainyard, environment):
    out, i, last = [], 0, None
    while i < len(lines):
        command = COMMAND.match(lines[i])
        if lines[i].startswith("#"):
            last = None
        if command and all((ROOT / word).exists() for word in command[1].split() if word.endswith(".json")):
            last = printed(trainyard, command[1], environment)
        if lines[i] != "```text" or last is None:
            out.append(lines[i])
            i += 1
            continue
        end = lines.index("```", i)
        out += [lines[i], *part_shown(lines[i + 1 : end], last), "```"]
        last, i = None, end + 1
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainyard", default=str(ROOT / "build/release/cli/trainyard"))
    trainyard = os.path.abspath(parser.parse_args().trainyard)
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "TRAINYARD_STORE": f"{folder}/store.sqlite"}
            path = ROOT / page
            path.write_text("\n".join(renewed(path.read_text().split("\n"), trainyard, environment)))
        print(page)


if __name__ == "__main__":
    main()
