#!/usr/bin/env python3
"""Makes runs.json, the rows that `trainyard validate` predicts, from a set of published rows.

    python3 scenarios/measured/compact.py --rows training_rows.json [--check]

Rows whose configuration is complete are kept, with what describes the job, what was measured, and where it was published. What
all rows of a source have in common is written once. Nothing is computed: no figure here is ours. `--check` writes nothing and fails
when the file would change. Standard library only.
"""
import argparse
import json
import pathlib
import sys

OUTPUT = pathlib.Path(__file__).resolve().parent / "runs.json"
ABOUT = ("Published training runs, as their publishers give them: facts with their sources, compiled by compact.py. "
         "models/published/published_set.h tells the format.")
KEYS = """id source source_table source_url source_date framework confidence model_name arch_family layers hidden heads kv_heads head_dim
ffn_hidden gated_mlp vocab experts experts_topk moe_ffn_hidden shared_experts dense_layers attention_note seq_len gpu_type gpu_mem_gb
num_gpus num_nodes interconnect tp pp vp cp ep dp zero_stage fsdp_shard_size sequence_parallel micro_batch global_batch_seqs
grad_accum precision recompute training_mode iteration_time_s tokens_per_s_per_gpu derived_iteration_time_s iteration_time_s_p10
iteration_time_s_p90 mfu_pct hfu_pct peak_mem_gb peak_mem_definition quality_flag notes""".split()


def compact(rows):
    by_source = {}
    for row in rows:
        if row["config_complete"]:
            by_source.setdefault(row["source"], []).append({key: row[key] for key in KEYS if row.get(key) is not None})
    groups = []
    for _, its in sorted(by_source.items()):
        common = {key: value for key, value in its[0].items() if key != "id" and all(row.get(key) == value for row in its)}
        groups.append({"common": common, "rows": [{k: v for k, v in row.items() if k not in common} for row in its]})
    return groups


def text_of(groups):
    out = [f'{{ "schema": 1,\n  "about": {json.dumps(ABOUT)},\n  "groups": [']
    for g, group in enumerate(groups):
        rows = ",\n".join("    " + json.dumps(row) for row in group["rows"])
        out.append(f'  {{ "common": {json.dumps(group["common"])},\n    "rows": [\n{rows} ] }}' + ("," if g + 1 < len(groups) else ""))
    return "\n".join(out) + "\n] }\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=pathlib.Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = text_of(compact(json.loads(arguments.rows.read_text())))
    if arguments.check:
        return 0 if OUTPUT.read_text() == text else sys.exit(f"{OUTPUT} would change")
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
