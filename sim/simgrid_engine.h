// SimGrid's engine: one in a process.
#pragma once

#include <csignal>
#include <iterator>

#include <simgrid/s4u.hpp>

namespace trainyard {

/// Made by the first call, quiet below warnings, on the stacks that this build needs; it lives as long as the process.
inline simgrid::s4u::Engine* simgrid_engine() {
  static char name[] = "trainyard", quiet[] = "--log=root.thresh:warning";
#if defined(TRAINYARD_SANITIZED)
  // AddressSanitizer does not know the stacks that SimGrid swaps, and reports errors where an exception unwound one.
  static char stacks[] = "--cfg=contexts/factory:thread";
  static char* arguments[] = {name, quiet, stacks, nullptr};
#else
  static char* arguments[] = {name, quiet, nullptr};
#endif
  static int count = static_cast<int>(std::size(arguments)) - 1;
  // SimGrid would answer Ctrl-C with words of its own.
  const auto answer = std::signal(SIGINT, SIG_DFL);
  simgrid::s4u::Engine* engine = simgrid::s4u::Engine::get_instance(&count, arguments);
  std::signal(SIGINT, answer);
  return engine;
}

}  // namespace trainyard
