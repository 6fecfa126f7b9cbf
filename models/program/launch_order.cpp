#include "models/program/launch_order.h"

namespace trainyard {

LaunchOrder launch_order(const StepProgram& program, const StageProgram& stage) {
  LaunchOrder order;
  order.first.reserve(stage.items.size() + 1);
  std::int64_t ops = 0;
  for (std::size_t i = 0; i < stage.items.size(); ++i) {
    const Item& item = stage.items[i];
    order.first.push_back(ops);
    const std::size_t count = item.block < 0 ? 1 : program.block(item).ops.size();
    for (std::size_t o = 0; o < count; ++o) {
      const Stream stream = item.block < 0 ? item.stream : program.block(item).ops[o].stream;
      order.queue[static_cast<std::size_t>(stream)].push_back({static_cast<std::int32_t>(i), static_cast<OpId>(o)});
    }
    ops += static_cast<std::int64_t>(count);
  }
  order.first.push_back(ops);
  return order;
}

}  // namespace trainyard
