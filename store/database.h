// A thin layer over SQLite's C interface: a connection, and prepared statements that bind and read by type.
//
// Errors are sticky: after the first one every call is a no-op that reports failure, and
// Database::problems() says once what went wrong. Callers may thus write a batch and look at the end.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/base/status.h"

struct sqlite3;
struct sqlite3_stmt;

namespace trainyard::store {

/// "TrYd": marks our files, also for file(1).
constexpr std::int32_t kApplicationId = 0x54725964;
/// Raised with every change of schema.sql.
constexpr std::int32_t kSchemaVersion = 6;

/// The text of store/schema.sql (embedded at build time).
const char* schema_text();

/// What SQLite calls a connection, with its first error.
struct Connection;

class Statement {
 public:
  Statement() = default;
  Statement(Connection* connection, sqlite3_stmt* statement) : connection_(connection), statement_(statement) {}
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&& other) noexcept;
  ~Statement();

  /// Binds all parameters in order and forgets the previous execution.
  template <class... Values>
  Statement& with(const Values&... values) {
    reset();
    int index = 0;
    (bind(++index, values), ...);
    return *this;
  }
  /// Executes a statement that returns no rows.
  bool run();
  /// Steps to the next row; false at the end, and on an error.
  bool next();

  [[nodiscard]] std::int64_t integer(int column) const;
  [[nodiscard]] std::optional<std::int64_t> optional_integer(int column) const;
  [[nodiscard]] double real(int column) const;       // NULL reads as not a number
  [[nodiscard]] std::string text(int column) const;  // NULL reads as ""
  [[nodiscard]] std::vector<std::uint8_t> blob(int column) const;

  /// Ends an execution before its last row, and with it its hold on the database.
  void reset();

 private:
  void bind(int index, std::int64_t value);
  void bind(int index, const std::optional<std::int64_t>& value);
  void bind(int index, double value);
  void bind(int index, std::string_view value);
  void bind(int index, const std::vector<std::uint8_t>& value);
  void bind(int index, const std::string& value) { bind(index, std::string_view(value)); }
  void bind(int index, const char* value) { bind(index, std::string_view(value)); }

  Connection* connection_ = nullptr;
  sqlite3_stmt* statement_ = nullptr;
};

enum class Access : std::uint8_t {
  ReadOnly,
  Immutable,  // read-only media: no locks, no side files
  ReadWrite,
  Create,
};

class Database {
 public:
  static Result<Database> open(const std::string& file, Access access);

  Database(Database&& other) noexcept;
  Database& operator=(Database&& other) noexcept;
  ~Database();

  /// Runs statements that return no rows, and PRAGMAs whose rows do not matter.
  bool execute(const char* sql);
  Statement prepare(const char* sql);
  /// Lets statements name the tables of another file, which they may only read, as `name`.table.
  bool attach(const std::string& file, const char* name);
  [[nodiscard]] std::int64_t last_insert_id() const;

  [[nodiscard]] bool failed() const;
  /// The first error, or none.
  [[nodiscard]] Problems problems() const;

 private:
  explicit Database(std::unique_ptr<Connection> connection);
  std::unique_ptr<Connection> connection_;
};

/// The Problem that SQLite's result code `code` means for a user of `file`.
Problem sqlite_problem(const std::string& file, int code, const std::string& message);

}  // namespace trainyard::store
