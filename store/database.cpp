#include "store/database.h"

#include <fmt/format.h>
#include <sqlite3.h>
#include <limits>

#include <utility>

namespace trainyard::store {

struct Connection {
  std::string file;
  sqlite3* handle = nullptr;
  int code = SQLITE_OK;
  std::string message;

  Connection() = default;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { sqlite3_close_v2(handle); }

  bool keep(int result) {
    if (result == SQLITE_OK || result == SQLITE_DONE || result == SQLITE_ROW) return true;
    if (code == SQLITE_OK) {
      code = result;
      message = handle != nullptr ? sqlite3_errmsg(handle) : sqlite3_errstr(result);
    }
    return false;
  }
};

namespace {

// How long a statement waits for another process's lock: writers commit in far less, but several may take turns.
constexpr int kBusyTimeoutMs = 30'000;

int open_flags(Access access) {
  switch (access) {
    case Access::ReadOnly:
    case Access::Immutable: return SQLITE_OPEN_READONLY | SQLITE_OPEN_URI;
    case Access::ReadWrite: return SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI;
    case Access::Create: return SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI;
  }
  return 0;
}

// SQLite reads "?" and "#" in a URI as the end of the path; a file name may hold them.
std::string to_uri(const std::string& file, Access access) {
  std::string uri = "file:";
  for (const char c : file)
    uri +=
        (c == '?' || c == '#' || c == '%') ? fmt::format("%{:02X}", static_cast<unsigned char>(c)) : std::string(1, c);
  if (access == Access::Immutable) uri += "?immutable=1";
  return uri;
}

}  // namespace

Problem sqlite_problem(const std::string& file, int code, const std::string& message) {
  const auto missing = ProblemKind::MissingCapability;
  switch (code & 0xff) {
    case SQLITE_NOTADB:
      return {file, "", "", "is not a run store (not an SQLite file)",
              "name another file with --store FILE or TRAINYARD_STORE"};
    case SQLITE_CORRUPT:
      return {file, "", "", fmt::format("the run store is damaged ({})", message),
              "keep the file and try `sqlite3 FILE .recover`, or start a new store with --store FILE"};
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return {file, "", "", "another process keeps the store locked", "wait for it to end, or use another store"};
    case SQLITE_FULL: return {file, "", "", "the disk is full", "free some space, or use another store", missing};
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_IOERR:
      return {
          file,   "", "", fmt::format("cannot be read or written ({})", message), "check the permissions and the disk",
          missing};
    default: return {file, "", "", fmt::format("SQLite refused ({})", message), "run `trainyard doctor`"};
  }
}

Statement::Statement(Statement&& other) noexcept
    : connection_(other.connection_), statement_(std::exchange(other.statement_, nullptr)) {}

Statement& Statement::operator=(Statement&& other) noexcept {
  std::swap(connection_, other.connection_);
  std::swap(statement_, other.statement_);
  return *this;
}

Statement::~Statement() { sqlite3_finalize(statement_); }

void Statement::reset() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

bool Statement::run() {
  if (statement_ == nullptr || connection_->code != SQLITE_OK) return false;
  const bool done = connection_->keep(sqlite3_step(statement_));
  // Reset at once: a statement left standing would keep its transaction open.
  sqlite3_reset(statement_);
  return done;
}

bool Statement::next() {
  if (statement_ == nullptr || connection_->code != SQLITE_OK) return false;
  const int result = sqlite3_step(statement_);
  if (result == SQLITE_ROW) return true;
  connection_->keep(result);
  sqlite3_reset(statement_);
  return false;
}

std::int64_t Statement::integer(int column) const { return sqlite3_column_int64(statement_, column); }

std::optional<std::int64_t> Statement::optional_integer(int column) const {
  if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return std::nullopt;
  return integer(column);
}

double Statement::real(int column) const {
  if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return std::numeric_limits<double>::quiet_NaN();
  return sqlite3_column_double(statement_, column);
}

std::string Statement::text(int column) const {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  return text == nullptr ? std::string()
                         : std::string(text, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

std::vector<std::uint8_t> Statement::blob(int column) const {
  const auto* bytes = static_cast<const std::uint8_t*>(sqlite3_column_blob(statement_, column));
  if (bytes == nullptr) return {};
  return {bytes, bytes + sqlite3_column_bytes(statement_, column)};
}

void Statement::bind(int index, std::int64_t value) {
  if (statement_ != nullptr) connection_->keep(sqlite3_bind_int64(statement_, index, value));
}

void Statement::bind(int index, double value) {
  if (statement_ != nullptr) connection_->keep(sqlite3_bind_double(statement_, index, value));
}

void Statement::bind(int index, const std::optional<std::int64_t>& value) {
  if (value) return bind(index, *value);
  if (statement_ != nullptr) connection_->keep(sqlite3_bind_null(statement_, index));
}

void Statement::bind(int index, const std::vector<std::uint8_t>& value) {
  if (statement_ == nullptr) return;
  const auto* data = value.empty() ? reinterpret_cast<const std::uint8_t*>("") : value.data();
  connection_->keep(sqlite3_bind_blob64(statement_, index, data, value.size(), SQLITE_TRANSIENT));
}

void Statement::bind(int index, std::string_view value) {
  if (statement_ == nullptr) return;
  // An empty view may hold a null pointer, which SQLite would store as NULL.
  const char* data = value.empty() ? "" : value.data();
  connection_->keep(sqlite3_bind_text(statement_, index, data, static_cast<int>(value.size()), SQLITE_TRANSIENT));
}

Database::Database(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}
Database::Database(Database&& other) noexcept = default;
Database& Database::operator=(Database&& other) noexcept = default;
Database::~Database() = default;

Result<Database> Database::open(const std::string& file, Access access) {
  auto connection = std::make_unique<Connection>();
  connection->file = file;
  const int result = sqlite3_open_v2(to_uri(file, access).c_str(), &connection->handle, open_flags(access), nullptr);
  if (!connection->keep(result)) return sqlite_problem(file, connection->code, connection->message);
  sqlite3_extended_result_codes(connection->handle, 1);
  sqlite3_busy_timeout(connection->handle, kBusyTimeoutMs);
  // A store may come from anyone: nothing in it may corrupt the file by ordinary SQL. (Distrusting its
  // schema altogether would also forbid json_valid() in our own CHECKs.)
  sqlite3_db_config(connection->handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  return Database(std::move(connection));
}

bool Database::execute(const char* sql) {
  return !failed() && connection_->keep(sqlite3_exec(connection_->handle, sql, nullptr, nullptr, nullptr));
}

Statement Database::prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  if (!failed()) connection_->keep(sqlite3_prepare_v2(connection_->handle, sql, -1, &statement, nullptr));
  return {connection_.get(), statement};
}

bool Database::attach(const std::string& file, const char* name) {
  return prepare("ATTACH ? AS ?").with(to_uri(file, Access::ReadOnly) + "?mode=ro", name).run();
}

std::int64_t Database::last_insert_id() const { return sqlite3_last_insert_rowid(connection_->handle); }

bool Database::failed() const { return connection_->code != SQLITE_OK; }

Problems Database::problems() const {
  if (!failed()) return {};
  return {sqlite_problem(connection_->file, connection_->code, connection_->message)};
}

}  // namespace trainyard::store
