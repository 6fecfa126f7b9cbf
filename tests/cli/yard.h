// Runs the binary as a user does, in a folder and with a store of its own.
#pragma once

#include <sys/wait.h>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

namespace trainyard::test {

struct Outcome {
  int code = -1;
  std::string out, err;
};

// A folder of its own for each test, with its own store.
class Yard {
 public:
  Yard()
      : folder_(std::filesystem::temp_directory_path() / ("trainyard-cli-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directories(folder_);
  }
  ~Yard() { std::filesystem::remove_all(folder_); }

  Outcome run(const std::string& arguments) const {
    const std::string command = "cd '" + std::string(TRAINYARD_SOURCE_DIR) + "' && TRAINYARD_STORE='" + store() +
                                "' '" + TRAINYARD_BINARY + "' " + arguments + " 2>'" + (folder_ / "stderr").string() +
                                "'";
    Outcome outcome;
    FILE* pipe = popen(command.c_str(), "r");
    std::array<char, 65536> buffer{};
    while (const std::size_t count = fread(buffer.data(), 1, buffer.size(), pipe))
      outcome.out.append(buffer.data(), count);
    const int status = pclose(pipe);
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    std::ifstream error(folder_ / "stderr");
    outcome.err.assign(std::istreambuf_iterator<char>(error), {});
    return outcome;
  }
  std::string store() const { return (folder_ / "runs.sqlite").string(); }
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }

 private:
  std::filesystem::path folder_;
};

inline bool contains(const std::string& text, const std::string& what) { return text.find(what) != std::string::npos; }

}  // namespace trainyard::test
