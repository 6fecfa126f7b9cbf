// Rules of the house that a machine judges better than a reader. Each rule is also shown to fail where it should.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <regex>
#include <set>
#include <sstream>

namespace fs = std::filesystem;

namespace {

using Violations = std::vector<std::string>;

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

// Files under the source tree, relative, without builds and git.
std::vector<fs::path> files_of(const fs::path& root) {
  std::vector<fs::path> out;
  for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator(); ++it) {
    const std::string name = it->path().filename().string();
    if (it->is_directory() && (name == ".git" || name == "build" || name.rfind("build-", 0) == 0)) {
      it.disable_recursion_pending();
    } else if (it->is_regular_file()) {
      out.push_back(fs::relative(it->path(), root));
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

bool is_code(const fs::path& file) {
  return file.extension() == ".cpp" || file.extension() == ".h" || file.extension() == ".cu";
}

// Who may include whom: the left may include the right, and itself.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"models", {}},
    {"store", {"models"}},
    {"sim", {"models", "store"}},
    {"kernels", {"models"}},
    {"exec", {"models", "store", "kernels"}},
    {"cli", {"models", "store", "sim", "kernels", "exec"}},
    {"gui", {"models", "store"}},
};

// Libraries that a folder may not touch, by what their includes start with.
const std::map<std::string, std::vector<std::string>> kForbiddenLibraries = {
    {"models", {"simgrid/", "sqlite3", "Q", "cuda", "nccl", "CLI/"}},
    {"store", {"simgrid/", "Q", "cuda", "nccl", "CLI/"}},
    {"sim", {"sqlite3", "Q", "cuda", "nccl", "CLI/"}},
    {"cli", {"simgrid/", "sqlite3", "Q", "cuda", "nccl"}},
};

Violations forbidden_includes(const fs::path& root) {
  static const std::regex include("^\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"]");
  Violations out;
  for (const fs::path& file : files_of(root)) {
    const std::string folder = file.begin()->string();
    if (!is_code(file) || kMayInclude.count(folder) == 0) continue;
    std::istringstream lines(read(root / file));
    for (std::string line; std::getline(lines, line);) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      const std::string target = match[2], other = target.substr(0, target.find('/'));
      if (match[1] == "\"") {
        const bool known = kMayInclude.count(other) > 0 || other == "tests";
        if (known && other != folder && kMayInclude.at(folder).count(other) == 0)
          out.push_back(file.string() + " includes " + target);
      } else if (const auto forbidden = kForbiddenLibraries.find(folder); forbidden != kForbiddenLibraries.end()) {
        for (const std::string& prefix : forbidden->second) {
          const bool qt = prefix == "Q" && target.size() > 1 && target[0] == 'Q' &&
                          std::isupper(static_cast<unsigned char>(target[1])) != 0;
          if (prefix == "Q" ? qt : target.rfind(prefix, 0) == 0)
            out.push_back(file.string() + " includes <" + target + ">");
        }
      }
    }
  }
  // Narrower than the folders: kernels sees of models only its base.
  return out;
}

// Every source file is named by a CMakeLists.txt in its own folder.
Violations unlisted_sources(const fs::path& root) {
  Violations out;
  for (const fs::path& file : files_of(root)) {
    if (file.extension() != ".cpp" && file.extension() != ".cu") continue;
    const std::string list = read(root / file.parent_path() / "CMakeLists.txt");
    if (list.find(file.filename().string()) == std::string::npos)
      out.push_back(file.string() + " is in no CMakeLists.txt");
  }
  return out;
}

Violations large_files(const fs::path& root) {
  Violations out;
  for (const fs::path& file : files_of(root)) {
    if (fs::file_size(root / file) > (std::uintmax_t{2} << 20)) out.push_back(file.string() + " is larger than 2 MiB");
  }
  return out;
}

Violations folders_without_readme(const fs::path& root) {
  Violations out;
  for (const char* folder : {"models", "models/program", "models/recovery", "sim", "exec", "kernels", "store", "cli",
                             "gui", "scenarios", "tests", "docs"}) {
    if (!fs::exists(root / folder / "README.md")) out.push_back(std::string(folder) + " has no README.md");
  }
  return out;
}

const fs::path kRoot = TRAINYARD_SOURCE_DIR;

// A small tree that breaks every rule.
fs::path planted() {
  const fs::path root = fs::temp_directory_path() / ("trainyard-hygiene-" + std::to_string(std::random_device{}()));
  fs::create_directories(root / "models");
  fs::create_directories(root / "sim");
  std::ofstream(root / "models/bad.cpp")
      << "#include \"sim/fold.h\"\n#include <sqlite3.h>\n#include <QWidget>\n#include <queue>\n";
  std::ofstream(root / "models/CMakeLists.txt") << "# nothing\n";
  std::ofstream(root / "sim/large.bin") << std::string((2 << 20) + 1, 'x');
  return root;
}

std::string all(const Violations& violations) {
  std::string text;
  for (const std::string& violation : violations) text += violation + "\n";
  return text;
}

}  // namespace

TEST_CASE("folders include only what they may") {
  const Violations violations = forbidden_includes(kRoot);
  INFO(all(violations));
  CHECK(violations.empty());
}

TEST_CASE("every source is listed") {
  const Violations violations = unlisted_sources(kRoot);
  INFO(all(violations));
  CHECK(violations.empty());
}

TEST_CASE("no large files") {
  const Violations violations = large_files(kRoot);
  INFO(all(violations));
  CHECK(violations.empty());
}

TEST_CASE("every folder says what it is for") {
  const Violations violations = folders_without_readme(kRoot);
  INFO(all(violations));
  CHECK(violations.empty());
}

TEST_CASE("code is formatted") {
  std::string tool;
  for (const char* name : {"clang-format-14", "clang-format"}) {  // other versions format differently
    if (tool.empty() && std::system(("command -v " + std::string(name) + " >/dev/null 2>&1").c_str()) == 0) tool = name;
  }
  if (tool.empty()) {
    WARN("clang-format is not installed: formatting was not checked");
    return;
  }
  const std::string command = "cd '" + kRoot.string() +
                              "' && find models sim store cli tests -name '*.cpp' -o -name '*.h' | sort | xargs " +
                              tool + " --dry-run -Werror";
  CHECK(std::system(command.c_str()) == 0);
}

TEST_CASE("the rules catch what they are for") {
  const fs::path root = planted();
  CHECK(forbidden_includes(root).size() == 3);
  CHECK(unlisted_sources(root).size() == 1);
  CHECK(large_files(root).size() == 1);
  CHECK(folders_without_readme(root).size() == 12);
  fs::remove_all(root);
}
