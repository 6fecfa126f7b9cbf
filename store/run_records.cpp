#include "store/run_records.h"

#include <array>

namespace trainyard::store {

namespace {

constexpr std::array<const char*, 3> kKindNames = {"step", "run", "exec"};
constexpr std::array<const char*, 4> kStatusNames = {"running", "finished", "interrupted", "failed"};

template <class Enum, std::size_t N>
std::optional<Enum> find_name(const std::array<const char*, N>& names, std::string_view text) {
  for (std::size_t i = 0; i < N; ++i)
    if (text == names[i]) return static_cast<Enum>(i);
  return std::nullopt;
}

}  // namespace

const char* to_string(RunKind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }
const char* to_string(RunStatus status) { return kStatusNames[static_cast<std::size_t>(status)]; }
std::optional<RunKind> run_kind_from(std::string_view text) { return find_name<RunKind>(kKindNames, text); }
std::optional<RunStatus> run_status_from(std::string_view text) { return find_name<RunStatus>(kStatusNames, text); }

}  // namespace trainyard::store
