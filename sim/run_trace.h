// The trace of a run: its events, and their hash as they come.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <xxhash.h>

#include "sim/run_result.h"

namespace trainyard {

class RunTrace {
 public:
  RunTrace() : state_(XXH64_createState(), &XXH64_freeState) { XXH64_reset(state_.get(), 0); }

  void add(std::int64_t time_ns, RunEventKind kind, std::int64_t node, std::string text) {
    for (const std::int64_t word : {time_ns, static_cast<std::int64_t>(kind), node}) add_word(word);
    events_.push_back({time_ns, kind, node, std::move(text)});
  }

  [[nodiscard]] std::uint64_t hash() const { return XXH64_digest(state_.get()); }
  std::vector<RunEvent> take_events() { return std::move(events_); }

 private:
  // Byte by byte, so that the hash does not depend on the machine's byte order.
  void add_word(std::int64_t word) {
    std::array<unsigned char, 8> bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<unsigned char>(static_cast<std::uint64_t>(word) >> (8 * i));
    XXH64_update(state_.get(), bytes.data(), bytes.size());
  }

  std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state_;
  std::vector<RunEvent> events_;
};

}  // namespace trainyard
