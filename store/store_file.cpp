#include "store/store_file.h"

#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

namespace trainyard::store {

namespace {

constexpr std::int64_t kPageCheckLimitBytes = 64LL << 20;
constexpr int kHeaderBytes = 100;  // https://sqlite.org/fileformat.html, section 1.3
constexpr std::size_t kUserVersionOffset = 60;
constexpr std::size_t kApplicationIdOffset = 68;
using Header = std::array<unsigned char, kHeaderBytes>;

std::int32_t big_endian(const Header& header, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8 | header[offset + i];
  return static_cast<std::int32_t>(value);
}

// Reads through SQLite's own file layer. A plain open and close would, by the rules of POSIX locks, drop
// the locks of every connection that this process has to the same file.
int read_header(const std::string& file, Header& header) {
  sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
  const char* name = sqlite3_create_filename(file.c_str(), "", "", 0, nullptr);
  std::vector<std::max_align_t> memory(static_cast<std::size_t>(vfs->szOsFile) / sizeof(std::max_align_t) + 1);
  auto* handle = reinterpret_cast<sqlite3_file*>(memory.data());
  int result = vfs->xOpen(vfs, name, handle, SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_DB, nullptr);
  if (result == SQLITE_OK) result = handle->pMethods->xRead(handle, header.data(), kHeaderBytes, 0);
  if (handle->pMethods != nullptr) handle->pMethods->xClose(handle);
  sqlite3_free_filename(const_cast<char*>(name));
  return result;
}

Problem other_store(const std::string& file, const std::string& rule) {
  return {file, "", "", rule, "name another file with --store FILE or TRAINYARD_STORE"};
}

Problems fill_new(const std::string& file) {
  auto opened = Database::open(file, Access::Create);
  if (!opened) return opened.problems();
  Database database = std::move(opened).value();
  const std::string marks =
      fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}; PRAGMA journal_mode = WAL;", kApplicationId,
                  kSchemaVersion);
  database.execute(marks.c_str());
  database.execute("BEGIN");
  database.execute(schema_text());
  database.execute("COMMIT");
  return database.problems();
}

void remove_with_side_files(const std::string& file) {
  for (const char* suffix : {"", "-journal", "-wal", "-shm"}) ::unlink((file + suffix).c_str());
}

}  // namespace

std::string default_store_file() {
  const char* named = std::getenv("TRAINYARD_STORE");
  return named != nullptr && *named != '\0' ? named : "trainyard.sqlite";
}

std::string canonical_store_file(const std::string& file) {
  std::error_code error;
  const auto canonical = std::filesystem::weakly_canonical(std::filesystem::absolute(file, error), error);
  return error || canonical.empty() ? file : canonical.string();
}

Problems check_header(const std::string& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) {
    if (errno != ENOENT && errno != ENOTDIR) return {sqlite_problem(file, SQLITE_CANTOPEN, std::strerror(errno))};
    return {{file, "", "", "there is no run store here",
             "make one with `trainyard sim run SCENARIO`, or name another with --store FILE or TRAINYARD_STORE"}};
  }
  if (!S_ISREG(status.st_mode)) return {other_store(file, "is not a run store (not a regular file)")};
  Header header{};
  const int result = read_header(file, header);
  if (result == SQLITE_IOERR_SHORT_READ) return {sqlite_problem(file, SQLITE_NOTADB, "")};
  if (result != SQLITE_OK) return {sqlite_problem(file, result, sqlite3_errstr(result))};
  if (std::memcmp(header.data(), "SQLite format 3", 16) != 0) return {sqlite_problem(file, SQLITE_NOTADB, "")};
  const std::int32_t application_id = big_endian(header, kApplicationIdOffset);
  if (application_id != kApplicationId)
    return {
        other_store(file, fmt::format("is not a run store (an SQLite file of another program, application_id {:#x})",
                                      static_cast<std::uint32_t>(application_id)))};
  const std::int32_t version = big_endian(header, kUserVersionOffset);
  if (version > kSchemaVersion)
    return {
        {file, "", "",
         fmt::format("was written by a newer Trainyard (schema {}; this one knows schema {})", version, kSchemaVersion),
         "update Trainyard, or name another store with --store FILE"}};
  if (version < 1) return {sqlite_problem(file, SQLITE_CORRUPT, fmt::format("schema number {}", version))};
  return {};
}

Problems create_if_missing(const std::string& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) == 0 && (!S_ISREG(status.st_mode) || status.st_size > 0)) return {};
  const std::string fresh = file + "-new";
  remove_with_side_files(fresh);
  if (Problems problems = fill_new(fresh); !problems.empty()) {
    remove_with_side_files(fresh);
    for (Problem& problem : problems) problem.file = file;
    return problems;
  }
  // Side files of a store that somebody removed would be read as this one's.
  for (const char* suffix : {"-journal", "-wal", "-shm"}) ::unlink((file + suffix).c_str());
  if (::rename(fresh.c_str(), file.c_str()) != 0) {
    const int error = errno;
    remove_with_side_files(fresh);
    return {sqlite_problem(file, SQLITE_CANTOPEN, std::strerror(error))};
  }
  return {};
}

void upgrade(Database& database) {
  std::int64_t version = kSchemaVersion;
  {
    Statement row = database.prepare("PRAGMA user_version");
    if (row.next()) version = row.integer(0);
  }
  if (version >= kSchemaVersion) return;
  // 1 to 2: runs that trained. SQLite changes a CHECK only with the table around it (lang_altertable.html, section 7).
  const std::string schema = schema_text();
  const auto statement = [&](const std::string& begin) {
    const std::size_t at = schema.find(begin);
    return schema.substr(at, schema.find(";\n", at) + 2 - at);
  };
  std::string runs = statement("CREATE TABLE runs (");
  runs.replace(0, std::strlen("CREATE TABLE runs"), "CREATE TABLE runs_2");
  database.execute("PRAGMA foreign_keys = OFF");
  database.execute("BEGIN IMMEDIATE");
  database.execute(runs.c_str());
  database.execute("INSERT INTO runs_2 SELECT * FROM runs; DROP TABLE runs; ALTER TABLE runs_2 RENAME TO runs;");
  database.execute(statement("CREATE TABLE training_steps").c_str());
  database.execute("PRAGMA user_version = 2");
  database.execute("COMMIT");
}

Problems check_pages(const std::string& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0 || status.st_size > kPageCheckLimitBytes) return {};
  auto opened = Database::open(file, Access::ReadOnly);
  if (!opened) return opened.problems();
  Database database = std::move(opened).value();
  std::string verdict;
  {
    Statement check = database.prepare("PRAGMA quick_check(1)");
    if (check.next()) verdict = check.text(0);
  }
  if (database.failed()) return database.problems();
  if (verdict != "ok") return {sqlite_problem(file, SQLITE_CORRUPT, verdict)};
  return {};
}

}  // namespace trainyard::store
