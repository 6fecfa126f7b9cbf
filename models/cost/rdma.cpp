#include "models/cost/rdma.h"

#include <algorithm>
#include <cmath>

namespace trainyard {

double goodput(const RdmaSpec& rdma, double bytes_per_s, double loss) {
  const double arrives = 1 - loss;
  if (rdma.retransmission == Retransmission::SelectiveRepeat) return arrives;
  const double window = std::max(1.0, bytes_per_s * rdma.rtt_s / static_cast<double>(rdma.packet_bytes));
  return arrives / (arrives + loss * window);
}

double tail_stall_s(const RdmaSpec& rdma, double lost, double try_s) {
  const double any = -std::expm1(-lost);
  return any * (rdma.adaptive_retransmission ? rdma.rtt_s : try_s);
}

double dcqcn_cut_s() {
  constexpr double kPeriod_s = 55e-6;
  constexpr int kRounds = 5;
  return kPeriod_s * (1 - std::ldexp(1.0, -kRounds));  // 1/2 + 1/4 + ... of a period
}

}  // namespace trainyard
