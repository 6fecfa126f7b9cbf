// What a run leaves behind, as plain structs: one per table of store/schema.sql.
//
// Times named _ns count simulated nanoseconds from the start of the run; _unix_ns are the only
// wall-clock times, and no result depends on them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trainyard::store {

/// A Step run simulates one training step; a Run spans days with failures; an Exec run trained.
enum class RunKind : std::uint8_t { Step, Run, Exec };
/// Running: its writer is alive. Interrupted: it stopped before its end, and what it had committed is
/// here. Failed: it ended by an error of its own.
enum class RunStatus : std::uint8_t { Running, Finished, Interrupted, Failed };

const char* to_string(RunKind kind);
const char* to_string(RunStatus status);
std::optional<RunKind> run_kind_from(std::string_view text);
std::optional<RunStatus> run_status_from(std::string_view text);

/// What is known of a run before it starts.
struct NewRun {
  std::string name;  // of the scenario
  RunKind kind = RunKind::Run;
  std::string version;    // "0.1.0"
  std::string commit_id;  // "a1b2c3d4e5f6", with "-dirty" for an edited tree
  std::uint64_t seed = 0;
  std::string parameters_json = "{}";
  std::string host_json = "{}";
  /// Names of the streams, in the order in which they are shown; Slice::stream is an index into it.
  std::vector<std::string> streams;
};

/// One row of `runs`.
struct Run {
  std::int64_t id = 0;
  std::string name;
  RunKind kind = RunKind::Run;
  RunStatus status = RunStatus::Running;
  std::int64_t started_unix_ns = 0;
  std::optional<std::int64_t> ended_unix_ns;  // unset while running, and after a kill
  std::string version, commit_id;
  std::uint64_t seed = 0;
  std::string parameters_json, host_json;
  std::string report_json;  // empty before the end
  std::string trace_hash;   // 16 hexadecimal digits; empty before the end
};

struct RankRange {
  std::int64_t first_rank = 0, last_rank = 0;  // inclusive
};

/// Ranks whose timelines are identical; the representative's stands for all of them.
struct RankClass {
  std::int64_t class_id = 0;
  std::string name;  // "stage 3"
  std::int64_t stage = 0;
  std::int64_t representative_rank = 0;
  std::int64_t ranks = 0;
  std::vector<RankRange> ranges;  // which ranks those are; may be left empty
};

/// Links of a step that carried alike.
struct Link {
  std::string tier;  // "nic", or what the cluster calls it
  std::string name;  // of one of them: "NIC 3 of node 12, out"
  std::int64_t alike = 0;
  double capacity_bytes_per_s = 0;  // of one of them, healthy
  double bytes = 0;                 // that one of them carried
  double busy = 0;                  // share of the step
};

struct Slice {
  std::int64_t class_id = 0;
  std::int64_t stream = 0;  // index into NewRun::streams
  std::string label;        // "layer3.attn.qkv"
  std::string category;     // the op's kind: "Matmul", "AllReduce", "SendRecv"
  std::int64_t start_ns = 0, end_ns = 0;
};

struct RunEvent {
  std::int64_t time_ns = 0;
  std::string kind;  // "fault", "eject", "checkpoint"
  std::optional<std::int64_t> node;
  std::string text;
};

struct RecoveryPhase {
  std::string phase;  // "detect", "decide", ...: the phase ledger's names
  std::int64_t start_ns = 0, end_ns = 0;
  std::int64_t attempt = 1;  // a failure during a recovery begins the next attempt
};

struct Recovery {
  std::int64_t start_ns = 0;
  std::optional<std::int64_t> end_ns;  // unset: training had not resumed when the run ended
  std::string cause;
  std::optional<std::int64_t> node;
  std::int64_t lost_work_ns = 0;  // progress recomputed afterwards; lies outside start..end
  std::vector<RecoveryPhase> phases;
  std::optional<std::int64_t> restored_step;  // training went on from there; unset in stores of older versions
};

/// From `time_ns` on so many spares could be promoted at once.
struct SpareCount {
  std::int64_t time_ns = 0;
  std::int64_t free = 0;
};

/// A share of the run's wall time; a run's bands sum to it.
struct GoodputBand {
  std::string band;  // "productive", "checkpoint_stall", "lost_work", ...
  std::int64_t duration_ns = 0;
};

/// One optimizer step of an Exec run. Losses may be infinite or not numbers.
struct TrainingStep {
  std::int64_t step = 0;  // counted from 0
  double loss = 0;        // nats per token
  double grad_norm = 0;
  std::int64_t start_ns = 0, end_ns = 0;
};

/// How a run ended.
struct RunOutcome {
  RunStatus status = RunStatus::Finished;
  std::string report_json;  // empty: none
  std::string trace_hash;   // empty: none
};

}  // namespace trainyard::store
