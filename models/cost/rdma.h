// What RDMA transports do about loss and congestion, in closed form.
#pragma once

#include "models/spec/cluster_spec.h"

namespace trainyard {

/// Of a link of `bytes_per_s` that loses each packet with probability `loss`, the share that carries new data.
/// Go-back-N: (1 - p) / (1 - p + p W), as each loss sends the W packets of a round trip again (W at least 1; Bertsekas
/// and Gallager, Data Networks, 2.4). Selective repeat: 1 - p. `loss` in [0, 1).
double goodput(const RdmaSpec& rdma, double bytes_per_s, double loss);

/// Seconds that flows which end together wait on average for a last packet, or the acknowledgement of it, to be missed:
/// nothing follows that would betray the loss, so a queue pair's timer has to run out once. `lost`: how many of their
/// last packets are lost on average; `try_s`: seconds of one try.
double tail_stall_s(const RdmaSpec& rdma, double lost, double try_s);

/// Seconds of line rate that one cut by DCQCN costs a sender that has not been cut before: it falls to a half and
/// halves what is missing every 55 us, five times (Zhu et al., SIGCOMM 2015, sections 3 and 5: alpha starts at 1,
/// F = 5). At its fixed point a bottleneck is then used in full (Zhu et al., CoNEXT 2016).
double dcqcn_cut_s();

}  // namespace trainyard
