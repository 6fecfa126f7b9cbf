// Folding by symmetry, exactly.
//
// Ranks, channels (collectives and transfers) and links form a coloured structure. Its coarsest equitable
// partition, found by colour refinement (Weisfeiler-Leman), gives classes whose members have identical
// timelines, so one representative of each is simulated. A link class becomes one link, crossed by each channel
// class with the weight that one member link carries from the whole class.
//
// Exact because (1) initial colours hold everything that can differ: the stage's program and every
// degradation with its time window; (2) dynamics see neighbours only through sums and maxima: a channel
// starts at its last member's arrival and shares links max-min; (3) a channel is one variable over all its
// links, never independent hops.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "models/plan/mesh.h"
#include "models/spec/fault_spec.h"
#include "sim/platform.h"

namespace trainyard {

/// What a channel carries. Groups that stay in one node have channels without links. Of a Ring every NIC takes part; of
/// a Shift, where every member hands on to the next, only those between nodes.
enum class ChannelKind : std::uint8_t { Ring, Shift, AllToAll, Transfer };

/// Channels of one sort: the communicators of a group, or one direction of pipeline transfers.
struct ChannelSort {
  ChannelKind kind = ChannelKind::Ring;
  Group group = Group::Tp;
  bool backward = false;  // Transfer: carries gradients, from a stage to the one before
  bool operator==(const ChannelSort&) const = default;
};

/// A link class crossed by a channel class, `weight` times the flow.
struct Crossing {
  std::int32_t link_class = 0;
  std::int64_t weight = 0;
  /// Of one member channel: flows over all the links of the class that it crosses.
  std::int64_t flows = 0;
};

struct ChannelClass {
  std::int32_t sort = 0;                   // index into Fold::sorts
  std::int64_t count = 0;                  // member channels
  std::vector<std::int32_t> rank_classes;  // of its members, each once; Transfer: sender, then receiver
  std::int64_t ranks = 0, nodes = 0;       // of one member channel
  bool inside_node = false;
  std::vector<Crossing> crossings;
};

struct RankClass {
  std::int64_t representative = 0;
  std::int64_t count = 0;
  std::int64_t stage = 0;
  /// Channel class of each sort that its ranks belong to, or -1. For Transfer: as sender, and as receiver.
  std::vector<std::int32_t> channel, channel_as_receiver;
};

struct LinkClass {
  LinkId representative = 0;
  std::int64_t count = 0;
  double capacity_bytes_per_s = 0;
};

struct Fold {
  std::vector<ChannelSort> sorts;
  std::vector<RankClass> ranks;
  std::vector<ChannelClass> channels;
  std::vector<LinkClass> links;
  std::vector<std::int32_t> rank_class_of;  // by rank
  int rounds = 0;                           // of refinement
  /// Weights count flows: those of a channel share what it carries evenly.
  std::int64_t flows_per_channel = 1;
};

/// Which sorts of channels a program uses, over the ranks of a plan.
std::vector<ChannelSort> channel_sorts(const ParallelPlan& plan);

/// Bytes/s that the fullest tier link has to spare when every NIC sends all it can; infinite where no tier can ever be
/// full. Negative: it can be.
double tier_headroom(const ParallelPlan& plan, const Platform& platform);

/// `unfold`: every rank is a class of its own.
Fold fold(const ParallelPlan& plan, const Platform& platform, const std::vector<InjectedFault>& degradations,
          bool unfold);

}  // namespace trainyard
