#!/usr/bin/env python3
"""Fits infinitehbd-fleet.json, how the nodes of a fleet fail, on infinitehbd-trace.json, and says how it fits.

    python3 scenarios/faults/fit_fleet.py [--check] [--import RAW.json[.gz]]

The trace is InfiniteHBD-Trace (github.com/stepfun-ai/InfiniteHBD-Trace @7aacdc8, StepFun, Apache-2.0; SIGCOMM 2025,
arXiv:2502.03885): start and end of every fault of 400 GPU servers over 349 days. `--import` makes
infinitehbd-trace.json of the published file; without it the committed trace is read. `--check` writes nothing and fails
when the files would change. Standard library only; a few seconds.

The model, in the order in which it is fitted:

 1. Bursts. Faults of one group of classes, each within an hour of the one before, on two nodes or more. A fault within
    a day of its own node's last repair is a refailure, whoever else is struck at the time. Pairs that chance would
    make are subtracted. Nodes that come back together also fail again together, more often than by chance.
 2. Nodes. All other faults: a node fails at its own constant rate while it is up, and a share of the nodes (lemons) at a
    multiple of it; after a repair it fails again with some probability, after a lognormal time. Maximum likelihood.
 3. Seasons. What the counts of 30 days vary beyond Poisson and bursts: a lognormal factor on all rates, by moments
    of the counts' logarithms.
 4. Repairs. A share of quick ones (a reset: lognormal, common to all classes), else Weibull by group: by
    expectation-maximisation. Lognormals instead of the Weibulls fit worse, and that is printed.
"""
import argparse
import collections
import gzip
import json
import math
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
TRACE, FLEET = HERE / "infinitehbd-trace.json", HERE / "infinitehbd-fleet.json"
NODES = 400
SOURCE = "InfiniteHBD-Trace (StepFun, Apache-2.0), github.com/stepfun-ai/InfiniteHBD-Trace @7aacdc8, arXiv:2502.03885"

# Level, class and description of the trace: the group that shares a repair time, and the fault mode that we read them as.
# The trace names what an operator saw; which mode that is, where it does not say, is our assumption (marked).
READ_AS = {
    ("Hardware Failure", "GPU", "GPU DBE(Double Bit ECC) > Threshold"): ("gpu", "gpu_ecc_uncorrectable"),
    ("Hardware Failure", "GPU", "GPU SBE(Single Bit ECC) > Threshold"): ("gpu", "gpu_hbm_row_remap"),
    ("Hardware Failure", "GPU", "GPU xid Error"): ("gpu", "gsp_hang"),  # assumed: which XID is not said
    ("Hardware Failure", "GPU", "GPU Temperature High"): ("gpu", "gpu_thermal_throttle"),
    ("Hardware Failure", "GPU", "GPU Lost"): ("gpu", "gpu_off_bus"),
    ("Hardware Failure", "GPU", "GPU device unknow error"): ("gpu", "gpu_off_bus"),  # assumed
    ("Hardware Failure", "GPU", "GPU device not found"): ("gpu", "gpu_off_bus"),
    ("Hardware Failure", "GPU", "GPU PCI link width low"): ("gpu", "loose_connection"),
    ("Hardware Failure", "GPU", "nvidia-smi Timeout"): ("gpu", "gsp_hang"),
    ("Hardware Failure", "GPU", "GPU P2P Bandwidth Low"): ("gpu", "nvlink"),
    ("Hardware Failure", "GPU", "Silent Data Corruption"): ("gpu", "silent_data_corruption"),
    ("Hardware Failure", "Parameter Plane Cable", "Link Down"): ("cable", "link_down"),
    ("Hardware Failure", "NIC", "NIC Link Speed low"): ("nic", "nic_degraded"),
    ("Hardware Failure", "NIC", "NIC PCI link Width low"): ("nic", "nic_degraded"),
    ("Hardware Failure", "NIC", "NIC Lost"): ("nic", "nic_lost"),
    ("Hardware Failure", "NIC", "Rnic Gid Error"): ("nic", "misconfigured_after_repair"),
    ("Hardware Failure", "CPU", "Machine Check Exception ( Uncorrectable )"): ("other", "host_memory"),
    ("Other Failure", "Unknown Error", "Unknown Error"): ("unknown", "host_crash"),  # assumed
    ("Other Failure", "Stress Test Failure", "Unknown Error"): ("stress test", "misconfigured_after_repair"),  # assumed
    ("Other Failure", "Change", "Y-cables Taken offline"): ("other", "link_down"),
    ("Other Failure", "Change", "Remote Optical Module Failure"): ("other", "link_down"),
    ("Software Failure", "Firmware", "Firmware mismatch"): ("software", "misconfigured_after_repair"),
}
# By class, where the description makes no difference.
READ_AS_CLASS = {
    "Fan": ("fan", "host_maintenance"),  # assumed: the node is drained, it does not fall over
    "Power Supply": ("power", "host_crash"),
    "Training Task Troubleshooting": ("other", "host_maintenance"),
    "Test": ("other", "host_maintenance"),
}


def read_as(level, group, what):
    if (level, group, what) in READ_AS:
        return READ_AS[level, group, what]
    return READ_AS_CLASS.get(group, ("software" if level == "Software Failure" else "other", "host_crash"))


# ---- The trace ------------------------------------------------------------------------------------------------------


def import_trace(raw):
    """The published file as text of infinitehbd-trace.json: nodes numbered in the order of their identifiers."""
    opener = gzip.open if raw.suffix == ".gz" else open
    with opener(raw, "rt") as stream:
        events = json.load(stream)
    numbers = {node: i for i, node in enumerate(sorted({e["node_id"] for e in events}))}
    faults, running = [], collections.defaultdict(list)
    for e in events:
        key = (e["node_id"], *(e["fault_type"][k] for k in ("Level", "Class", "Desc")))
        if e["event_type"] == "fault_start":
            running[key].append(e["event_time"])
        else:
            faults.append((running[key].pop(0), e["event_time"], numbers[key[0]], key[1:]))
    assert not any(running.values()), "every fault of the trace ends"
    classes = [kind for kind, _ in sorted(collections.Counter(f[3] for f in faults).items(), key=lambda c: (-c[1], c[0]))]
    rows = [f'      {{ "name": {json.dumps(" / ".join(kind))}, "mode": "{read_as(*kind)[1]}" }}' for kind in classes]
    day = lambda t: f"{t:.4f}".rstrip("0").rstrip(".")
    cells = [f"[{node}, {day(start)}, {day(end)}, {classes.index(kind)}]" for start, end, node, kind in sorted(faults)]
    lines = ["      " + ", ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    days = max(f[1] for f in faults)
    return f"""// The faults of 400 GPU servers of StepFun over 349 days, one by one: node, first day, last day, class.
// Facts of {SOURCE}
// (its statistics folder counts the same 584). Nodes are numbered in the order of their identifiers; the 169 servers
// without a fault come last. Classes have the trace's names; which fault mode each is read as is our doing: see fit_fleet.py.
{{
  "schema": 1,
  "name": "InfiniteHBD-Trace",
  "generator": {{
    "kind": "trace",
    "source": "{SOURCE}",
    "nodes": {NODES},
    "days": {day(days)},
    "classes": [
{(','+chr(10)).join(rows)}
    ],
    "faults": [
{(','+chr(10)).join(lines)}
    ]
  }}
}}
"""


def without_comments(text):
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("//"))


class Trace:
    def __init__(self, text):
        generator = json.loads(without_comments(text))["generator"]
        self.days = generator["days"]
        names = [tuple(c["name"].split(" / ")) for c in generator["classes"]]
        # node, start, end, (group, mode)
        self.faults = sorted((f[0], f[1], f[2], read_as(*names[f[3]])) for f in generator["faults"])
        self.faults.sort(key=lambda f: f[1])
        self.node_days = NODES * self.days


# ---- 1. Bursts ------------------------------------------------------------------------------------------------------

CHAIN_DAYS = 1 / 24
TOGETHER_DAYS = 5 / 1440  # two repairs that end so close are one


def up_before(faults):
    """Days since the node's last repair, for each fault that follows one."""
    repaired, out = {}, {}
    for i, (node, start, end, _) in enumerate(faults):
        if node in repaired:
            out[i] = start - repaired[node]
        repaired[node] = max(end, repaired.get(node, 0))
    return out


def find_bursts(faults):
    by_group = collections.defaultdict(list)
    for i, fault in enumerate(faults):
        by_group[fault[3][0]].append(i)
    chains = []
    for members in by_group.values():
        chains.append(members[:1])
        for i in members[1:]:
            if faults[i][1] - faults[chains[-1][-1]][1] <= CHAIN_DAYS:
                chains[-1].append(i)
            else:
                chains.append([i])
    since_repair = up_before(faults)
    chains = [[i for i in chain if since_repair.get(i, math.inf) > 1] for chain in chains]
    return [chain for chain in chains if len({faults[i][0] for i in chain}) > 1]


def fit_bursts(trace):
    faults, bursts = trace.faults, find_bursts(trace.faults)
    counts = collections.Counter(f[3][0] for f in faults)
    by_chance = sum(n * n for n in counts.values()) / trace.days * CHAIN_DAYS
    sizes = collections.Counter(len(b) for b in bursts)
    sizes[2] -= by_chance
    total, largest = sum(sizes.values()), max(sizes)

    mean = sum(k * n for k, n in sizes.items()) / total

    def mean_size(exponent):
        return sum(k ** (1 - exponent) for k in range(2, largest + 1)) / sum(k**-exponent for k in range(2, largest + 1))

    # By the mean and not by likelihood: how many faults there are, and how uneven, hangs on the few large ones.
    exponent = min((0.5 + 0.01 * i for i in range(500)), key=lambda e: abs(mean_size(e) - mean))
    later = [(faults[i][1] - faults[b[0]][1], abs(faults[i][2] - faults[b[0]][2]) <= TOGETHER_DAYS) for b in bursts for i in b[1:]]
    apart = [gap for gap, _ in later if gap > 1 / 1440]
    return bursts, dict(per_1000_node_days=1000 * total / trace.node_days, size_exponent=exponent, max_nodes=largest,
                        simultaneous_share=1 - len(apart) / len(later), spread_hours=24 * sum(apart) / len(apart),
                        shared_repair_share=sum(same for _, same in later) / len(later),
                        shared_refailure_share=shared_refailures(faults)), by_chance


def shared_refailures(faults):
    """Of nodes that come back together (within five minutes), pairs fail again within a week more often than each by
    itself would: P(both) = share * p + (1 - share) * p^2, if a share of the pairs fails again together or not at all."""
    following, last, back = {}, {}, collections.defaultdict(list)
    for i, (node, _, end, _) in enumerate(faults):
        if node in last:
            following[last[node]] = i
        last[node] = i
        back[round(end / TOGETHER_DAYS)].append(i)
    again = lambda i: i in following and faults[following[i]][1] - faults[i][2] <= 7
    pairs = [(again(i), again(j)) for group in back.values() for i in group for j in group if faults[i][0] < faults[j][0]]
    both = sum(a and b for a, b in pairs) / len(pairs)
    p = sum(a + b for a, b in pairs) / len(pairs) / 2
    return (both - p * p) / (p - p * p)


# ---- 2. Nodes -------------------------------------------------------------------------------------------------------


def histories(trace, bursts):
    """For each node: days up, whether its first fault is its own, and (days since repair, whether that ended in a fault
    of its own) for what followed."""
    in_burst = {i for b in bursts for i in b}
    by_node = collections.defaultdict(list)
    for i, fault in enumerate(trace.faults):
        by_node[fault[0]].append(i)
    out = []
    for node in range(NODES):
        up, first, gaps, since = 0.0, False, [], 0.0
        for nth, i in enumerate(by_node[node]):
            gap = max(trace.faults[i][1] - since, 1e-4)
            up += gap
            if nth == 0:
                first = i not in in_burst
            else:
                gaps.append((gap, i not in in_burst))
            since = max(since, trace.faults[i][2])
        left = max(trace.days - since, 1e-4)
        up += left
        if by_node[node]:
            gaps.append((left, False))
        out.append((up, first, gaps))
    return out


def node_log_likelihood(nodes, rate, share, factor, again, mu, sigma):
    kinds = [(1 - share, rate), (share, rate * factor)] if share > 0 else [(1, rate)]
    total = 0
    for up, first, gaps in nodes:
        logs = [math.log(weight) - r * up + (math.log(r) if first else 0) for weight, r in kinds]
        for gap, own in gaps:
            x = (math.log(gap) - mu) / sigma
            survives = 1 - again * 0.5 * math.erfc(-x / math.sqrt(2))
            density = again * math.exp(-x * x / 2) / (gap * sigma * math.sqrt(2 * math.pi))
            for k, (_, r) in enumerate(kinds):
                logs[k] += math.log(r * survives + density if own else survives)
        top = max(logs)
        total += top + math.log(sum(math.exp(v - top) for v in logs))
    return total


def nelder_mead(f, start, step=0.5, rounds=2000):
    n = len(start)
    points = [list(start)] + [[v + step * (i == j) for i, v in enumerate(start)] for j in range(n)]
    points = sorted((f(p), p) for p in points)
    for _ in range(rounds):
        if points[-1][0] - points[0][0] < 1e-9:
            break
        centre = [sum(p[i] for _, p in points[:-1]) / n for i in range(n)]
        at = lambda t: [c + t * (w - c) for c, w in zip(centre, points[-1][1])]
        tried = [(f(at(-1)), at(-1))]
        if tried[0][0] < points[0][0]:
            tried.append((f(at(-2)), at(-2)))
        elif tried[0][0] >= points[-2][0]:
            tried = [(f(at(0.5)), at(0.5))]
        if min(tried)[0] < points[-1][0]:
            points[-1] = min(tried)
        else:
            best = points[0][1]
            moved = [[(b + v) / 2 for b, v in zip(best, p)] for _, p in points[1:]]
            points[1:] = [(f(p), p) for p in moved]
        points.sort()
    return points[0]


def logistic(x):
    return 1 / (1 + math.exp(-x))


def fit_nodes(trace, bursts):
    nodes = histories(trace, bursts)
    free = lambda p: (math.exp(p[0]), logistic(p[1]), 1 + math.exp(p[2]), logistic(p[3]), p[4], math.exp(p[5]))
    alike = lambda p: (math.exp(p[0]), 0, 1, logistic(p[1]), p[2], math.exp(p[3]))
    without, _ = nelder_mead(lambda p: -node_log_likelihood(nodes, *alike(p)), [math.log(0.0015), -1, 0, 1])
    loss, p = nelder_mead(lambda p: -node_log_likelihood(nodes, *free(p)), [math.log(0.0015), -2, 1.5, -1, -1, 1])
    rate, share, factor, again, mu, sigma = free(p)
    since_repair, last, same = up_before(trace.faults), {}, []
    for i, (node, _, _, kind) in enumerate(trace.faults):
        if since_repair.get(i, math.inf) <= 7:
            same.append(last[node] == kind)
        last[node] = kind
    return dict(rate_per_node_day=rate, share=share, factor=factor, probability=again, median_days=math.exp(mu), sigma=sigma,
                same_class_share=sum(same) / len(same)), without - loss


# ---- 3. Seasons -----------------------------------------------------------------------------------------------------

SEASON_DAYS = 30


def fit_seasons(trace, bursts):
    """Faults come in families: a burst, and the refailures of a fault. Within a season their number varies as a sum of
    families does, variance = mean * E[size^2] / E[size]; what their logarithms vary beyond that is the season's factor."""
    in_burst, since_repair = {i for b in bursts for i in b}, up_before(trace.faults)
    root, sizes = {}, collections.Counter()
    for b in bursts:
        for i in b:
            root[i] = ("burst", b[0])
    last = {}
    for i, (node, *_rest) in enumerate(trace.faults):
        if i not in root:
            root[i] = root[last[node]] if i not in in_burst and since_repair.get(i, math.inf) <= SEASON_DAYS else ("fault", i)
        sizes[root[i]] += 1
        last[node] = i
    fano = sum(n * n for n in sizes.values()) / sum(sizes.values())
    seasons = int(trace.days / SEASON_DAYS)
    counts = [sum(1 for f in trace.faults if s * SEASON_DAYS <= f[1] < (s + 1) * SEASON_DAYS) for s in range(seasons)]
    logs = [math.log(c) for c in counts]
    mean_log = sum(logs) / seasons
    variance = sum((x - mean_log) ** 2 for x in logs) / (seasons - 1)
    by_families = fano * seasons / sum(counts)  # of a logarithm: variance over squared mean
    return dict(days=SEASON_DAYS, sigma=math.sqrt(max(0, variance - by_families))), counts, fano


# ---- 4. Repairs -----------------------------------------------------------------------------------------------------

SHORTEST_HOURS = 0.01  # the trace's resolution is 0.0024 hours; 14 faults end as they begin


def log_lognormal(x, mu, sigma):
    return -0.5 * ((math.log(x) - mu) / sigma) ** 2 - math.log(x * sigma * math.sqrt(2 * math.pi))


def weighted_lognormal(sample):
    total = sum(w for w, _ in sample)
    mu = sum(w * math.log(x) for w, x in sample) / total
    return mu, max(0.2, math.sqrt(sum(w * (math.log(x) - mu) ** 2 for w, x in sample) / total))


def log_weibull(x, shape, scale):
    return math.log(shape / scale) + (shape - 1) * math.log(x / scale) - (x / scale) ** shape


def weighted_weibull(sample):
    total, low, high = sum(w for w, _ in sample), 0.1, 5.0
    mean_log = sum(w * math.log(x) for w, x in sample) / total
    for _ in range(60):
        k = (low + high) / 2
        powers = sum(w * x**k for w, x in sample)
        slope = sum(w * x**k * math.log(x) for w, x in sample) / powers - 1 / k - mean_log
        low, high = (low, k) if slope > 0 else (k, high)
    return k, (sum(w * x**k for w, x in sample) / total) ** (1 / k)


def fit_repairs(trace, log_density, fit_slow, start):
    """Share of quick repairs and parameters of the slow ones, by group; median and sigma of the quick ones."""
    sample = [(max((end - begin) * 24, SHORTEST_HOURS), kind[0]) for _, begin, end, kind in trace.faults]
    groups = sorted({g for _, g in sample})
    quick, slow = (math.log(0.5), 1.0), {g: (0.3, *start) for g in groups}
    for _ in range(200):
        likelihood, weights = 0, []
        for x, g in sample:
            share, *parameters = slow[g]
            a = math.log(max(share, 1e-12)) + log_lognormal(x, *quick)
            b = math.log(max(1 - share, 1e-12)) + log_density(x, *parameters)
            both = max(a, b) + math.log1p(math.exp(-abs(a - b)))
            likelihood += both
            weights.append(math.exp(a - both))
        quick = weighted_lognormal([(w, x) for w, (x, _) in zip(weights, sample)])
        for g in groups:
            mine = [(1 - w, x) for w, (x, h) in zip(weights, sample) if h == g]
            slow[g] = (max(0.0, 1 - sum(w for w, _ in mine) / len(mine)), *fit_slow(mine))
    return quick, slow, likelihood


# ---- What is written ------------------------------------------------------------------------------------------------


def fit(trace):
    bursts, burst, by_chance = fit_bursts(trace)
    node, lemons_gain = fit_nodes(trace, bursts)
    season, counts, fano = fit_seasons(trace, bursts)
    quick, slow, weibull = fit_repairs(trace, log_weibull, weighted_weibull, (1.0, 50.0))
    _, _, lognormal = fit_repairs(trace, log_lognormal, weighted_lognormal, (math.log(30), 1.5))
    in_burst = {i for b in bursts for i in b}
    own = collections.Counter(f[3] for i, f in enumerate(trace.faults) if i not in in_burst)
    in_bursts = collections.Counter(trace.faults[b[0]][3] for b in bursts)
    rows = []
    for kind in sorted(set(own) | set(in_bursts), key=lambda k: (-own[k], k)):
        share, shape, scale = slow[kind[0]]
        rows.append(f'      {{ "name": "{kind[0]}: {kind[1]}", "mode": "{kind[1]}", "weight": {own[kind]}, "burst_weight": {in_bursts[kind]}, '
                    f'"quick_share": {share:.2f}, "repair_shape": {shape:.2f}, "repair_scale_hours": {scale:.1f} }}')
    print(f"{len(trace.faults)} faults; {len(bursts)} bursts with {len(in_burst)} faults, {by_chance:.1f} pairs of them by chance")
    print(f"lemons raise the log-likelihood of nodes by {lemons_gain:.1f} (two parameters)")
    print(f"faults of 30 days: {counts}; families of faults explain a variance of {fano:.1f} times the mean")
    print(f"log-likelihood of repairs: Weibull {weibull:.0f}, lognormal {lognormal:.0f} in its place")
    return f"""// How the nodes of a fleet fail: fitted on 584 faults of 400 GPU servers over 349 days by fit_fleet.py, which says how.
// Predicted against observed, with the misses: docs/faults.md. Data: {SOURCE}
{{
  "schema": 1,
  "name": "Fleet like InfiniteHBD's",
  "generator": {{
    "kind": "fleet",
    "source": "{SOURCE}; fit_fleet.py",
    // Of a node that is no lemon, while it is up. Maximum likelihood, with lemons and refailures.
    "rate_per_node_day": {node['rate_per_node_day']:.5f},
    // A share of the nodes fails at a multiple of that rate. Against nodes that are all alike: log-likelihood +{lemons_gain:.1f}.
    "lemons": {{ "share": {node['share']:.3f}, "factor": {node['factor']:.2f} }},
    // After a repair the node fails again with this probability, after a lognormal time. same_class_share: counted within 7 days.
    "refailure": {{ "probability": {node['probability']:.3f}, "median_days": {node['median_days']:.2f}, "sigma": {node['sigma']:.2f}, "same_class_share": {node['same_class_share']:.2f} }},
    // A factor on rates, drawn anew every 30 days, with mean 1: what counts vary beyond bursts and refailures. By the variance of 11 logarithms.
    "seasons": {{ "days": {season['days']}, "sigma": {season['sigma']:.2f} }},
    // Several nodes within a short time: {len(bursts)} seen, {by_chance:.1f} of them by chance. Sizes fall with a power, their mean is the counted
    // one, and so are the shares.
    "bursts": {{ "per_1000_node_days": {burst['per_1000_node_days']:.4f}, "size_exponent": {burst['size_exponent']:.2f}, "max_nodes": {burst['max_nodes']}, "simultaneous_share": {burst['simultaneous_share']:.2f},
                "spread_hours": {burst['spread_hours']:.2f}, "shared_repair_share": {burst['shared_repair_share']:.2f}, "shared_refailure_share": {burst['shared_refailure_share']:.2f} }},
    // A reset rather than a repair: lognormal, for the quick_share of each class. The rest is Weibull. Expectation-maximisation.
    "quick_repair": {{ "median_hours": {math.exp(quick[0]):.3f}, "sigma": {quick[1]:.2f} }},
    // weight: faults counted outside bursts; burst_weight: bursts counted. Classes of a group share their repair time.
    "classes": [
{(','+chr(10)).join(rows)}
    ]
  }}
}}
"""


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--import", dest="raw", type=pathlib.Path)
    options = arguments.parse_args()
    trace = import_trace(options.raw) if options.raw else TRACE.read_text()
    wanted = {TRACE: trace, FLEET: fit(Trace(trace))}
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    if options.check:
        return "\n".join(f"{file.name} is not what the script makes" for file in stale) or None
    for file in stale:
        file.write_text(wanted[file])
        print(f"wrote {file.name}")
    return None


if __name__ == "__main__":
    sys.exit(main())
