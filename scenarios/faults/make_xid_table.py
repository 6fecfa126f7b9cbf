#!/usr/bin/env python3
"""Makes models/faults/xid_table.h, NVIDIA's catalogue of XIDs as a table.

    python3 scenarios/faults/make_xid_table.py XID.json

XID.json has, under "xids", one object per XID with "xid", "mnemonic", "description", "immediate" and "investigatory": the
catalogue of docs.nvidia.com/deploy/xid-errors (analyzing-xid-catalog), as leptonai/gpud generates it into
components/accelerator/nvidia/xid/catalog_generated.go, of 2025-10-29. Standard library only.
"""
import json
import pathlib
import sys

TABLE = pathlib.Path(__file__).resolve().parents[2] / "models" / "faults" / "xid_table.h"

HEAD = """// Made by scenarios/faults/make_xid_table.py: NVIDIA's catalogue of XIDs, docs.nvidia.com/deploy/xid-errors, as of
// 2025-10-29 (read through leptonai/gpud's generated copy). Included by xid.cpp alone.
#pragma once

#include <array>

#include "models/faults/xid.h"

namespace trainyard::faults {

// clang-format off
inline constexpr std::array<XidRow, kXids> kXidTable{{
"""
TAIL = """}};
// clang-format on

}  // namespace trainyard::faults
"""


def main():
    rows = json.loads(pathlib.Path(sys.argv[1]).read_text())["xids"]
    assert [r["xid"] for r in rows] == list(range(1, len(rows) + 1)), "numbered from 1, none missing"
    quoted = lambda r, key: json.dumps((r.get(key) or "").strip())
    lines = [f"    {{{r['xid']}, {', '.join(quoted(r, k) for k in ('mnemonic', 'immediate', 'investigatory'))}}},\n" for r in rows]
    TABLE.write_text(HEAD + "".join(lines) + TAIL)


if __name__ == "__main__":
    main()
