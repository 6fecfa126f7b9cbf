// Work in forked children: what they ask and bring back, and what is said when one is killed.
#include <catch2/catch.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "sim/child_process.h"

using namespace trainyard;

namespace {

Bytes number(std::uint64_t value) {
  Bytes bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::uint64_t number_in(const Bytes& bytes) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

}  // namespace

TEST_CASE("children ask, and bring back what they made of the answers", "[sim]") {
  std::vector<std::uint64_t> results(20, 0);
  ChildWork work;
  work.count = results.size();
  work.work = [](std::size_t i, const Ask& ask) {
    const std::uint64_t doubled = number_in(ask(number(i)));
    return number(number_in(ask(number(doubled))));
  };
  work.answer = [](std::size_t, const Bytes& question) { return number(2 * number_in(question)); };
  work.on_result = [&](std::size_t i, const Bytes& bytes) { results[i] = number_in(bytes); };
  REQUIRE(in_children(work).empty());
  for (std::size_t i = 0; i < results.size(); ++i) CHECK(results[i] == 4 * i);
}

TEST_CASE("a child that is killed while it is answered is told, and takes nobody with it", "[sim]") {
  // As in the program: writing to nobody would end the process.
  const auto before = std::signal(SIGPIPE, SIG_DFL);
  ChildWork work;
  work.work = [](std::size_t, const Ask& ask) { return ask(number(static_cast<std::uint64_t>(getpid()))); };
  work.answer = [](std::size_t, const Bytes& question) {
    const auto child = static_cast<pid_t>(number_in(question));
    kill(child, SIGKILL);
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);  // it is gone, and not yet collected
    return Bytes(1 << 20, 0);
  };
  work.on_result = [](std::size_t, const Bytes&) {};
  const Problems problems = in_children(work);
  std::signal(SIGPIPE, before);
  REQUIRE(problems.size() == 1);
  CHECK(problems[0].rule.find("signal 9") != std::string::npos);
}
