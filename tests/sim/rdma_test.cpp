// RDMA faults within a step: what each costs, and what published figures say of it.
#include <catch2/catch.hpp>

#include "models/cost/rdma.h"
#include "sim/fabric_load.h"
#include "sim/nic_faults.h"
#include "sim/step_simulator.h"
#include "tests/program/tiny_models.h"
#include "tests/sim/step_inputs.h"

using namespace trainyard;
using trainyard::testing::h100;

namespace {

// Eight nodes of one GPU below leaves of four, NICs so slow that only bytes matter.
ClusterSpec slow_nics() {
  ClusterSpec cluster;
  cluster.name = "slow NICs";
  cluster.nodes = 8;
  cluster.gpus_per_node = cluster.nics_per_node = 1;
  cluster.nic_bytes_per_s = 1e4;
  cluster.tiers = {{"leaf", 4, 1.0}};
  cluster.rdma.adaptive_retransmission = true;
  return cluster;
}

StepProgram program_of(std::int64_t pp, std::int64_t dp) {
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.pp = pp;
  plan.dp = dp;
  plan.global_batch = dp;
  return lower(tiny_model(ModelFamily::Llama), plan);
}

StepResult step(const StepProgram& program, const ClusterSpec& cluster, std::vector<InjectedFault> faults = {},
                double queue_pair_timeout_s = DetectionLadder().link_s) {
  static const CostModel cost = h100();
  StepOptions options;
  options.degradations = std::move(faults);
  options.queue_pair_timeout_s = queue_pair_timeout_s;
  const Result<StepResult> result = simulate_step(program, cluster, cost, options);
  if (!result) FAIL(to_string(result.problems().front()));
  return result.value();
}

InjectedFault fault_of(FaultMode mode, std::optional<double> duration_s = {}) {
  InjectedFault fault;
  fault.kind = kind_of(mode);
  fault.mode = mode;
  fault.duration_s = duration_s;
  return fault;
}

}  // namespace

TEST_CASE("go-back-N loses what its formula says, selective repeat only what was lost", "[rdma]") {
  // (1 - p) / (1 - p + p W) with W packets of 4 KiB in a round trip at 400 Gb/s: design table of the fault catalogue.
  RdmaSpec rdma;
  const std::pair<double, std::array<double, 3>> by_rtt_us[] = {
      {10, {0.9879, 0.8911, 0.4478}}, {20, {0.9762, 0.8036, 0.2885}}, {50, {0.9425, 0.6207, 0.1396}}};
  for (const auto& [rtt_us, expected] : by_rtt_us) {
    rdma.rtt_s = rtt_us * 1e-6;
    double loss = 1e-4;
    for (const double share : expected) {
      CHECK(goodput(rdma, 50e9, loss) == Approx(share).margin(6e-5));
      loss *= 10;
    }
  }
  CHECK(goodput(rdma, 50e9, 0) == 1);
  rdma.retransmission = Retransmission::SelectiveRepeat;
  CHECK(goodput(rdma, 50e9, 0.01) == Approx(0.99));
}

TEST_CASE("a lossy link slows its rings by its goodput, one way as much as both", "[rdma]") {
  const StepProgram program = program_of(1, 8);
  ClusterSpec cluster = slow_nics();
  cluster.nic_bytes_per_s = 1e6;
  cluster.rdma.packet_bytes = 256;
  cluster.rdma.rtt_s = 0.03125;  // 122 packets on their way, as many as a fast NIC has
  const double healthy_s = step(program, cluster).time_s;
  for (const double loss : {1e-4, 1e-3, 1e-2}) {
    InjectedFault lossy = fault_of(FaultMode::GrayLoss);
    lossy.loss = loss;
    InjectedFault slow;
    slow.kind = InjectedKind::NicSlow;
    slow.factor = 1 / goodput(cluster.rdma, cluster.nic_bytes_per_s, loss);
    INFO("loss " << loss << ", " << slow.factor << " times slower");
    for (const LinkDirection direction : {LinkDirection::Both, LinkDirection::Out, LinkDirection::In}) {
      lossy.direction = direction;
      // Beside it only round trips that are waited for a lost last packet: of four collectives, both ways, or
      // acknowledgements.
      const double tails_s = step(program, cluster, {lossy}).time_s - step(program, cluster, {slow}).time_s;
      CHECK(tails_s >= 0);
      CHECK(tails_s <= 16 * loss * cluster.rdma.rtt_s * 1.001);
    }
    CHECK(step(program, cluster, {slow}).time_s > healthy_s * (1 + 0.5 * (slow.factor - 1)));
  }
}

TEST_CASE("what leaves a NIC does not care how the way in does", "[rdma]") {
  const StepProgram program = program_of(2, 4);  // stage 0 on nodes 0 to 3 sends forward, stage 1 back
  const ClusterSpec cluster = slow_nics();
  InjectedFault slow;
  slow.kind = InjectedKind::NicSlow;
  slow.factor = 8;
  const double both_s = step(program, cluster, {slow}).time_s;
  slow.direction = LinkDirection::Out;
  const double out_s = step(program, cluster, {slow}).time_s;
  slow.direction = LinkDirection::In;
  const double in_s = step(program, cluster, {slow}).time_s, healthy_s = step(program, cluster).time_s;
  CHECK(out_s > healthy_s);
  CHECK(in_s > healthy_s);
  CHECK(both_s > std::max(out_s, in_s));
}

TEST_CASE("a lost last packet waits for a queue pair's timer, unless that adapts", "[rdma]") {
  const StepProgram program = program_of(2, 1);
  ClusterSpec cluster = slow_nics();
  cluster.nic_bytes_per_s = 50e9;
  InjectedFault lossy = fault_of(FaultMode::GrayLoss);
  lossy.loss = 1e-3;
  lossy.direction = LinkDirection::Out;
  const double adaptive_s = step(program, cluster, {lossy}).time_s;
  cluster.rdma.adaptive_retransmission = false;
  const double with_timers_s = step(program, cluster, {lossy}).time_s;
  // One send forward and one back, each of which waits 4.29 s in a thousandth of cases. What is reduced over both
  // stages crosses the NIC out and in.
  const double try_s = DetectionLadder().link_s / 7;
  CHECK((with_timers_s - adaptive_s) / (1e-3 * try_s) > 2);
  CHECK((with_timers_s - adaptive_s) / (1e-3 * try_s) < 12);
}

TEST_CASE("a queue pair gives up after 30 s, or 7.5 with a timeout of 18", "[rdma]") {
  const StepProgram program = program_of(1, 8);
  ClusterSpec cluster = slow_nics();
  cluster.nic_bytes_per_s = 1e9;
  for (const auto& [ib_timeout, seconds] : {std::pair{20, 30.06}, std::pair{18, 7.52}}) {
    const double timeout_s = queue_pair_timeout_s(ib_timeout, 7);
    CHECK(timeout_s == Approx(seconds).margin(0.005));
    const StepResult stall = step(program, cluster, {fault_of(FaultMode::LinkFlap, timeout_s * 0.97)}, timeout_s),
                     dead = step(program, cluster, {fault_of(FaultMode::LinkFlap, timeout_s * 1.03)}, timeout_s);
    CHECK(stall.communicator_error.empty());
    CHECK(stall.time_s > timeout_s * 0.97);
    CHECK(dead.communicator_error.find("queue pair") != std::string::npos);
    CHECK(dead.time_s == Approx(timeout_s).epsilon(0.01));
  }
}

TEST_CASE("with two switches to a NIC the loss of one costs half of its rate", "[rdma]") {
  const StepProgram program = program_of(1, 8);
  ClusterSpec cluster = slow_nics();
  const double healthy_s = step(program, cluster).time_s;
  CHECK_FALSE(step(program, cluster, {fault_of(FaultMode::SwitchCrash)}).communicator_error.empty());
  CHECK_FALSE(step(program, cluster, {fault_of(FaultMode::LinkDown)}).communicator_error.empty());

  cluster.dual_tor = true;
  CHECK(step(program, cluster).time_s == Approx(healthy_s).epsilon(1e-9));
  InjectedFault half;
  half.kind = InjectedKind::NicSlow;
  half.factor = 2;
  const double half_s = step(program, cluster, {half}).time_s;
  CHECK(half_s > 1.5 * healthy_s);
  for (const FaultMode mode : {FaultMode::LinkDown, FaultMode::SwitchCrash}) {
    const StepResult one = step(program, cluster, {fault_of(mode)});
    CHECK(one.communicator_error.empty());
    CHECK(one.time_s == Approx(half_s).epsilon(1e-6));
  }
  // A NIC that connects to nobody does so over neither of its ports.
  CHECK_FALSE(step(program, cluster, {fault_of(FaultMode::GidMisconfigured)}).communicator_error.empty());
  const StepResult both = step(program, cluster, {fault_of(FaultMode::SwitchCrash), fault_of(FaultMode::LinkDown)});
  CHECK_FALSE(both.communicator_error.empty());
}

TEST_CASE("a storm of pauses stops a leaf until its switch no longer listens", "[rdma]") {
  const StepProgram program = program_of(1, 8);
  ClusterSpec cluster = slow_nics();
  cluster.nic_bytes_per_s = 1e9;
  const double healthy_s = step(program, cluster).time_s;
  const StepResult storm = step(program, cluster, {fault_of(FaultMode::PfcStorm, 5)});
  CHECK(storm.communicator_error.empty());
  CHECK(storm.time_s > 5);
  CHECK(storm.time_s < 5 + 2 * healthy_s);
  cluster.rdma.pfc_watchdog_s = 0.2;
  // The leaf is free after 0.2 s. In this plan all need the NIC that is cut off then.
  const std::vector<InjectedFault> parts = by_part({fault_of(FaultMode::PfcStorm, 5)}, cluster, {}, 8);
  REQUIRE(parts.size() == 5);
  CHECK(parts[0].at_s == Approx(0.2));
  CHECK(*parts[0].duration_s == Approx(4.8));
  for (std::size_t i = 1; i < parts.size(); ++i) {
    CHECK(parts[i].node == static_cast<std::int64_t>(i) - 1);
    CHECK(*parts[i].duration_s == Approx(0.2));
  }
}

TEST_CASE("a leaf is what hangs off one switch", "[rdma]") {
  ClusterSpec cluster = slow_nics();
  cluster.gpus_per_node = 8;
  cluster.nics_per_node = 4;
  CHECK(nics_of_leaf(cluster, {}, 8, 5, 3).nodes == std::vector<std::int64_t>{4, 5, 6, 7});
  CHECK(nics_of_leaf(cluster, {}, 8, 5, 3).devices == std::vector<std::int64_t>{2});  // its rail
  cluster.rail_optimized = false;
  CHECK(nics_of_leaf(cluster, {}, 6, 5, 3).nodes == std::vector<std::int64_t>{4, 5});
  CHECK(nics_of_leaf(cluster, {}, 8, 5, 3).devices == std::vector<std::int64_t>{0, 2, 4, 6});
}

TEST_CASE("senders that start at line rate pay for the first cut of each all-to-all", "[rdma]") {
  ParallelPlan plan = tiny_plan();
  plan.precision = Precision::Bf16;
  plan.dp = 4;
  plan.ep = 4;
  plan.global_batch = 4;
  ModelSpec model = tiny_model(ModelFamily::Mixtral);
  const StepProgram program = lower(model, plan);
  ClusterSpec cluster = slow_nics();
  cluster.nic_bytes_per_s = 50e9;
  const double smooth_s = step(program, cluster).time_s;
  cluster.rdma.congestion_control = CongestionControl::Dcqcn;
  std::int64_t exchanges = 0;
  for (const Item& item : program.stages[0].items) {
    if (item.block < 0) continue;
    for (const Op& op : program.block(item).ops)
      exchanges += op.kind == OpKind::AllToAllCounts || op.kind == OpKind::AllToAllV ? 1 : 0;
  }
  CHECK(exchanges > 0);
  CHECK(step(program, cluster).time_s ==
        Approx(smooth_s + static_cast<double>(exchanges) * dcqcn_cut_s()).epsilon(0.02));
}

TEST_CASE("hashed flows leave 60% of a fabric, spread packets 95%", "[rdma]") {
  // Spectrum-X against standard Ethernet, over three tiers at Colossus (NVIDIA through Fierce Electronics): 95% and
  // 60%.
  ClusterSpec cluster;
  cluster.nodes = 64;
  cluster.nic_bytes_per_s = 50e9;
  cluster.tiers = {{"leaf", 8, 1.0}, {"pod", 32, 1.0}};
  const CostModel cost = h100();
  RandomStream random(1, "circles");
  const std::vector<FabricFlow> flows = random_circles(cluster, cluster.nodes, random);
  REQUIRE(flows.size() == 512);
  const auto mean_share = [&] {
    const Platform platform(cluster, cluster.gpus(), cost.nic_payload_rate(cluster.nic_bytes_per_s));
    const auto rates = sustained_rates(platform, flows);
    REQUIRE(rates.ok());
    double sum = 0;
    for (const double rate : rates.value()) sum += rate;
    return sum / static_cast<double>(flows.size()) / cluster.nic_bytes_per_s;
  };
  const double spread = mean_share();
  CHECK(spread == Approx(0.95).margin(0.03));
  cluster.routing = Routing::Ecmp;
  cluster.flows_per_channel = 2;  // of 16 channels of NCCL's over 8 NICs
  const double hashed = mean_share();
  CHECK(hashed == Approx(0.60).margin(0.04));
  cluster.flows_per_channel = 16;  // as Llama 3's
  CHECK(mean_share() > hashed + 0.1);
}
