// What a terminal shows: tables, bars, progress. stdout is for data; progress goes to stderr.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace trainyard::cli {

/// Columns line up; the first is left-aligned, the others right. Rows may be shorter than the header.
std::string table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows,
                  int indent = 2);

/// Without a header; column i is right-aligned where `right[i]`.
std::string left_table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right);

/// `share` of `width` cells, with eighths where the terminal shows Unicode.
std::string bar(double share, int width);

/// A table's text with a bar behind each row that follows its `header_lines`.
std::string with_bars(const std::string& table, std::size_t header_lines, const std::vector<double>& shares,
                      int width = 24);

/// Values from `low` to `high` as a line of small columns, one each.
std::string sparkline(const std::vector<double>& values, double low, double high);

/// From `begin` to `end`, both shares of `width` cells: where in a whole something lies. At least one cell.
std::string span_bar(double begin, double end, int width);

/// Shares of a whole, one letter or shade for each, always `width` cells.
std::string stacked_bar(const std::vector<double>& shares, int width);
/// The mark that stacked_bar uses for its i-th share.
std::string mark(std::size_t i);

/// Values as a curve, with the range of both axes; each column shows the mean of its values. Empty for fewer than two.
std::string curve(const std::vector<double>& values, std::int64_t first_x, const std::string& name);

/// True when the locale says UTF-8.
bool unicode();

/// Tells on stderr how far a long job is: on a terminal a line that rewrites itself, elsewhere a line for each tenth;
/// silent for the first two seconds. Or as JSON, one object a line, from the start.
class Progress {
 public:
  /// `mode`: auto, none or ndjson.
  Progress(std::string what, std::size_t total, const std::string& mode);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// One more of the total is done.
  void step();
  /// Nothing new, but time has passed.
  void tick();

 private:
  void show();
  void show_line(double elapsed_s);
  void show_json(double elapsed_s) const;

  enum class Mode { None, Terminal, Lines, Ndjson };
  std::string what_;
  std::size_t total_, done_ = 0;
  int shown_tenths_ = 0;
  Mode mode_ = Mode::None;
  bool shown_ = false;
  std::chrono::steady_clock::time_point started_;
};

}  // namespace trainyard::cli
