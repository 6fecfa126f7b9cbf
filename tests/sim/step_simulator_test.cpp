// The step simulator: folding and merging change nothing, and simple cases come out as arithmetic says.
#include <catch2/catch.hpp>

#include <cmath>
#include <map>
#include <set>

#include <fmt/format.h>

#include "models/base/random.h"
#include "models/spec/node_places.h"
#include "sim/fold.h"
#include "sim/nic_faults.h"
#include "sim/platform.h"
#include "sim/step_simulator.h"
#include "tests/program/tiny_models.h"
#include "tests/sanitized.h"
#include "tests/sim/step_inputs.h"

using namespace trainyard;
using trainyard::testing::h100;

namespace {

// Small nodes behind leaves and rows: everything that can be shared is, and nothing need fill a node.
ClusterSpec small_cluster(RandomStream& random) {
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + random.below(from.size()));
  };
  ClusterSpec cluster;
  cluster.name = "small";
  cluster.nodes = 64;
  cluster.gpus_per_node = pick({2, 4, 4, 8});
  cluster.nics_per_node = random.below(3) == 0 ? cluster.gpus_per_node / 2 : cluster.gpus_per_node;
  cluster.nic_bytes_per_s = random.below(4) == 0 ? 1e9 : 50e9;
  cluster.rail_optimized = random.below(2) == 0;
  const std::int64_t leaf = pick({1, 2, 3});
  if (random.below(4) > 0) {
    cluster.tiers = {{"leaf", leaf, random.below(2) == 0 ? 1.0 : 4.0},
                     {"row", 2 * leaf, random.below(2) == 0 ? 1.0 : 3.0}};
  }
  return cluster;
}

// Four GPUs a node, without oversubscription.
ClusterSpec node_of_four() {
  ClusterSpec cluster;
  cluster.name = "four";
  cluster.nodes = 32;
  cluster.gpus_per_node = cluster.nics_per_node = 4;
  cluster.nic_bytes_per_s = 50e9;
  cluster.tiers = {{"leaf", 2, 1.0}, {"row", 4, 1.0}};
  return cluster;
}

ParallelPlan small_plan(const ModelSpec& model, RandomStream& random) {
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + random.below(from.size()));
  };
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.tp = pick({1, 2});
  plan.cp = pick({1, 2});
  plan.pp = pick({1, 2, 3, 4});
  plan.dp = pick({2, 3, 4});
  plan.ep = model.moe && plan.dp != 3 ? std::min(pick({1, 2, 4}), plan.cp * plan.dp) : 1;
  plan.order = random.below(2) == 0 ? "tp-cp-ep-dp-pp" : "tp-cp-ep-pp-dp";
  plan.sequence_parallel = plan.tp > 1 && random.below(2) == 0;
  plan.zero_stage = pick({0, 1, 2});
  plan.virtual_stages = plan.pp > 1 ? pick({1, 2}) : 1;
  plan.schedule = plan.virtual_stages > 1 ? PipelineSchedule::Interleaved : PipelineSchedule::OneFOneB;
  plan.global_batch = plan.dp * plan.pp * pick({1, 2});
  plan.overlap.grad_reduce = random.below(2) == 0;
  plan.overlap.param_gather = random.below(2) == 0;
  plan.bucket_bytes = pick({1, 4096, 1 << 20});
  return plan;
}

// Hybrid sharding where a drawn size of blocks allows it.
void shard_in_blocks(const ModelSpec& model, ParallelPlan& plan, RandomStream& random) {
  const std::int64_t stage = 1 + static_cast<std::int64_t>(random.below(3)),
                     size = 2 + static_cast<std::int64_t>(random.below(3));
  ParallelPlan hybrid = plan;
  hybrid.zero_stage = stage;
  hybrid.zero_shard_size = size;
  if (random.below(2) == 0 && validate(hybrid, model, nullptr).empty()) plan = hybrid;
  plan.pipeline_scatter_gather = plan.tp > 1 && plan.pp > 1 && !plan.sequence_parallel && random.below(2) == 0;
  if (model.sliding_window == 0 && random.below(2) == 0) plan.cp_comm_type = CpCommType::P2p;
}

std::vector<InjectedFault> some_degradations(const ClusterSpec& cluster, const ParallelPlan& plan,
                                             RandomStream& random) {
  std::vector<InjectedFault> out;
  const std::int64_t nodes = (plan.ranks() + cluster.gpus_per_node - 1) / cluster.gpus_per_node;
  for (std::uint64_t i = random.below(3); i > 0; --i) {
    InjectedFault fault;
    fault.kind = static_cast<InjectedKind>(random.below(3));
    fault.node = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(nodes)));
    fault.device = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(cluster.gpus_per_node)));
    fault.factor = 1.0 + 3 * random.uniform();
    fault.at_s = random.below(2) == 0 ? 0 : 2e-4 * random.uniform();
    if (fault.kind == InjectedKind::LinkDown || random.below(2) == 0) fault.duration_s = 1e-3 * random.uniform();
    out.push_back(fault);
  }
  return out;
}

// Loss, slowness one way, a leaf that flaps; and a fabric of two ports a NIC, or one that cuts rates.
void break_fabric(ClusterSpec& cluster, const ParallelPlan& plan, RandomStream& random,
                  std::vector<InjectedFault>& degradations) {
  cluster.dual_tor = random.below(3) == 0;
  cluster.rdma.adaptive_retransmission = random.below(2) == 0;
  if (random.below(3) == 0) cluster.rdma.congestion_control = CongestionControl::Dcqcn;
  const std::int64_t nodes = (plan.ranks() + cluster.gpus_per_node - 1) / cluster.gpus_per_node;
  for (std::uint64_t i = random.below(3); i > 0; --i) {
    InjectedFault fault;
    const std::uint64_t what = random.below(3);
    fault.kind = what == 2 ? InjectedKind::LinkDown : InjectedKind::NicSlow;
    fault.node = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(nodes)));
    fault.device = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(cluster.gpus_per_node)));
    fault.at_s = random.below(2) == 0 ? 0 : 2e-4 * random.uniform();
    if (what == 0) {
      fault.mode = FaultMode::GrayLoss;
      fault.loss = 1e-4 * random.uniform();
    } else if (what == 1) {
      fault.factor = 2;
    } else {
      fault.mode = FaultMode::LeafFlap;
    }
    if (what < 2) fault.direction = static_cast<LinkDirection>(random.below(3));
    if (what == 2 || random.below(2) == 0) fault.duration_s = 1e-3 * random.uniform();
    degradations.push_back(fault);
    if (what < 2 && random.below(2) == 0) {  // others just like it
      fault.node = (fault.node + 1) % nodes;
      degradations.push_back(fault);
    }
  }
}

/// Spares after the job's nodes or among them, some of which hold ranks.
void place_some_nodes(const ClusterSpec& cluster, const ParallelPlan& plan, RandomStream& random,
                      StepOptions& options) {
  const std::int64_t nodes = (plan.ranks() + cluster.gpus_per_node - 1) / cluster.gpus_per_node;
  const auto spares = static_cast<std::int64_t>(random.below(4));
  if (random.below(2) == 0) options.spares_among = spares;
  const std::vector<std::int64_t> places =
      places_with_spares_per_leaf(nodes, options.spares_among, nodes_per_leaf(cluster));
  for (std::int64_t spare = nodes; spare < nodes + spares; ++spare)
    if (random.below(2) == 0)
      options.moved.push_back(
          {static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(nodes))), place_of(places, spare)});
}

StepResult simulated(const StepProgram& program, const ClusterSpec& cluster, const StepOptions& options) {
  const Result<StepResult> result = simulate_step(program, cluster, h100(), options);
  if (!result) FAIL(to_string(result.problems().front()));
  return result.value();
}

// A fabric that hashes, in every other case.
void hash_flows(ClusterSpec& cluster, RandomStream& random) {
  if (random.below(2) == 0) return;
  cluster.routing = Routing::Ecmp;
  cluster.flows_per_channel = std::int64_t{1} << random.below(3);
  cluster.ecmp_seed = static_cast<std::int64_t>(random.below(1000));
  for (FabricTier& tier : cluster.tiers) tier.uplinks = static_cast<std::int64_t>(random.below(4));
}

// What crossed the links of each tier, NICs out, NICs in; bytes of all of them. No link moves more than it can.
std::map<int, double> carried_by_tier(const StepProgram& program, const ClusterSpec& cluster,
                                      const StepOptions& options, const StepResult& result) {
  const Platform platform(cluster, program.plan.ranks(), h100().nic_payload_rate(cluster.nic_bytes_per_s),
                          options.moved, options.spares_among);
  std::map<int, double> bytes;
  for (const StepLink& link : result.links) {
    INFO(platform.name_of(link.representative));
    if (result.communicator_error.empty()) CHECK(link.bytes <= link.capacity_bytes_per_s * result.time_s * (1 + 1e-6));
    const int tier = platform.tier_of(link.representative);
    bytes[tier >= 0 ? tier : -1 - link.representative % 2] += link.bytes * static_cast<double>(link.count);
  }
  return bytes;
}

// When each rank ends, and its busy time, by rank.
std::vector<std::pair<double, double>> by_rank(const StepProgram& program, const ClusterSpec& cluster,
                                               const StepOptions& options, const StepResult& result) {
  const Platform platform(cluster, program.plan.ranks(), h100().nic_payload_rate(cluster.nic_bytes_per_s),
                          options.moved, options.spares_among);
  const Fold folded = fold(program.plan, platform,
                           by_part(options.degradations, cluster, platform.places(), platform.nodes()), options.unfold);
  std::vector<std::pair<double, double>> out;
  for (const std::int32_t c : folded.rank_class_of) {
    const StepClass& its = result.classes[static_cast<std::size_t>(c)];
    out.emplace_back(its.end_s, its.busy_s[0]);
  }
  return out;
}

enum class Variant { Usual, InStep, BrokenFabric };

// Of random clusters, plans and faults. InStep: stages of a pipeline exchange in step. BrokenFabric: the faults are of
// the fabric.
void compare_foldings(std::uint64_t seed, int cases, Variant variant) {
  RandomStream random(seed, "fold"), placing(seed, "places"), sharding(seed, "shards"), routing(seed, "routing"),
      breaking(seed, "fabric");
  std::size_t folded_classes = 0, ranks = 0;
  for (int i = 0; i < cases; ++i) {
    ModelSpec model = tiny_model(static_cast<ModelFamily>(random.below(4)));
    model.num_hidden_layers = 8;
    ClusterSpec cluster = small_cluster(random);
    hash_flows(cluster, routing);
    ParallelPlan plan = small_plan(model, random);
    shard_in_blocks(model, plan, sharding);
    plan.overlap.p2p = variant != Variant::InStep;
    const StepProgram program = lower(model, plan);
    StepOptions options;
    options.degradations = some_degradations(cluster, plan, random);
    if (variant == Variant::BrokenFabric) {
      options.degradations.clear();
      break_fabric(cluster, plan, breaking, options.degradations);
    }
    place_some_nodes(cluster, plan, placing, options);
    for (const auto& f : options.degradations)
      UNSCOPED_INFO("fault " << int(f.kind) << " at " << f.at_s << " for " << f.duration_s.value_or(-1) << " node "
                             << f.node << " dev " << f.device << " x" << f.factor);
    INFO("case " << i << " " << model.name << " tp" << plan.tp << " cp" << plan.cp << " ep" << plan.ep << " pp"
                 << plan.pp << " dp" << plan.dp << " vp" << plan.virtual_stages << " zero" << plan.zero_stage
                 << " over " << plan.zero_shard_size << " degradations " << options.degradations.size());
    const StepResult folded = simulated(program, cluster, options);
    StepOptions unmerged = options;
    unmerged.merge = false;
    const StepResult stepwise = simulated(program, cluster, unmerged);
    StepOptions unfolded = options;
    unfolded.unfold = true;
    const StepResult whole = simulated(program, cluster, unfolded);
    REQUIRE(whole.classes.size() == static_cast<std::size_t>(plan.ranks()));
    folded_classes += folded.classes.size();
    ranks += whole.classes.size();

    const double tolerance = 1e-9 * whole.time_s;
    CHECK(std::fabs(folded.time_s - whole.time_s) <= tolerance);
    INFO("relative " << (stepwise.time_s - folded.time_s) / whole.time_s << " folded-whole "
                     << (folded.time_s - whole.time_s) / whole.time_s << " step " << whole.time_s);
    CHECK(std::fabs(stepwise.time_s - folded.time_s) <= tolerance);
    for (int part = 0; part < kStepPartCount; ++part) {
      INFO(to_string(static_cast<StepPart>(part)));
      const auto p = static_cast<std::size_t>(part);
      CHECK(folded.part_s[p] == Approx(whole.part_s[p]).epsilon(1e-7).margin(1e-7 * whole.time_s));
      CHECK(folded.part_s[p] == Approx(stepwise.part_s[p]).epsilon(1e-7).margin(1e-7 * whole.time_s));
    }
    const auto a = by_rank(program, cluster, options, folded), b = by_rank(program, cluster, unfolded, whole);
    for (std::size_t r = 0; r < a.size(); ++r) {
      REQUIRE(std::fabs(a[r].first - b[r].first) <= tolerance);
      INFO("rank " << r << " busy " << a[r].second << " and " << a[r].second - b[r].second << " ends " << a[r].first);
      CHECK(std::fabs(a[r].second - b[r].second) <= tolerance);
    }
    auto carried = carried_by_tier(program, cluster, options, folded);
    const auto by_each = carried_by_tier(program, cluster, unfolded, whole);
    REQUIRE(carried.size() == by_each.size());
    for (const auto& [tier, bytes] : by_each) CHECK(carried[tier] == Approx(bytes).epsilon(1e-9));
    CHECK(carried[-1] == Approx(carried[-2]).epsilon(1e-9));  // what is sent is received
    double parts = 0;
    for (const double part : folded.part_s) parts += part;
    REQUIRE(parts == Approx(folded.time_s).epsilon(1e-9));
  }
  INFO(folded_classes << " classes of " << ranks << " ranks");
  CHECK(folded_classes < 3 * ranks / 4);  // or there was nothing to fold
}

}  // namespace

TEST_CASE("folding and merging change nothing", "[sim]") {
  compare_foldings(17, testing::kSanitized ? 60 : 200, Variant::Usual);
}

TEST_CASE("folding and merging change nothing where stages exchange in step", "[sim]") {
  compare_foldings(18, testing::kSanitized ? 20 : 60, Variant::InStep);
}

TEST_CASE("folding and merging change nothing where the fabric is broken", "[sim]") {
  compare_foldings(19, testing::kSanitized ? 20 : 60, Variant::BrokenFabric);
}

TEST_CASE("folding and merging change nothing in a thousand cases", "[.slow]") {
  compare_foldings(20, 400, Variant::Usual);
  compare_foldings(21, 200, Variant::InStep);
  compare_foldings(22, 400, Variant::BrokenFabric);
}

// One more fault can make a step faster only by what sharing does: who is slowed leaves others more of a link. So on
// one switch that never fills up it must not. Prints each case: `test_sim_step "another fault*" -s`, or docs/fabric.md.
TEST_CASE("another fault makes a step faster only where switches are shared", "[.slow]") {
  constexpr double kFaster = 1e-3;
  RandomStream random(23, "anomalies"), breaking(23, "fabric"), routing(23, "routing");
  int faster = 0;
  for (int i = 0; i < 1000; ++i) {
    ModelSpec model = tiny_model(static_cast<ModelFamily>(random.below(4)));
    model.num_hidden_layers = 8;
    ClusterSpec cluster = small_cluster(random);
    hash_flows(cluster, routing);
    const ParallelPlan plan = small_plan(model, random);
    const StepProgram program = lower(model, plan);
    StepOptions options, with_one_more;
    options.degradations = with_one_more.degradations = some_degradations(cluster, plan, random);
    std::vector<InjectedFault> more;
    while (more.empty()) break_fabric(cluster, plan, breaking, more);
    with_one_more.degradations.push_back(more.front());
    const auto gain = [&](const ClusterSpec& on) {
      return 1 - simulated(program, on, with_one_more).time_s / simulated(program, on, options).time_s;
    };
    const double its = gain(cluster);
    if (its <= kFaster) continue;
    ++faster;
    ClusterSpec one_switch = cluster;
    one_switch.tiers.clear();
    const InjectedFault& fault = more.front();
    const std::string line =
        fmt::format("case {}: {}, tp {} cp {} ep {} pp {} dp {}; {} {} of node {}, {}: {:.2f}% faster", i, model.name,
                    plan.tp, plan.cp, plan.ep, plan.pp, plan.dp,
                    fault.loss > 0 ? "loss at"
                    : fault.mode   ? "flap of the leaf of"
                                   : "slow",
                    fault.mode && fault.loss == 0 ? "NICs" : fmt::format("NIC of GPU {}", fault.device), fault.node,
                    to_string(fault.direction), 100 * its);
    fmt::print("{}\n", line);
    INFO(line);
    CHECK(gain(one_switch) <= kFaster);
  }
  fmt::print("{} of 1,000\n", faster);
  CHECK(faster < 10);
}

TEST_CASE("the same step twice has the same trace, another has not", "[sim]") {
  RandomStream random(3, "trace");
  const ClusterSpec cluster = node_of_four();
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.pp = plan.dp = 2;
  plan.global_batch = 8;
  const StepProgram program = lower(tiny_model(ModelFamily::Llama), plan);
  const StepResult first = simulated(program, cluster, {});
  CHECK(simulated(program, cluster, {}).trace_hash == first.trace_hash);
  StepOptions slow;
  slow.degradations = {{InjectedKind::GpuSlow, 0, std::nullopt, 0, 1, 2}};
  CHECK(simulated(program, cluster, slow).trace_hash != first.trace_hash);
}

TEST_CASE("shards over all ranks take the same steps whether a plan says so or not", "[sim]") {
  const ClusterSpec cluster = node_of_four();
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.dp = 8;
  plan.global_batch = 8;
  plan.zero_stage = 3;
  const auto hash_over = [&](std::int64_t shard_size) {
    plan.zero_shard_size = shard_size;
    return simulated(lower(tiny_model(ModelFamily::Llama), plan), cluster, {}).trace_hash;
  };
  const std::uint64_t all = hash_over(0);
  CHECK(hash_over(8) == all);
  CHECK(hash_over(4) != all);
}

TEST_CASE("of hybrid sharding the fabric sees the sums over copies alone", "[sim]") {
  // A NIC so slow that only its bytes matter. Copies of four ranks fill a node: gathers and reduce-scatters stay there,
  // and a ring over the copies carries each shard 2*(r-1)/r times.
  ClusterSpec cluster = node_of_four();
  cluster.nic_bytes_per_s = 1e5;
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.dp = 32;
  plan.zero_stage = GENERATE(1, 2, 3);
  plan.zero_shard_size = 4;
  plan.global_batch = 64;
  const StepProgram program = lower(tiny_model(ModelFamily::Llama), plan);
  double shard_bytes = 0;
  for (const Bucket& bucket : program.stages[0].chunks[0].buckets)
    shard_bytes += 4.0 * static_cast<double>(bucket.shard_elements);  // gradients in f32
  const double syncs = plan.effective_grad_sync() == GradSync::EveryMicroBatch ? 2 : 1, copies = 8;
  const double sent = syncs * 2 * (copies - 1) / copies * shard_bytes;
  CHECK(simulated(program, cluster, {}).time_s ==
        Approx(sent / h100().nic_payload_rate(cluster.nic_bytes_per_s)).epsilon(0.01));
}

TEST_CASE("a stage boundary that ranks of tp send in blocks leaves the node once", "[sim]") {
  // A NIC so slow that only its bytes matter.
  ClusterSpec cluster = node_of_four();
  cluster.nic_bytes_per_s = 1e3;
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.tp = 4;
  plan.pp = 2;
  plan.global_batch = 4;
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  const double whole_s = simulated(lower(model, plan), cluster, {}).time_s;
  plan.pipeline_scatter_gather = true;
  CHECK(simulated(lower(model, plan), cluster, {}).time_s == Approx(whole_s / 4).epsilon(0.02));
}

TEST_CASE("flows that are hashed collide, less so the more there are", "[sim]") {
  // Two stages below leaf switches of their own, 32 nodes each: every NIC sends to one of the other leaf, over 32
  // spines.
  ClusterSpec cluster = node_of_four();
  cluster.nodes = 64;
  cluster.gpus_per_node = cluster.nics_per_node = 1;
  cluster.nic_bytes_per_s = 1e4;  // so slow that only its bytes matter
  cluster.tiers = {{"leaf", 32, 1.0}};
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.pp = 2;
  plan.dp = 32;
  plan.zero_stage = 0;
  plan.global_batch = 32;
  const StepProgram program = lower(tiny_model(ModelFamily::Llama), plan);
  const double smooth_s = simulated(program, cluster, {}).time_s;
  cluster.routing = Routing::Ecmp;
  const auto mean_share = [&](std::int64_t flows) {
    double sum = 0;
    cluster.flows_per_channel = flows;
    for (cluster.ecmp_seed = 0; cluster.ecmp_seed < 10; ++cluster.ecmp_seed)
      sum += smooth_s / simulated(program, cluster, {}).time_s / 10;
    return sum;
  };
  const double of_one = mean_share(1), of_four = mean_share(4), of_sixteen = mean_share(16);
  INFO(of_one << " " << of_four << " " << of_sixteen);
  CHECK(of_one < of_four);
  CHECK(of_four < of_sixteen);
  CHECK(of_sixteen < 1);
}

TEST_CASE("two flows on one uplink take twice as long", "[sim]") {
  // As above, four nodes a leaf: forward all send at once, and the fullest link holds up the step.
  ClusterSpec cluster = node_of_four();
  cluster.nodes = 8;
  cluster.gpus_per_node = cluster.nics_per_node = 1;
  cluster.nic_bytes_per_s = 1e4;
  cluster.tiers = {{"leaf", 4, 1.0}};
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.pp = 2;
  plan.dp = 4;
  plan.global_batch = 4;
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  const StepProgram program = lower(model, plan);
  const double smooth_s = simulated(program, cluster, {}).time_s,
               rate = h100().nic_payload_rate(cluster.nic_bytes_per_s),
               send_s = static_cast<double>(2 * plan.sequence_length * model.hidden_size) / rate;
  cluster.routing = Routing::Ecmp;
  std::set<int> seen;
  for (cluster.ecmp_seed = 0; cluster.ecmp_seed < 12; ++cluster.ecmp_seed) {
    const Platform platform(cluster, plan.ranks(), rate);
    std::map<LinkId, int> load;
    int fullest = 0;
    for (std::int64_t rank = 0; rank < 4; ++rank) {
      std::vector<LinkId> links;
      platform.append_tier_links(rank, rank + 4, links);
      for (const LinkId link : links) fullest = std::max(fullest, ++load[link]);
    }
    seen.insert(fullest);
    const double time_s = simulated(program, cluster, {}).time_s;
    INFO("seed " << cluster.ecmp_seed << ": " << fullest << " on one link, " << (time_s - smooth_s) / send_s);
    CHECK(time_s > smooth_s + (fullest - 1) * send_s * 0.999);
    CHECK(time_s < smooth_s + (fullest - 1 + 3) * send_s * 1.001);  // and backward, at most all four on one
  }
  CHECK(seen.count(2) == 1);  // or nothing was shown of links that two share
}

TEST_CASE("of a ring of keys only what leaves a node crosses its NICs", "[sim]") {
  // NICs so slow that only their bytes matter.
  ClusterSpec cluster = node_of_four();
  cluster.nic_bytes_per_s = 1e3;
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.cp = 8;
  plan.cp_comm_type = CpCommType::P2p;
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  const auto step_s = [&](std::int64_t micro_batches) {
    plan.global_batch = micro_batches;
    return simulated(lower(model, plan), cluster, {}).time_s;
  };
  // One rank of four hands its block on to another node: forward all the way round but one hop, backward as well, and
  // gradients all the way. Gradients of parameters are summed once, however many micro-batches there are.
  const auto block = static_cast<double>(2 * 2 * plan.sequence_length / plan.cp * model.kv_size());
  const double sent = static_cast<double>(model.num_hidden_layers) * (7 + 7 + 8) * block;
  CHECK(step_s(3) - step_s(2) == Approx(sent / h100().nic_payload_rate(cluster.nic_bytes_per_s)).epsilon(0.01));
}

TEST_CASE("sends of an interleaved pipeline hide behind compute, where they may", "[sim]") {
  ClusterSpec cluster = node_of_four();
  cluster.gpus_per_node = cluster.nics_per_node = 1;
  cluster.nic_bytes_per_s = 1e9;
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.pp = plan.virtual_stages = 2;
  plan.schedule = PipelineSchedule::Interleaved;
  plan.global_batch = 8;
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  const double beside_s = simulated(lower(model, plan), cluster, {}).time_s;
  plan.overlap.p2p = false;
  CHECK(simulated(lower(model, plan), cluster, {}).time_s > 1.01 * beside_s);
}

TEST_CASE("tensor-parallel sums hide behind weight gradients, where they may", "[sim]") {
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.tp = 4;
  plan.sequence_parallel = GENERATE(false, true);
  const ModelSpec model = tiny_model(ModelFamily::Llama);
  const double beside_s = simulated(lower(model, plan), node_of_four(), {}).time_s;
  plan.overlap.tensor_parallel = false;
  CHECK(simulated(lower(model, plan), node_of_four(), {}).time_s > 1.01 * beside_s);
}

TEST_CASE("one slow GPU slows everyone, by what it computes", "[sim]") {
  RandomStream random(3, "slow");
  ClusterSpec cluster = node_of_four();
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.dp = 8;
  plan.global_batch = 8;
  const StepProgram program = lower(tiny_model(ModelFamily::Llama), plan);
  const StepResult healthy = simulated(program, cluster, {});
  StepOptions options;
  options.degradations = {{InjectedKind::GpuSlow, 0, std::nullopt, 1, 2, 3}};
  const StepResult sick = simulated(program, cluster, options);
  // The slow rank's own kernels take three times as long, and everybody waits for them at the end.
  const double compute = healthy.classes[0].busy_s[0];
  CHECK(sick.time_s == Approx(healthy.time_s + 2 * compute).epsilon(0.02));
  CHECK(sick.classes.size() > healthy.classes.size());
}

TEST_CASE("rings keep to their rails", "[sim]") {
  // Four data-parallel ranks of each tensor rank on a node, four nodes under a leaf that lets a quarter through.
  // Whether the leaf is one switch or eight rails, each NIC gets the same share of it.
  ClusterSpec cluster;
  cluster.name = "rails";
  cluster.hardware = "h100-sxm";
  cluster.nodes = 16;
  cluster.gpus_per_node = cluster.nics_per_node = 8;
  cluster.nic_bytes_per_s = 50e9;
  cluster.tiers = {{"leaf", 4, 4.0}};
  ModelSpec model = tiny_model(ModelFamily::Llama);
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.tp = 2;
  plan.dp = 64;
  plan.global_batch = 64;
  const StepProgram program = lower(model, plan);
  cluster.rail_optimized = false;
  const double pooled = simulated(program, cluster, {}).time_s;
  cluster.rail_optimized = true;
  CHECK(simulated(program, cluster, {}).time_s == Approx(pooled).epsilon(1e-9));
}

TEST_CASE("a link that is down stalls the step, and kills it when queue pairs give up", "[sim]") {
  RandomStream random(3, "down");
  ClusterSpec cluster = node_of_four();
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.dp = 8;
  plan.global_batch = 8;
  const StepProgram program = lower(tiny_model(ModelFamily::Llama), plan);
  const StepResult healthy = simulated(program, cluster, {});
  StepOptions options;
  options.degradations = {{InjectedKind::LinkDown, 0, 2.0, 1, 0, 1}};
  const StepResult stalled = simulated(program, cluster, options);
  CHECK(stalled.communicator_error.empty());
  CHECK(stalled.time_s > 2.0);
  CHECK(stalled.time_s < 2.0 + 2 * healthy.time_s);

  options.degradations[0].duration_s = 31;
  const StepResult dead = simulated(program, cluster, options);
  CHECK(dead.communicator_error.find("queue pair") != std::string::npos);
  CHECK(dead.time_s == Approx(30.064771).epsilon(1e-3));
}

TEST_CASE("a pipeline's bubble is what Megatron's formula says", "[sim]") {
  // Compute much larger than communication: bubble / compute = (pp - 1) / micro-batches, divided by virtual stages.
  ModelSpec model = tiny_model(ModelFamily::Llama);
  model.num_hidden_layers = 16;
  model.hidden_size = 4096;
  model.head_dim = 128;
  model.num_attention_heads = 32;
  model.num_key_value_heads = 32;
  model.intermediate_size = 16384;
  model.vocab_size = 256;
  ClusterSpec cluster;
  cluster.nodes = 4;
  cluster.gpus_per_node = 1;
  cluster.nics_per_node = 1;
  cluster.nic_bytes_per_s = 50e12;  // so fast that only the schedule matters
  for (const std::int64_t vp : {1, 4}) {
    ParallelPlan plan = tiny_plan();
    plan.precision = Precision::Bf16;
    plan.sequence_length = 4096;
    plan.pp = 4;
    plan.virtual_stages = vp;
    plan.schedule = vp > 1 ? PipelineSchedule::Interleaved : PipelineSchedule::OneFOneB;
    plan.global_batch = 16;
    const StepResult result = simulated(lower(model, plan), cluster, {});
    const double busy = result.classes[1].busy_s[0];
    CHECK((result.time_s - busy) / busy == Approx(3.0 / 16.0 / static_cast<double>(vp)).epsilon(0.15));
  }
}

TEST_CASE("a deadlock is reported, not waited for", "[sim]") {
  RandomStream random(3, "deadlock");
  const ClusterSpec cluster = node_of_four();
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.pp = 2;
  plan.global_batch = 4;
  StepProgram program = lower(tiny_model(ModelFamily::Llama), plan);
  for (Item& item : program.stages[1].items) {
    if (item.transfers.empty()) continue;
    item.transfers[0].micro_batch += 7;  // nobody sends this
    break;
  }
  const Result<StepResult> result = simulate_step(program, cluster, h100());
  REQUIRE_FALSE(result.ok());
  CHECK(result.problems().front().rule.find("deadlock") != std::string::npos);
  CHECK(result.problems().front().rule.find("transfers") != std::string::npos);
}
