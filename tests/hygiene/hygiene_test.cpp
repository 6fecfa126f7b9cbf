// Rules of the house that a machine judges better than a reader. Each rule takes the root of a tree and returns what
// breaks it; each is run on this tree, where it must find nothing, and on a small planted one, where it must find it.
#include <catch2/catch.hpp>

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace fs = std::filesystem;

namespace {

using Violations = std::vector<std::string>;

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// What a command prints, and whether it succeeded.
std::pair<std::string, bool> output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {text, false};
  char buffer[4096];
  for (std::size_t count = 0; (count = fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, count);
  const bool ok = pclose(pipe) == 0;
  return {text, ok};
}

bool is_build_folder(const std::string& name) {
  return name == ".git" || name == "build" || name.rfind("build-", 0) == 0;
}

std::vector<fs::path> files_on_disk(const fs::path& root) {
  std::vector<fs::path> out;
  for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator(); ++it) {
    if (it->is_directory() && is_build_folder(it->path().filename().string())) {
      it.disable_recursion_pending();
    } else if (it->is_regular_file()) {
      out.push_back(fs::relative(it->path(), root));
    }
  }
  return out;
}

// Files of the tree, relative and sorted: those that Git knows or would add, so that a user's own runs in the clone
// break no rule; without Git, all but builds.
std::vector<fs::path> files_of(const fs::path& root) {
  std::vector<fs::path> out;
  if (fs::exists(root / ".git")) {
    const auto [text, ok] =
        output_of("git -C " + quoted(root.string()) + " ls-files -z --cached --others --exclude-standard 2>/dev/null");
    std::istringstream names(ok ? text : std::string());
    for (std::string name; std::getline(names, name, '\0');) {
      if (fs::is_regular_file(root / name)) out.emplace_back(name);
    }
  }
  if (out.empty()) out = files_on_disk(root);
  std::sort(out.begin(), out.end());
  return out;
}

bool is_code(const fs::path& file) {
  return file.extension() == ".cpp" || file.extension() == ".h" || file.extension() == ".cu";
}

// Who may include whom, itself apart: folder, and what its includes of the house may start with.
const std::map<std::string, std::vector<std::string>> kMayInclude = {
    {"models", {}},
    {"store", {"models/"}},
    {"sim", {"models/", "store/"}},
    {"kernels", {"models/base/"}},
    {"exec", {"models/", "store/", "kernels/"}},
    {"cli", {"models/", "store/", "sim/", "kernels/", "exec/"}},
    {"gui", {"models/", "store/"}},
};

// Libraries that a folder may not touch, by what their includes start with; "Q" stands for a Qt class.
const std::map<std::string, std::vector<std::string>> kForbiddenLibraries = {
    {"models", {"simgrid/", "sqlite3", "Q", "cuda", "nccl", "CLI/"}},
    {"store", {"simgrid/", "Q", "cuda", "nccl", "CLI/"}},
    {"sim", {"sqlite3", "Q", "cuda", "nccl", "CLI/"}},
    {"exec", {"simgrid/", "sqlite3", "Q", "CLI/"}},
    {"kernels", {"simgrid/", "sqlite3", "Q", "CLI/"}},
    {"cli", {"simgrid/", "sqlite3", "Q", "cuda", "nccl"}},
    {"gui", {"simgrid/", "sqlite3", "cuda", "nccl", "CLI/"}},
};

bool starts_with(const std::string& target, const std::string& prefix) {
  if (prefix == "Q")
    return target.size() > 1 && target[0] == 'Q' && std::isupper(static_cast<unsigned char>(target[1]));
  return target.rfind(prefix, 0) == 0;
}

bool starts_with_any(const std::string& target, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const auto& prefix) { return starts_with(target, prefix); });
}

// Nothing, or what is wrong with a file of `folder` that includes `target`.
std::string wrong_with_include(const fs::path& root, const fs::path& file, const std::string& target) {
  const std::string folder = file.begin()->string(), other = target.substr(0, target.find('/'));
  const bool of_the_house = target.find('/') != std::string::npos && (kMayInclude.count(other) > 0 || other == "tests");
  if (of_the_house) return other == folder || starts_with_any(target, kMayInclude.at(folder)) ? "" : "may not include";
  if (fs::exists(root / file.parent_path() / target)) return "does not write from the root of the tree";
  return starts_with_any(target, kForbiddenLibraries.at(folder)) ? "may not include" : "";
}

Violations forbidden_includes(const fs::path& root) {
  static const std::regex include("^\\s*#\\s*include\\s*[<\"]([^>\"]+)[>\"]");
  Violations out;
  for (const fs::path& file : files_of(root)) {
    if (!is_code(file) || kMayInclude.count(file.begin()->string()) == 0) continue;
    std::istringstream lines(read(root / file));
    for (std::string line; std::getline(lines, line);) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      const std::string wrong = wrong_with_include(root, file, match[1]);
      if (!wrong.empty()) out.push_back(file.string() + " " + wrong + " " + match[1].str());
    }
  }
  return out;
}

// The words of a CMakeLists.txt, comments apart: names of files and folders are words.
std::set<std::string> words_of(const fs::path& list) {
  static const std::regex comment("#[^\\n]*"), word("[A-Za-z0-9_./+-]+");
  const std::string text = std::regex_replace(read(list), comment, "");
  std::set<std::string> out;
  for (std::sregex_iterator it(text.begin(), text.end(), word), end; it != end; ++it) out.insert(it->str());
  return out;
}

// Whether the CMakeLists.txt of a folder above `path` names it, relative to that folder.
bool is_listed(const fs::path& root, const fs::path& path) {
  for (fs::path folder = path.parent_path();; folder = folder.parent_path()) {
    const fs::path list = root / folder / "CMakeLists.txt";
    if (fs::exists(list) && words_of(list).count(path.lexically_relative(folder.empty() ? "." : folder).string()) > 0)
      return true;
    if (folder.empty()) return false;
  }
}

// Every source is compiled: a CMakeLists.txt names it, and the one above names that one's folder.
Violations unlisted_sources(const fs::path& root) {
  Violations out;
  for (const fs::path& file : files_of(root)) {
    if (is_code(file) && file.extension() != ".h") {
      if (!is_listed(root, file)) out.push_back(file.string() + " is in no CMakeLists.txt");
    } else if (file.filename() == "CMakeLists.txt" && file.has_parent_path()) {
      if (!is_listed(root, file.parent_path())) out.push_back(file.parent_path().string() + " is in no CMakeLists.txt");
    }
  }
  return out;
}

Violations large_files(const fs::path& root) {
  constexpr std::uintmax_t kLimitBytes = std::uintmax_t{2} << 20;
  Violations out;
  for (const fs::path& file : files_of(root)) {
    if (fs::file_size(root / file) > kLimitBytes) out.push_back(file.string() + " is larger than 2 MiB");
  }
  return out;
}

// Every top-level folder and every folder of models/ says what it is for.
Violations folders_without_readme(const fs::path& root) {
  std::set<fs::path> folders;
  for (const fs::path& file : files_of(root)) {
    const fs::path folder = file.parent_path();
    if (folder.empty() || file.string()[0] == '.') continue;
    folders.insert(*folder.begin());
    if (*folder.begin() == "models" && folder != "models") folders.insert(*folder.begin() / *std::next(folder.begin()));
  }
  Violations out;
  for (const fs::path& folder : folders) {
    if (!fs::exists(root / folder / "README.md")) out.push_back(folder.string() + " has no README.md");
  }
  return out;
}

// clang-format 14, under whichever name: other versions format differently.
std::optional<std::string> formatter() {
  for (const char* name : {"clang-format-14", "clang-format"}) {
    const auto [text, ok] = output_of(std::string(name) + " --version 2>/dev/null");
    if (ok && text.find(" version 14.") != std::string::npos) return name;
  }
  return std::nullopt;
}

Violations unformatted(const fs::path& root, const std::string& tool) {
  std::string command = "cd " + quoted(root.string()) + " && " + tool + " --style=file --dry-run -Werror";
  for (const fs::path& file : files_of(root)) {
    if (is_code(file)) command += " " + quoted(file.string());
  }
  const auto [text, ok] = output_of(command + " 2>&1");
  Violations out;
  if (ok) return out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("error:") != std::string::npos) out.push_back(line);
  }
  if (out.empty()) out.push_back(tool + " failed: " + text);
  return out;
}

void check_none(const Violations& violations) {
  std::string text;
  for (const std::string& violation : violations) text += violation + "\n";
  INFO(text);
  CHECK(violations.empty());
}

const fs::path kRoot = TRAINYARD_SOURCE_DIR;

// A small tree that keeps every rule, to plant violations in; it removes itself.
class Tree {
 public:
  Tree() {
    std::string name = (fs::temp_directory_path() / "trainyard-hygiene-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    root_ = name;
    plant("CMakeLists.txt", "add_subdirectory(models)\nadd_subdirectory(sim)\n");
    plant("models/CMakeLists.txt", "foreach(folder base)\nadd_subdirectory(${folder})\nendforeach()\n");
    plant("models/README.md", "What is described.\n");
    plant("models/base/CMakeLists.txt", "target_sources(models PRIVATE units.cpp)\n");
    plant("models/base/README.md", "Units.\n");
    plant("models/base/units.h", "#pragma once\n");
    plant("models/base/units.cpp", "#include \"models/base/units.h\"\n\n#include <queue>\n");
    plant("sim/CMakeLists.txt", "add_library(sim fold.cpp)\n");
    plant("sim/README.md", "SimGrid.\n");
    plant("sim/fold.h", "#pragma once\n");
    plant("sim/fold.cpp", "#include \"sim/fold.h\"\n\n#include \"models/base/units.h\"\n");
    fs::copy_file(kRoot / ".clang-format", root_ / ".clang-format");
  }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;
  ~Tree() {
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }

  void plant(const fs::path& file, const std::string& text) const {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  [[nodiscard]] const fs::path& root() const { return root_; }

 private:
  fs::path root_;
};

}  // namespace

TEST_CASE("the tree is seen") {
  const std::vector<fs::path> files = files_of(kRoot);
  CHECK(std::find(files.begin(), files.end(), "tests/hygiene/hygiene_test.cpp") != files.end());
  CHECK(std::none_of(files.begin(), files.end(),
                     [](const auto& file) { return is_build_folder(file.begin()->string()); }));
}

TEST_CASE("folders include only what they may") { check_none(forbidden_includes(kRoot)); }
TEST_CASE("every source is listed") { check_none(unlisted_sources(kRoot)); }
TEST_CASE("no large files") { check_none(large_files(kRoot)); }
TEST_CASE("every folder says what it is for") { check_none(folders_without_readme(kRoot)); }

TEST_CASE("code is formatted") {
  const std::optional<std::string> tool = formatter();
  if (!tool) {
    WARN("clang-format 14 is not installed: formatting was not checked");
    return;
  }
  check_none(unformatted(kRoot, *tool));
}

TEST_CASE("a tree that keeps the rules passes") {
  const Tree tree;
  check_none(forbidden_includes(tree.root()));
  check_none(unlisted_sources(tree.root()));
  check_none(large_files(tree.root()));
  check_none(folders_without_readme(tree.root()));
}

TEST_CASE("forbidden includes are caught") {
  const Tree tree;
  const auto found = [&](const fs::path& file, const std::string& line) {
    tree.plant(file, line + "\n");
    const Violations violations = forbidden_includes(tree.root());
    return violations.size() == 1 && violations[0].rfind(file.string() + " ", 0) == 0;
  };
  CHECK(found("models/base/units.cpp", "#include \"sim/fold.h\""));
  CHECK(found("models/base/units.cpp", "#include <sim/fold.h>"));
  CHECK(found("models/base/units.cpp", "  #  include <sqlite3.h>"));
  CHECK(found("models/base/units.cpp", "#include <simgrid/s4u.hpp>"));
  CHECK(found("models/base/units.cpp", "#include <QWidget>"));
  CHECK(found("models/base/units.cpp", "#include <cuda_runtime.h>"));
  CHECK(found("models/base/units.cpp", "#include \"units.h\""));
  CHECK(found("models/base/units.cpp", "#include \"tests/base/help.h\""));
  tree.plant("models/base/units.cpp", "");
  CHECK(found("kernels/gemm.cpp", "#include \"models/program/op.h\""));
  tree.plant("kernels/gemm.cpp", "#include \"models/base/units.h\"\n");
  CHECK(found("exec/rank.cpp", "#include \"sim/fold.h\""));
  tree.plant("exec/rank.cpp", "#include \"kernels/gemm.h\"\n");
  CHECK(found("store/store.h", "#include \"sim/fold.h\""));
  tree.plant("store/store.h", "#include <sqlite3.h>\n");
  CHECK(found("sim/fold.cpp", "#include \"exec/rank.h\""));
  tree.plant("sim/fold.cpp", "#include <simgrid/s4u.hpp>\n");
  CHECK(found("cli/main.cpp", "#include \"gui/window.h\""));
}

TEST_CASE("unlisted sources are caught") {
  const Tree tree;
  SECTION("a file") { tree.plant("sim/unfold.cpp", ""); }
  SECTION("a file whose name ends like a listed one") { tree.plant("sim/old.cpp", ""); }
  SECTION("a file named in a comment only") {
    tree.plant("sim/CMakeLists.txt", "add_library(sim fold.cpp)\n# step.cpp comes later\n");
    tree.plant("sim/step.cpp", "");
  }
  SECTION("a folder that nobody adds") {
    tree.plant("models/spec/CMakeLists.txt", "target_sources(models PRIVATE model_spec.cpp)\n");
    tree.plant("models/spec/model_spec.cpp", "");
  }
  CHECK(unlisted_sources(tree.root()).size() == 1);
}

TEST_CASE("large files are caught") {
  const Tree tree;
  tree.plant("sim/trace.bin", std::string(2 << 20, 'x'));
  CHECK(large_files(tree.root()).empty());
  tree.plant("sim/trace.bin", std::string((2 << 20) + 1, 'x'));
  CHECK(large_files(tree.root()).size() == 1);
}

TEST_CASE("folders without a README are caught") {
  const Tree tree;
  tree.plant("gui/window.h", "");
  tree.plant("models/plan/mesh.h", "");
  CHECK(folders_without_readme(tree.root()).size() == 2);
}

TEST_CASE("unformatted code is caught") {
  const std::optional<std::string> tool = formatter();
  if (!tool) return;
  const Tree tree;
  check_none(unformatted(tree.root(), *tool));
  tree.plant("sim/fold.h", "#pragma once\nint  x ;\n");
  CHECK(!unformatted(tree.root(), *tool).empty());
}
