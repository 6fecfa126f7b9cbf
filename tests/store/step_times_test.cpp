#include "store/step_times.h"

#include <catch2/catch.hpp>

#include <limits>

#include "store/run_reader.h"
#include "tests/store/sample_run.h"
#include "tests/store/temp_dir.h"

using namespace trainyard::store;
using namespace trainyard;

namespace {

StepTimes open_times(const std::string& file, const std::string& job) {
  auto opened = StepTimes::open(file, job);
  if (!opened) FAIL(to_string(opened.problems().front()));
  return std::move(opened).value();
}

}  // namespace

TEST_CASE("a step time is there for the next process, to the last bit, and for its job alone") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  {
    StepTimes times = open_times(file, "a");
    CHECK(times.known().empty());
    times.add("0/1/2/0x1p+0;", 0.1);
    times.add("slow", 1.0 / 3);
    times.add("slow", 2.0 / 3);  // by two processes at once: the later one
  }
  const StepTimes again = open_times(file, "a");
  CHECK(again.known() == std::map<std::string, double>{{"0/1/2/0x1p+0;", 0.1}, {"slow", 2.0 / 3}});
  CHECK(open_times(file, "b").known().empty());
  CHECK(RunReader::open(file).value().runs().value().empty());
}

TEST_CASE("the step where nothing is slow is kept whole") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  StepTimes times = open_times(file, "a");
  CHECK(times.healthy_step().empty());
  const std::vector<std::uint8_t> bytes{0, 255, 0, 10};
  times.add_healthy_step(bytes);
  CHECK(open_times(file, "a").healthy_step() == bytes);
  CHECK(open_times(file, "b").healthy_step().empty());
}

TEST_CASE("a step time that somebody spoilt is as good as none") {
  const TempDir dir;
  const std::string file = dir.file("s.sqlite");
  {
    StepTimes times = open_times(file, "a");
    times.add("zero", 0);
    times.add("negative", -1);
    times.add("endless", std::numeric_limits<double>::infinity());
    times.add("sound", 2);
  }
  CHECK(open_times(file, "a").known() == std::map<std::string, double>{{"sound", 2}});
}
