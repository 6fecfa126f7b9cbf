#include "sim/step_simulator.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "models/base/check.h"
#include "models/base/units.h"
#include "sim/child_process.h"
#include "sim/conductor.h"
#include "sim/fold.h"
#include "sim/nic_faults.h"
#include "sim/platform.h"

namespace trainyard {

const char* to_string(StepPart part) {
  static constexpr const char* kNames[] = {"gemm",       "attention",  "memory_bound", "recompute",
                                           "host",       "optimizer",  "exposed_tp",   "exposed_cp",
                                           "exposed_ep", "exposed_pp", "exposed_dp",   "bubble"};
  static_assert(std::size(kNames) == kStepPartCount);
  return kNames[static_cast<int>(part)];
}

namespace {

/// Ops that all classes together go through.
std::int64_t ops_of(const StepProgram& program, const Fold& folded) {
  std::vector<std::int64_t> by_stage;
  for (const StageProgram& stage : program.stages) {
    std::int64_t ops = 0;
    for (const Item& item : stage.items) ops += item.block < 0 ? 1 : std::ssize(program.block(item).ops);
    by_stage.push_back(ops);
  }
  std::int64_t ops = 0;
  for (const RankClass& rank : folded.ranks) ops += by_stage[static_cast<std::size_t>(rank.stage)];
  return ops;
}

// Each op of a class takes about 30 bytes.
constexpr std::int64_t kMaxOps = 200'000'000;

/// In the calling process, which must not have used SimGrid before.
Result<StepResult> simulate_here(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost,
                                 StepOptions options, const std::vector<double>& contention) {
  const auto started = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  };
  const Platform platform(cluster, program.plan.ranks(), cost.nic_payload_rate(cluster.nic_bytes_per_s), options.moved,
                          options.spares_among);
  options.degradations = by_part(options.degradations, cluster, platform.places(), platform.nodes());
  const Fold folded = fold(program.plan, platform, options.degradations, options.unfold);
  if (const std::int64_t ops = ops_of(program, folded); ops > kMaxOps) {
    Problem problem;
    problem.rule = fmt::format("{} ranks have {} different timelines, {} ops in all; the limit is {}",
                               format_count(program.plan.ranks()), format_count(std::ssize(folded.ranks)),
                               format_count(ops), format_count(kMaxOps));
    problem.fix = options.unfold      ? "leave out --unfold: folded, it is the same step"
                  : platform.hashed() ? "hashed flows make ranks unlike: use fewer GPUs, or \"routing\": \"adaptive\""
                                      : "use fewer GPUs, or fewer degradations at once";
    problem.kind = ProblemKind::Infeasible;
    return problem;
  }
  const double fold_wall_s = seconds();
  Result<StepResult> result = conduct(program, cluster, cost, options, folded, contention);
  if (!result) return result;
  StepResult step = std::move(result).value();
  step.fold_wall_s = fold_wall_s;
  step.simulate_wall_s = seconds() - fold_wall_s;
  return step;
}

/// By class, how many times as long kernels take when `slowdown` of the time of collectives beside them is lost.
std::vector<double> contention_in(const StepResult& step, double slowdown) {
  constexpr Stream kStreams[] = {Stream::Tp, Stream::Cp, Stream::Ep, Stream::Dp};
  constexpr StepPart kExposed[] = {StepPart::ExposedTp, StepPart::ExposedCp, StepPart::ExposedEp, StepPart::ExposedDp};
  std::vector<double> out;
  for (const StepClass& its : step.classes) {
    double beside_s = its.busy_s[static_cast<std::size_t>(Stream::DpCopies)];  // its exposed time is in that of Dp
    for (std::size_t i = 0; i < std::size(kStreams); ++i)
      beside_s += its.busy_s[static_cast<std::size_t>(kStreams[i])] - its.part_s[static_cast<std::size_t>(kExposed[i])];
    const double kernels_s = its.busy_s[static_cast<std::size_t>(Stream::Compute)];
    const double share = kernels_s > 0 ? std::clamp(beside_s / kernels_s, 0.0, 1.0) : 0;
    out.push_back(1 + slowdown * share);
  }
  return out;
}

// Plain memory: the child is a fork of this very process.
template <class T>
void put(std::vector<std::uint8_t>& out, const T& value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof value);
  std::memcpy(out.data() + at, &value, sizeof value);
}
template <class T>
void put_list(std::vector<std::uint8_t>& out, const std::vector<T>& values) {
  put(out, values.size());
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
  out.insert(out.end(), bytes, bytes + values.size() * sizeof(T));
}
void put_text(std::vector<std::uint8_t>& out, const std::string& text) {
  put_list(out, std::vector<char>(text.begin(), text.end()));
}

class Reader {
 public:
  explicit Reader(const std::vector<std::uint8_t>& bytes) : bytes_(bytes) {}
  template <class T>
  void get(T& value) {
    if (has(sizeof value)) std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += fine_ ? sizeof value : 0;
  }
  template <class T>
  void get_list(std::vector<T>& values) {
    std::size_t size = 0;
    get(size);
    if (size > bytes_.size() || !has(size * sizeof(T))) {
      fine_ = false;
      return;
    }
    values.resize(size);
    if (size > 0) std::memcpy(values.data(), bytes_.data() + at_, size * sizeof(T));
    at_ += size * sizeof(T);
  }
  std::string text() {
    std::vector<char> chars;
    get_list(chars);
    return {chars.begin(), chars.end()};
  }
  /// All was there, and nothing else.
  [[nodiscard]] bool complete() const { return fine_ && at_ == bytes_.size(); }

 private:
  bool has(std::size_t size) { return fine_ = fine_ && bytes_.size() - at_ >= size; }

  const std::vector<std::uint8_t>& bytes_;
  std::size_t at_ = 0;
  bool fine_ = true;
};

// The numbers of a result that have a fixed size, visited alike in both directions.
template <class Visit, class Step>
void numbers(Step& step, Visit visit) {
  visit(step.time_s);
  visit(step.part_s);
  visit(step.contention);
  visit(step.link_classes);
  visit(step.channel_classes);
  visit(step.flows);
  visit(step.events);
  visit(step.ops);
  visit(step.fold_rounds);
  visit(step.fold_wall_s);
  visit(step.simulate_wall_s);
  visit(step.trace_hash);
}

// A child's answer: whether it is well, then the step or what is wrong.
std::vector<std::uint8_t> answer(const Result<StepResult>& result) {
  std::vector<std::uint8_t> out;
  if (result.ok()) {
    out = to_bytes(result.value());
  } else {
    put_text(out, result.problems().front().rule);
    put_text(out, result.problems().front().fix);
  }
  put(out, result.ok());
  return out;
}

Result<StepResult> result_from(std::vector<std::uint8_t> bytes) {
  TY_CHECK(!bytes.empty(), "a simulation process sends a whole result");
  const bool ok = bytes.back() != 0;
  bytes.pop_back();
  if (ok) {
    std::optional<StepResult> step = step_result_from(bytes);
    TY_CHECK(step.has_value(), "a simulation process sends a whole result");
    return std::move(*step);
  }
  Reader reader(bytes);
  Problem problem;
  problem.rule = reader.text();
  problem.fix = reader.text();
  problem.kind = ProblemKind::Infeasible;
  return problem;
}

}  // namespace

std::vector<std::uint8_t> to_bytes(const StepResult& step) {
  std::vector<std::uint8_t> out;
  numbers(step, [&](const auto& value) { put(out, value); });
  put_text(out, step.communicator_error);
  put_list(out, step.classes);
  put_list(out, step.links);
  put_list(out, step.slices);
  return out;
}

std::optional<StepResult> step_result_from(const std::vector<std::uint8_t>& bytes) {
  Reader reader(bytes);
  StepResult step;
  numbers(step, [&](auto& value) { reader.get(value); });
  step.communicator_error = reader.text();
  reader.get_list(step.classes);
  reader.get_list(step.links);
  reader.get_list(step.slices);
  if (!reader.complete()) return std::nullopt;
  return step;
}

namespace {

Result<StepResult> simulate_in_child(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost,
                                     const StepOptions& options, const std::vector<double>& contention) {
  Bytes bytes;
  ChildWork work;
  work.work = [&](std::size_t, const Ask&) {
    return answer(simulate_here(program, cluster, cost, options, contention));
  };
  work.on_result = [&](std::size_t, const Bytes& result) { bytes = result; };
  work.on_wait = options.on_wait;
  if (const Problems problems = in_children(work); !problems.empty()) return problems;
  return result_from(std::move(bytes));
}

}  // namespace

Result<StepResult> simulate_step(const StepProgram& program, const ClusterSpec& cluster, const CostModel& cost,
                                 const StepOptions& options) {
  const double slowdown = cost.stack().overlap_slowdown;
  if (slowdown == 0) return simulate_in_child(program, cluster, cost, options, {});
  StepOptions first = options;
  first.timeline = false;
  const Result<StepResult> alone = simulate_in_child(program, cluster, cost, first, {});
  if (!alone || !alone.value().communicator_error.empty()) return alone;
  const std::vector<double> contention = contention_in(alone.value(), slowdown);
  Result<StepResult> result = simulate_in_child(program, cluster, cost, options, contention);
  if (!result) return result;
  StepResult step = std::move(result).value();
  step.contention = 0;
  for (std::size_t c = 0; c < contention.size(); ++c)
    step.contention +=
        contention[c] * static_cast<double>(alone.value().classes[c].count) / static_cast<double>(program.plan.ranks());
  return step;
}

}  // namespace trainyard
