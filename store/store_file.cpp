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
#include <optional>
#include <set>
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

bool has_content(const std::string& file) {
  struct stat status {};
  return ::stat(file.c_str(), &status) == 0 && status.st_size > 0;
}

// Whether the connection can read; opening alone touches nothing.
bool can_read(Database& database) { return database.prepare("SELECT count(*) FROM runs").next(); }

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

void remove_with_side_files(const std::string& file) {
  for (const char* suffix : {"", "-journal", "-wal", "-shm"}) ::unlink((file + suffix).c_str());
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

namespace {

// A statement of schema.sql, by how it begins.
std::string schema_statement(const std::string& begin) {
  const std::string schema = schema_text();
  const std::size_t at = schema.find(begin);
  return schema.substr(at, schema.find(";\n", at) + 2 - at);
}

// Runs that trained. SQLite changes a CHECK only with the table around it (lang_altertable.html, section 7).
void upgrade_to_2(Database& database) {
  std::string runs = schema_statement("CREATE TABLE runs (");
  runs.replace(0, std::strlen("CREATE TABLE runs"), "CREATE TABLE runs_2");
  database.execute(runs.c_str());
  database.execute("INSERT INTO runs_2 SELECT * FROM runs; DROP TABLE runs; ALTER TABLE runs_2 RENAME TO runs;");
  database.execute(schema_statement("CREATE TABLE training_steps").c_str());
}

// Sweeps.
void upgrade_to_3(Database& database) {
  for (const char* begin :
       {"CREATE TABLE sweeps", "CREATE TABLE sweep_variations", "CREATE TABLE sweep_cells", "CREATE VIEW named_cells"})
    database.execute(schema_statement(begin).c_str());
}

// Spares over time, and the step that a recovery went back to.
void upgrade_to_4(Database& database) {
  database.execute("ALTER TABLE recoveries ADD COLUMN restored_step INTEGER");
  database.execute(schema_statement("CREATE TABLE spare_counts").c_str());
}

// The controller's log, and steps that need not be simulated again.
void upgrade_to_5(Database& database) {
  for (const char* begin : {"CREATE TABLE controller_logs", "CREATE TABLE step_times", "CREATE TABLE healthy_steps"})
    database.execute(schema_statement(begin).c_str());
}

// Links of simulated steps.
void upgrade_to_6(Database& database) { database.execute(schema_statement("CREATE TABLE links").c_str()); }

}  // namespace

void upgrade(Database& database) {
  std::int64_t version = kSchemaVersion;
  {
    Statement row = database.prepare("PRAGMA user_version");
    if (row.next()) version = row.integer(0);
  }
  if (version >= kSchemaVersion) return;
  database.execute("PRAGMA foreign_keys = OFF");
  database.execute("BEGIN IMMEDIATE");
  if (version < 2) upgrade_to_2(database);
  if (version < 3) upgrade_to_3(database);
  if (version < 4) upgrade_to_4(database);
  if (version < 5) upgrade_to_5(database);
  if (version < 6) upgrade_to_6(database);
  database.execute(fmt::format("PRAGMA user_version = {}", kSchemaVersion).c_str());
  database.execute("COMMIT");
}

namespace {

// What changes with every change of a file.
using FileState = std::array<std::int64_t, 5>;

std::optional<FileState> state_of(const std::string& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) return std::nullopt;
  return FileState{static_cast<std::int64_t>(status.st_dev), static_cast<std::int64_t>(status.st_ino), status.st_size,
                   status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

std::set<FileState>& states_in_order() {
  static std::set<FileState> states;
  return states;
}

}  // namespace

void pages_are_in_order(const std::string& file) {
  if (const auto state = state_of(file)) states_in_order().insert(*state);
}

Problems check_pages(const std::string& file) {
  const auto state = state_of(file);
  if (!state || (*state)[2] > kPageCheckLimitBytes || states_in_order().contains(*state)) return {};
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
  states_in_order().insert(*state);
  return {};
}

// Where no side file can be made, as on read-only media, SQLite needs to be told that nobody writes.
// That holds unless a log stands beside the store.
Result<Database> open_for_reading(const std::string& file) {
  auto opened = Database::open(file, Access::ReadOnly);
  if (!opened) return opened.problems();
  Database database = std::move(opened).value();
  if (can_read(database)) return database;
  const bool is_refused = database.problems().front().kind == ProblemKind::MissingCapability;
  if (is_refused && !has_content(file + "-wal")) {
    auto immutable = Database::open(file, Access::Immutable);
    if (!immutable) return immutable.problems();
    Database retried = std::move(immutable).value();
    if (can_read(retried)) return retried;
  }
  return database.problems();
}

Result<Database> open_for_writing(const std::string& file) {
  if (Problems problems = create_if_missing(file); !problems.empty()) return problems;
  if (Problems problems = check_header(file); !problems.empty()) return problems;
  if (Problems problems = check_pages(file); !problems.empty()) return problems;
  auto opened = Database::open(file, Access::ReadWrite);
  if (!opened) return opened.problems();
  Database database = std::move(opened).value();
  // NORMAL: a commit survives the death of the process at once, and that of the machine from the next
  // checkpoint on; in neither case is the file inconsistent.
  upgrade(database);
  database.execute("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;");
  if (database.failed()) return database.problems();
  return database;
}

}  // namespace trainyard::store
