#include "store/run_writer.h"

#include <unistd.h>

#include <chrono>
#include <unordered_map>
#include <utility>
#include <vector>

#include "store/database.h"
#include "store/run_lock.h"
#include "store/store_file.h"

namespace trainyard::store {

namespace {

// Wall-clock time, for people who read a list of runs; no result depends on it.
std::int64_t unix_now_ns() {
  using std::chrono::nanoseconds;
  return std::chrono::duration_cast<nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

struct RunWriter::State {
  State(std::string the_file, RunLock the_lock, Database the_database, const WriterOptions& the_options);

  void enter(const NewRun& run);
  void end_orphans();
  void prepare();
  void commit();
  void end_run(const RunOutcome& outcome);
  std::int64_t label_id(const Slice& slice);
  /// Calls `insert`, which adds `rows` rows, inside the batch.
  template <class Insert>
  void add(std::size_t rows, Insert insert);

  // The lock outlives the connection: the run has a writer until its last transaction is over.
  std::string file;
  RunLock lock;
  Database database;
  WriterOptions options;
  pid_t owner = ::getpid();
  std::int64_t run_id = 0, streams = 0;
  std::int64_t batch_rows = 0;
  std::chrono::steady_clock::time_point batch_start;
  std::int64_t next_link = 0, events = 0, recoveries = 0, spare_counts = 0, bands = 0;
  std::unordered_map<std::string, std::int64_t> label_ids;  // "category\0label"; looked up, never walked
  std::unordered_map<std::int64_t, std::int64_t> next_seq;  // of each (class, stream)

  Statement insert_class, insert_range, insert_link, insert_label, find_label, insert_slice, insert_event,
      insert_recovery, insert_phase, insert_spare_count, insert_log, insert_band, insert_step;
};

RunWriter::State::State(std::string the_file, RunLock the_lock, Database the_database, const WriterOptions& the_options)
    : file(std::move(the_file)), lock(std::move(the_lock)), database(std::move(the_database)), options(the_options) {}

void RunWriter::State::enter(const NewRun& run) {
  database.execute("BEGIN IMMEDIATE");
  end_orphans();
  database
      .prepare(
          "INSERT INTO runs (name, kind, status, started_unix_ns, version, commit_id, seed, parameters, host) "
          "VALUES (?, ?, 'running', ?, ?, ?, ?, ?, ?)")
      .with(run.name, to_string(run.kind), unix_now_ns(), run.version, run.commit_id, std::to_string(run.seed),
            run.parameters_json, run.host_json)
      .run();
  if (database.failed()) return;
  run_id = database.last_insert_id();
  lock.hold(run_id);
  Statement insert_stream = database.prepare("INSERT INTO streams VALUES (?, ?, ?)");
  for (const std::string& name : run.streams) insert_stream.with(run_id, streams++, name).run();
  database.execute("COMMIT");
  lock.leave_entrance();
}

// Runs that say they are running, and whose writers are dead.
void RunWriter::State::end_orphans() {
  std::vector<std::int64_t> orphans;
  {
    Statement running = database.prepare("SELECT id FROM runs WHERE status = 'running'");
    while (running.next()) {
      if (!RunLock::held(file, running.integer(0))) orphans.push_back(running.integer(0));
    }
  }
  for (const std::int64_t id : orphans)
    database.prepare("UPDATE runs SET status = 'interrupted' WHERE id = ?").with(id).run();
}

void RunWriter::State::prepare() {
  insert_class = database.prepare("INSERT INTO rank_classes VALUES (?, ?, ?, ?, ?, ?)");
  insert_range = database.prepare("INSERT INTO rank_ranges VALUES (?, ?, ?, ?)");
  insert_link = database.prepare("INSERT INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  insert_label = database.prepare("INSERT INTO labels (label, category) VALUES (?, ?)");
  find_label = database.prepare("SELECT id FROM labels WHERE label = ? AND category = ?");
  insert_slice = database.prepare("INSERT INTO slices VALUES (?, ?, ?, ?, ?, ?, ?)");
  insert_event = database.prepare("INSERT INTO run_events VALUES (?, ?, ?, ?, ?, ?)");
  insert_recovery = database.prepare("INSERT INTO recoveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  insert_phase = database.prepare("INSERT INTO recovery_phases VALUES (?, ?, ?, ?, ?, ?, ?)");
  insert_spare_count = database.prepare("INSERT INTO spare_counts VALUES (?, ?, ?, ?)");
  insert_log = database.prepare("INSERT INTO controller_logs VALUES (?, ?, ?, ?)");
  insert_band = database.prepare("INSERT INTO goodput_bands VALUES (?, ?, ?, ?)");
  insert_step = database.prepare("INSERT OR REPLACE INTO training_steps VALUES (?, ?, ?, ?, ?, ?)");
}

template <class Insert>
void RunWriter::State::add(std::size_t rows, Insert insert) {
  const auto now = std::chrono::steady_clock::now();
  if (batch_rows == 0) {
    batch_start = now;
    database.execute("BEGIN IMMEDIATE");
  }
  insert();
  batch_rows += static_cast<std::int64_t>(rows);
  if (batch_rows >= options.batch_rows || now - batch_start >= std::chrono::duration<double>(options.batch_s)) commit();
}

void RunWriter::State::commit() {
  if (batch_rows > 0) database.execute("COMMIT");
  batch_rows = 0;
}

void RunWriter::State::end_run(const RunOutcome& outcome) {
  if (batch_rows == 0) database.execute("BEGIN IMMEDIATE");
  database
      .prepare(
          "UPDATE runs SET status = ?, ended_unix_ns = ?, report = nullif(?, ''), trace_hash = nullif(?, '') "
          "WHERE id = ?")
      .with(to_string(outcome.status), unix_now_ns(), outcome.report_json, outcome.trace_hash, run_id)
      .run();
  database.execute("COMMIT");
}

std::int64_t RunWriter::State::label_id(const Slice& slice) {
  const std::string key = slice.category + '\0' + slice.label;
  const auto known = label_ids.find(key);
  if (known != label_ids.end()) return known->second;
  find_label.with(slice.label, slice.category);
  std::int64_t id = 0;
  if (find_label.next()) {
    id = find_label.integer(0);
    find_label.reset();
  } else {
    insert_label.with(slice.label, slice.category).run();
    id = database.last_insert_id();
  }
  label_ids.emplace(key, id);
  return id;
}

Result<RunWriter> RunWriter::open(const std::string& file, const NewRun& run, const WriterOptions& options) {
  const std::string canonical = canonical_store_file(file);
  auto lock = RunLock::enter(canonical, options.lock_wait_s);
  if (!lock) return lock.problems();
  auto database = open_for_writing(canonical);
  if (!database) return database.problems();
  auto state = std::make_unique<State>(canonical, std::move(lock).value(), std::move(database).value(), options);
  state->enter(run);
  state->prepare();
  if (state->database.failed()) return state->database.problems();
  const std::int64_t run_id = state->run_id;
  return RunWriter(std::move(state), run_id);
}

RunWriter::RunWriter(std::unique_ptr<State> state, std::int64_t run_id) : state_(std::move(state)), run_id_(run_id) {}
RunWriter::RunWriter(RunWriter&& other) noexcept = default;

RunWriter::~RunWriter() {
  if (!state_) return;
  if (state_->owner == ::getpid()) {
    state_->end_run({RunStatus::Interrupted, "", ""});
    return;
  }
  // SQLite forbids a forked child to so much as close its parent's connection: keep it, untouched.
  static std::vector<State*> abandoned;
  abandoned.push_back(state_.release());
}

RunWriter::State& RunWriter::open_state() {
  TY_CHECK(state_ != nullptr, "nothing can be added to a run that has finished");
  TY_CHECK(state_->owner == ::getpid(), "only the process that opened a writer may use it");
  return *state_;
}

void RunWriter::add_rank_class(const RankClass& c) {
  State& s = open_state();
  s.add(1 + c.ranges.size(), [&] {
    s.insert_class.with(run_id_, c.class_id, c.name, c.stage, c.representative_rank, c.ranks).run();
    for (const RankRange& range : c.ranges)
      s.insert_range.with(run_id_, range.first_rank, range.last_rank, c.class_id).run();
  });
}

void RunWriter::add_link(const Link& link) {
  State& s = open_state();
  s.add(1, [&] {
    s.insert_link
        .with(run_id_, s.next_link++, link.tier, link.name, link.alike, link.capacity_bytes_per_s, link.bytes,
              link.busy)
        .run();
  });
}

void RunWriter::add_slice(const Slice& slice) {
  State& s = open_state();
  TY_CHECK(slice.stream >= 0 && slice.stream < s.streams, "a slice's stream must be one that the run declared");
  s.add(1, [&] {
    const std::int64_t seq = s.next_seq[slice.class_id * s.streams + slice.stream]++;
    s.insert_slice.with(run_id_, slice.class_id, slice.stream, seq, s.label_id(slice), slice.start_ns, slice.end_ns)
        .run();
  });
}

void RunWriter::add_event(const RunEvent& event) {
  State& s = open_state();
  s.add(1, [&] { s.insert_event.with(run_id_, s.events++, event.time_ns, event.kind, event.node, event.text).run(); });
}

void RunWriter::add_recovery(const Recovery& r) {
  State& s = open_state();
  s.add(1 + r.phases.size(), [&] {
    s.insert_recovery
        .with(run_id_, s.recoveries, r.start_ns, r.end_ns, r.cause, r.node, r.lost_work_ns, r.restored_step)
        .run();
    std::int64_t seq = 0;
    for (const RecoveryPhase& phase : r.phases)
      s.insert_phase.with(run_id_, s.recoveries, seq++, phase.phase, phase.attempt, phase.start_ns, phase.end_ns).run();
    ++s.recoveries;
  });
}

void RunWriter::add_spare_count(const SpareCount& count) {
  State& s = open_state();
  s.add(1, [&] { s.insert_spare_count.with(run_id_, s.spare_counts++, count.time_ns, count.free).run(); });
}

void RunWriter::add_controller_log(const recovery::ControllerLog& log) {
  State& s = open_state();
  s.add(1, [&] { s.insert_log.with(run_id_, log.config, log.events, log.lines).run(); });
}

void RunWriter::add_band(const GoodputBand& band) {
  State& s = open_state();
  s.add(1, [&] { s.insert_band.with(run_id_, s.bands++, band.band, band.duration_ns).run(); });
}

void RunWriter::add_training_step(const TrainingStep& step) {
  State& s = open_state();
  s.add(1,
        [&] { s.insert_step.with(run_id_, step.step, step.loss, step.grad_norm, step.start_ns, step.end_ns).run(); });
}

void RunWriter::commit() { open_state().commit(); }

Problems RunWriter::finish(const RunOutcome& outcome) {
  TY_CHECK(outcome.status != RunStatus::Running, "a run cannot finish as running");
  State& s = open_state();
  s.end_run(outcome);
  Problems problems = s.database.problems();
  const std::string file = s.file;
  state_.reset();
  if (problems.empty()) pages_are_in_order(file);
  return problems;
}

Problems RunWriter::problems() const { return state_ ? state_->database.problems() : Problems{}; }

}  // namespace trainyard::store
