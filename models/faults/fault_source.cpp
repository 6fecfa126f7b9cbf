// What the sources share, and the one that merges causes with a generator.
#include "models/faults/fault_source.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "models/base/check.h"
#include "models/base/units.h"
#include "models/faults/fault_mode.h"

namespace trainyard::faults {

void draw_details(Fault& fault, std::int64_t gpus_per_node, RandomStream& draws) {
  const ModeRow& row = row_of(fault.mode);
  fault.device = static_cast<std::int64_t>(draws.below(static_cast<std::uint64_t>(gpus_per_node)));
  const double where = draws.uniform(), lasts = draws.normal();
  fault.factor = row.slowdown_least + where * (row.slowdown_most - row.slowdown_least);
  if (row.loss_most > 0) {
    fault.loss = row.loss_least * std::pow(row.loss_most / row.loss_least, where);
    fault.direction = lasts < 0 ? LinkDirection::Out : LinkDirection::In;
  }
  // Cut at a year, far from what int64 nanoseconds hold.
  constexpr double kYear_s = 365.0 * 86400;
  if (row.mend == Mend::Itself)
    fault.duration_ns = to_ns(std::min(kYear_s, row.lasts.median_s * std::exp(row.lasts.sigma * lasts)));
}

std::vector<std::string> cause_names(const FaultSpec& spec) {
  std::vector<std::string> names;
  for (const FaultCause& cause : spec.causes) names.push_back(cause.name);
  for (std::string& name : spec.generator.class_names()) names.push_back(std::move(name));
  return names;
}

namespace {

class MergedSource : public FaultSource {
 public:
  MergedSource(std::unique_ptr<FaultSource> causes, std::unique_ptr<FaultSource> generator, std::size_t offset)
      : causes_(std::move(causes)), generator_(std::move(generator)), offset_(offset) {}

  std::optional<std::int64_t> next_ns() override {
    const std::optional<std::int64_t> a = causes_->next_ns(), b = generator_->next_ns();
    if (!a || !b) return a ? a : b;
    return std::min(*a, *b);
  }

  std::optional<Fault> take() override {
    const std::optional<std::int64_t> a = causes_->next_ns(), b = generator_->next_ns();
    if (a && (!b || *a <= *b)) return causes_->take();
    std::optional<Fault> fault = generator_->take();
    if (fault) fault->cause += offset_;
    return fault;
  }

  void node_changed(const NodeChange& change) override {
    causes_->node_changed(change);
    generator_->node_changed(change);
  }

  std::uint64_t next_draw() override { return mix64(causes_->next_draw()) ^ generator_->next_draw(); }

 private:
  std::unique_ptr<FaultSource> causes_, generator_;
  std::size_t offset_;
};

}  // namespace

std::unique_ptr<FaultSource> make_fault_source(const FaultSpec& spec, const FleetShape& shape, std::uint64_t seed) {
  TY_CHECK(shape.job_nodes >= 1 && shape.held_nodes >= shape.job_nodes && shape.gpus_per_node >= 1, "a run has nodes");
  std::unique_ptr<FaultSource> causes = make_poisson_source(spec.causes, shape, seed);
  std::unique_ptr<FaultSource> generator;
  switch (spec.generator.kind) {
    case GeneratorKind::Poisson: return causes;
    case GeneratorKind::Fleet: generator = make_fleet_source(spec.generator.fleet, shape, seed); break;
    case GeneratorKind::Trace: generator = make_trace_source(spec.generator.trace, shape, seed); break;
  }
  return std::make_unique<MergedSource>(std::move(causes), std::move(generator), spec.causes.size());
}

}  // namespace trainyard::faults
