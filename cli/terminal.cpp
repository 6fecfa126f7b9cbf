#include "cli/terminal.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <sstream>

#include <fmt/format.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

namespace trainyard::cli {

std::string curve(const std::vector<double>& values, std::int64_t first_x, const std::string& name) {
  constexpr std::size_t kWidth = 64, kHeight = 8;
  std::vector<double> columns;
  const std::size_t width = std::min(kWidth, values.size());
  for (std::size_t c = 0; c < width; ++c) {
    const std::size_t begin = c * values.size() / width, end = (c + 1) * values.size() / width;
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += values[i];
    columns.push_back(sum / static_cast<double>(end - begin));
  }
  std::vector<double> finite;
  for (const double value : columns) {
    if (std::isfinite(value)) finite.push_back(value);
  }
  if (finite.size() < 2) return "";
  const double low = *std::min_element(finite.begin(), finite.end());
  const double high = std::max(*std::max_element(finite.begin(), finite.end()), low + 1e-9);
  std::vector<std::string> rows(kHeight);
  for (std::size_t r = 0; r < kHeight; ++r) {
    const bool ends = r == 0 || r + 1 == kHeight;
    rows[r] = fmt::format("  {:>10} |", !ends ? "" : fmt::format("{:.4g}", r == 0 ? high : low));
    for (const double value : columns) {
      const double at = (high - value) / (high - low) * static_cast<double>(kHeight - 1);
      const bool here = std::isfinite(value) && static_cast<std::size_t>(std::llround(at)) == r;
      rows[r] += here ? (unicode() ? "\u2022" : "*") : " ";
    }
  }
  std::string out;
  for (const std::string& row : rows) out += row.substr(0, row.find_last_not_of(' ') + 1) + "\n";
  const std::string last = std::to_string(first_x + static_cast<std::int64_t>(values.size()) - 1);
  out += fmt::format("  {:>10} +{}\n", name, std::string(width, '-'));
  out += fmt::format("  {:>10}  {:<{}}{}\n\n", "", first_x, std::max<std::size_t>(width, last.size() + 8) - last.size(),
                     last);
  return out;
}

bool unicode() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string text = value;
    return text.find("UTF-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

namespace {

// Cells on screen: bytes that do not continue a UTF-8 character.
std::size_t cells(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

}  // namespace

std::string table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows,
                  int indent) {
  std::vector<std::size_t> width;
  const auto measure = [&](const std::vector<std::string>& row) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], cells(row[i]));
  };
  measure(header);
  for (const auto& row : rows) measure(row);
  std::string out;
  const auto print = [&](const std::vector<std::string>& row) {
    std::string line(static_cast<std::size_t>(indent), ' ');
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(width[i] - cells(row[i]), ' ');
      line += (i > 0 ? "  " : "") + (i == 0 ? row[i] + padding : padding + row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  if (!header.empty()) print(header);
  for (const auto& row : rows) print(row);
  return out;
}

std::string left_table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right) {
  std::vector<std::size_t> width(right.size(), 0);
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], cells(row[i]));
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(width[i] - cells(row[i]), ' ');
      line += "  " + (right[i] ? padding + row[i] : row[i] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string bar(double share, int width) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * width * 8));
  std::string out;
  for (int i = 0; i < eighths / 8; ++i) out += unicode() ? "█" : "#";
  if (unicode()) out += kEighths[eighths % 8];
  return out;
}

std::string with_bars(const std::string& table, std::size_t header_lines, const std::vector<double>& shares,
                      int width) {
  std::vector<std::string> lines;
  std::istringstream in(table);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  std::size_t widest = 0;
  for (const std::string& line : lines) widest = std::max(widest, cells(line));
  std::string out;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const bool has = i >= header_lines && i - header_lines < shares.size();
    const std::string its = has ? bar(shares[i - header_lines], width) : "";
    out += its.empty() ? lines[i] : lines[i] + std::string(widest - cells(lines[i]) + 2, ' ') + its;
    out += "\n";
  }
  return out;
}

std::string sparkline(const std::vector<double>& values, double low, double high) {
  static constexpr const char* kUnicode[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  static constexpr const char kAscii[] = "_.:-=+*#";
  std::string out;
  for (const double value : values) {
    const double share = high > low ? std::clamp((value - low) / (high - low), 0.0, 1.0) : 1;
    const auto level = static_cast<std::size_t>(std::lround(share * 7));
    out += unicode() ? kUnicode[level] : std::string(1, kAscii[level]);
  }
  return out;
}

std::string span_bar(double begin, double end, int width) {
  const long last = width - 1;
  const long first = std::clamp(static_cast<long>(std::floor(begin * width)), 0L, last);
  const long until = std::clamp(std::lround(end * width), first + 1, last + 1);
  std::string out(static_cast<std::size_t>(first), ' ');
  for (long i = first; i < until; ++i) out += unicode() ? "█" : "#";
  return out;
}

std::string mark(std::size_t i) {
  static constexpr const char* kUnicode[] = {"█", "▓", "▒", "░", "▞", "▚", "▤", "▥", "▦", "▧", "▨", "▩", "▣", "◫", "◪"};
  static constexpr const char kAscii[] = "#x+-=o*%@&~:;,^";
  return unicode() ? kUnicode[i % std::size(kUnicode)] : std::string(1, kAscii[i % (std::size(kAscii) - 1)]);
}

std::string stacked_bar(const std::vector<double>& shares, int width) {
  // Cells go where the running total rounds to, so that the bar has its width whatever the shares.
  std::string out;
  double total = 0;
  long drawn = 0;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    total += shares[i];
    const long until = i + 1 == shares.size() ? width : std::lround(total * width);
    for (; drawn < until; ++drawn) out += mark(i);
  }
  return out;
}

Progress::Progress(std::string what, std::size_t total, const std::string& mode)
    : what_(std::move(what)), total_(total), started_(std::chrono::steady_clock::now()) {
  if (mode == "ndjson") mode_ = Mode::Ndjson;
  if (mode == "auto") mode_ = isatty(STDERR_FILENO) != 0 ? Mode::Terminal : Mode::Lines;
  if (mode_ == Mode::Ndjson) show();
}

Progress::~Progress() {
  if (shown_ && mode_ == Mode::Terminal) std::cerr << "\r\033[K" << std::flush;
}

void Progress::step() {
  ++done_;
  show();
}

void Progress::tick() {
  if (mode_ == Mode::Terminal) show();
}

void Progress::show() {
  const double elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  if (mode_ == Mode::Ndjson) return show_json(elapsed_s);
  if (mode_ != Mode::None && elapsed_s >= 2) show_line(elapsed_s);
}

void Progress::show_line(double elapsed_s) {
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  if (mode_ == Mode::Terminal) {
    // A total of one is a job that cannot tell how far it is: the seconds move.
    const std::string line = total_ > 1 ? fmt::format("[{:<30}] {}/{}", bar(share, 30), done_, total_) : "";
    std::cerr << fmt::format("\r\033[K{} {} {:.0f} s", what_, line, elapsed_s) << std::flush;
    shown_ = true;
  } else if (total_ > 1 && static_cast<int>(share * 10) > shown_tenths_) {
    shown_tenths_ = static_cast<int>(share * 10);
    std::cerr << fmt::format("{}: {}%\n", what_, shown_tenths_ * 10);
  }
}

void Progress::show_json(double elapsed_s) const {
  const nlohmann::ordered_json line{
      {"progress", what_}, {"done", done_}, {"total", total_}, {"elapsed_s", std::round(elapsed_s * 1000) / 1000}};
  std::cerr << line.dump() + "\n" << std::flush;
}

}  // namespace trainyard::cli
